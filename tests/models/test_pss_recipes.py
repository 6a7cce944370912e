"""The rows of the papers' tables: complete, each one a system of its own, each one built or refused."""

import collections
import itertools

import pytest

from kgarden.models import build_detector
from kgarden.recipe import load_recipe, stage_recipes
from kgarden.schema import UserError
from kgarden.train import differing_keys

STEMS = ("fcos_pss", "atss_pss", "defcn")
TINY = {
    "model.backbone": {"name": "resnet18", "norm": "bn", "stem_channels": 8, "res2_channels": 8},
    "model.neck": {"channels": 32},
    "model.num_classes": 3,
}
ROWS = [(stem, row) for stem in STEMS for row in load_recipe(stem).rows]


def plain(recipe):
    return {**recipe.plain(), "rows": {}}


def is_trained(recipe, row):
    return recipe.rows[row].evaluates is None and recipe.rows[row].recipe is None


@pytest.mark.parametrize("stem", STEMS)
def test_every_row_changes_the_resolved_recipe(stem):
    recipe = load_recipe(stem)
    resolved = {row: plain(load_recipe(stem, row=row)) for row in recipe.rows}
    as_it_stands = [row for row in recipe.rows if is_trained(recipe, row) and not recipe.rows[row].set]
    assert len(as_it_stands) == 1  # the row that the recipe is
    for row, settings in recipe.rows.items():
        changed = differing_keys(plain(recipe), resolved[row])
        assert bool(changed) == bool(settings.set or settings.recipe), row
        if settings.evaluates:  # another score of the same training
            other = differing_keys(resolved[settings.evaluates], resolved[row])
            assert is_trained(recipe, settings.evaluates) and set(other) <= {"model.prediction"}, row


@pytest.mark.parametrize("stem", STEMS)
def test_no_two_trainings_are_the_same(stem):
    recipe = load_recipe(stem)
    trained = [row for row in recipe.rows if is_trained(recipe, row)]
    for one, other in itertools.combinations(trained, 2):
        first, second = (plain(load_recipe(stem, row=row)) for row in (one, other))
        assert differing_keys(first, second), f"{one} and {other}"


def test_the_tables_of_the_paper_are_complete():
    rows = [row for stem, row in ROWS if stem != "defcn"]
    tables = collections.Counter(row.split(".")[0] for row in rows if not row.endswith("_o2m"))
    assert {table: tables[table] for table in sorted(tables) if table.startswith("table")} == {
        "table1": 11,
        "table2": 4,
        "table3": 2,
        "table4": 4,
        "table5": 6,
        "table6": 4,
        "table7": 3,
        "table8": 8,
        "table9": 4,
    }
    with_nms = collections.Counter(row.split(".")[0] for row in rows if row.endswith("_o2m"))
    assert with_nms == {table: tables[table] for table in ("table2", "table4", "table5", "table6", "table7")}
    for stem in STEMS:
        for name, row in load_recipe(stem).rows.items():
            assert bool(row.reported) != name.startswith(("schedule.", "text.", "base.")), name


@pytest.mark.parametrize("stem,row", ROWS)
def test_every_row_is_built_or_refused_in_one_line(stem, row):
    recipe = load_recipe(stem, row=row)
    if recipe.model.model_extra["backbone"]["name"].endswith("_dcn"):
        with pytest.raises(UserError, match="no backbone '[a-z0-9_]*_dcn'; there are resnet18") as refusal:
            build_detector(recipe.model.model_dump(exclude={"num_classes"}), 80)
        assert "\n" not in str(refusal.value)
        return
    if recipe.model == load_recipe(stem).model and row != next(iter(recipe.rows)):
        return  # the same model under another schedule, or again
    small = load_recipe(stem, row=row, overrides=TINY)
    for stage in stage_recipes(small):
        build_detector(stage.model.model_dump(exclude={"num_classes"}), 3)

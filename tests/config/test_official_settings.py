"""Recipe rows against the effective settings of the published configurations, key by key.

What differs on purpose stands in the table of docs/settings_audit.md, and nothing else does.
"""

import fnmatch
import functools
import json
import pathlib
from typing import NamedTuple

import keras
import pytest
from support.golden import DIRECTORY, HERE
from support.official_settings import Row, compared_pairs, configurations, equal

from kgarden.config.loading import load_recipe

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "settings_audit.md"
CONFIGURATIONS = configurations(DIRECTORY) or configurations(HERE)
pytestmark = pytest.mark.slow if keras.backend.backend() == "jax" else []
COMPARISONS = [
    pytest.param(configuration, *row, id=f"{configuration}-{row[0]}-{row[1]}")
    for configuration in CONFIGURATIONS
    for row in configuration.rows
]


class Line(NamedTuple):
    """A line of the document's table; rows and keys may have `*`, a value may be `*`."""

    rows: str
    key: str
    theirs: str
    ours: str

    def concerns(self, stem, row, found):
        """Whether it is about this key of this row."""
        match = fnmatch.fnmatchcase
        return match(f"{stem} {row}", self.rows) and match(found.key, self.key)

    def is_of(self, stem, row, found):
        """Whether it names this difference."""
        return (
            self.concerns(stem, row, found)
            and is_value(self.theirs, found.theirs)
            and is_value(self.ours, found.ours)
        )


def is_value(written, value):
    return written == "*" or equal(json.loads(written), value)


@functools.cache
def lines():
    """The document's table."""
    found = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("`"):
            found.append(Line(*(cell.strip("`") for cell in cells[:4])))
    return found


@functools.cache
def compared(name, stem, row, pattern):
    [configuration] = [one for one in CONFIGURATIONS if one.name == name and (stem, row, pattern) in one.rows]
    return compared_pairs(configuration, stem, row, pattern)


def all_pairs():
    """(recipe, row, pair) of everything that is compared."""
    for configuration in CONFIGURATIONS:
        for stem, row, pattern in configuration.rows:
            pairs, _ = compared(configuration.name, stem, row, pattern)
            yield from ((stem, row, pair) for pair in pairs)


@pytest.mark.parametrize("configuration, stem, row, pattern", COMPARISONS)
def test_a_row_has_the_published_settings(configuration, stem, row, pattern):
    pairs, others = compared(configuration.name, stem, row, pattern)
    assert {pair.key for pair in pairs} | others.keys() == configuration.values.keys()
    assert all(others.values()) and len(pairs) > (60 if pattern == ".*" else 20)
    unexplained = [
        f"{found.key}: {configuration} has {found.theirs}, {stem} {row} has {found.ours}"
        for found in pairs
        if not equal(found.theirs, found.ours) and not any(line.is_of(stem, row, found) for line in lines())
    ]
    assert not unexplained, "\n".join(unexplained)


def test_every_line_of_the_document_is_a_difference():
    table, found = lines(), list(all_pairs())
    assert len(table) == len(set(table)) > 10
    concerned = [line for line in table if any(line.concerns(*one) for one in found)]
    differences = [one for one in found if not equal(one[2].theirs, one[2].ours)]
    unused = [line for line in concerned if not any(line.is_of(*one) for one in differences)]
    assert concerned and not unused, "\n".join(map(str, unused))
    assert concerned == table or CONFIGURATIONS != configurations(HERE)


def test_every_configuration_is_compared():
    assert all(configuration.rows for configuration in CONFIGURATIONS)
    if CONFIGURATIONS == configurations(HERE):
        assert len(CONFIGURATIONS) == 52 and sum(1 for _ in all_pairs()) > 6000


def test_a_row_of_another_configuration_differs():
    [longer] = [one for one in configurations(HERE) if one.name.endswith("mask_rcnn_R_50_FPN_3x")]
    pairs, _ = compared_pairs(longer, "mask_rcnn", "detectron2.r50_1x")
    differing = {pair.key for pair in pairs if not equal(pair.theirs, pair.ours)}
    late = {f"learning rate at step {step}" for step in (209_999, 210_000, 249_999)}
    assert differing == {"SOLVER.MAX_ITER", "SOLVER.STEPS", "INPUT.MASK_FORMAT"} | late


def test_rows_of_double_head_differ_in_their_models_alone():
    """The release has one configuration for all of them; `schedule.2x` is the paper's."""
    recipe = load_recipe("double_head")
    trained = [row for row, one in recipe.rows.items() if not (one.evaluates or one.recipe)]
    for row in set(trained) - {"schedule.2x"}:
        found = dict(load_recipe("double_head", row=row))
        assert found | {"model": recipe.model, "rows": recipe.rows} == dict(recipe), row


def test_effective_settings_are_those_in_force():
    """A default of the builder, one of the head, one of its base class, one that the row sets."""
    row = Row("defcn", "fcos")
    assert row["model.selection.iou"] == 0.6 and row["model.dense_head.prior"] == 0.01
    assert row["model.dense_head.rank_by"] == "class" and row["model.dense_head.least_weight"] == 1.0
    assert Row("defcn", "poto")["model.dense_head.rank_by"] == "score"

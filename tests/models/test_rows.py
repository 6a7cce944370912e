"""The rows of the papers' tables: complete, each one a system of its own, each one built or refused."""

import collections
import functools
import itertools
import json

import keras
import numpy as np
import pytest
from support.marks import slow_on_jax
from support.small_backbone import RESNET10
from support.unfilled import unfilled

from kgarden.config.loading import load_recipe, stage_recipes
from kgarden.errors import UserError
from kgarden.models import build_detector

STEMS = ("fcos_pss", "atss_pss", "defcn", "condinst", "condinst_pss")
OTHERS = (
    "fcos",
    "atss",
    "gfl",
    "retinanet",
    "faster_rcnn",
    "faster_rcnn_c4",
    "cascade_rcnn",
    "centernet2",
    "centernet2_lvis",
    "centernet2_objects365",
    "double_head",
    "double_head_voc07",
    "fscascade",
    "mask_rcnn",
    "tsd",
)
UNFILLED = ("centernet2_large", "centernet2_realtime")  # built in tests/weights/test_released_names.py
AT_INFERENCE = {
    "data.test_canvases",
    "data.test_long_side_px",
    "data.test_short_side_px",
    "model.proposer.test",
    "model.roi_head.fuse",
    "model.roi_head.ensemble",
    "model.roi_head.test_stage",
    "model.prediction",
    "model.roi_head.classify_with",
    "model.roi_head.regress_with",
    "model.roi_head.fusion",
}
TINY = {
    "model.backbone": RESNET10,
    "model.neck": {"channels": 32},
    "model.num_classes": 3,
}


def build_small(stem, row=None):
    without = {"model.neck"} if load_recipe(stem, row=row).model.name == "faster_rcnn_c4" else set()
    small = {key: value for key, value in TINY.items() if key not in without}
    recipe = load_recipe(stem, row=row, overrides=small)
    return build_detector(recipe.model.model_dump(exclude={"num_classes"}), 3)


loaded = functools.cache(load_recipe)


@functools.cache
def resolved(stem, row=None):
    """The recipe with a row's changes, without the rows: flat, {dotted key: value}."""
    return flat({**loaded(stem, row=row).plain(), "rows": {}})


def flat(tree, prefix=""):
    """{"model.selector.num_convs": 1, ...}; a key that holds null is a key."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differing(one, other):
    missing = object()
    return {key for key in one | other if one.get(key, missing) != other.get(key, missing)}


def is_trained(recipe, row):
    return recipe.rows[row].evaluates is None and recipe.rows[row].recipe is None


@pytest.mark.parametrize("stem", STEMS + OTHERS + UNFILLED)
def test_every_row_changes_the_resolved_recipe(stem):
    recipe = loaded(stem)
    as_it_stands = [row for row in recipe.rows if is_trained(recipe, row) and not recipe.rows[row].set]
    assert len(as_it_stands) == 1  # the row that the recipe is
    for row, settings in recipe.rows.items():
        changed = differing(resolved(stem), resolved(stem, row))
        assert bool(changed) == bool(settings.set or settings.recipe), row
        if settings.evaluates:  # another score of the same training
            other = differing(resolved(stem, settings.evaluates), resolved(stem, row))
            assert is_trained(recipe, settings.evaluates) and other <= AT_INFERENCE, row


@pytest.mark.parametrize("stem", STEMS + OTHERS + UNFILLED)
def test_no_two_trainings_are_the_same(stem):
    recipe = loaded(stem)
    trained = [row for row in recipe.rows if is_trained(recipe, row)]
    for one, other in itertools.combinations(trained, 2):
        assert differing(resolved(stem, one), resolved(stem, other)), f"{one} and {other}"


def test_the_tables_of_the_paper_are_complete():
    rows = [row for stem in ("fcos_pss", "atss_pss") for row in loaded(stem).rows]
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
        for name, row in loaded(stem).rows.items():
            assert bool(row.reported) != name.startswith(("schedule.", "text.", "base.")), name


def kind_of(model):
    """A model's settings; of Double-Head's many lambda only whether a head does one task, or both.

    And of TSD's many margins and CenterNet2's numbers of proposals none.
    """
    head = {key: value for key, value in (model.get("roi_head") or {}).items() if not key.endswith("_margin")}
    if "focus" in head:
        head["focus"] = [int(share) or share > 0 for share in head["focus"]]
    proposer = {key: value for key, value in (model.get("proposer") or {}).items() if key != "test"}
    return {**model, "roi_head": head, "proposer": proposer}


@functools.cache
def models(stem):
    """{row: settings of its model}, without the number of classes."""
    rows = loaded(stem).rows
    return {row: loaded(stem, row=row).model.model_dump(exclude={"num_classes"}) for row in rows}


@slow_on_jax
@pytest.mark.parametrize("stem", STEMS + OTHERS)
def test_every_model_of_a_row_is_built(stem):
    """On a small backbone, without values; the backbones by themselves are in the next test."""
    different = {}
    for settings in models(stem).values():
        small = {**settings, "backbone": RESNET10}
        if "neck" in settings:
            small["neck"] = {**settings["neck"], "channels": 32}
        different[json.dumps(kind_of(small), sort_keys=True)] = small
    for settings in different.values():
        assert unfilled(functools.partial(build_detector, settings, 3)).built


@slow_on_jax
def test_every_backbone_of_a_row_is_built_or_refused_in_one_line():
    settings = [model["backbone"] for stem in STEMS + OTHERS for model in models(stem).values()]
    different = {json.dumps(one, sort_keys=True): one for one in settings}
    assert len(different) > 10
    for backbone in different.values():
        build = functools.partial(build_detector, {"name": "fcos", "backbone": backbone}, 80)
        if backbone["name"].endswith("_dcn"):
            with pytest.raises(UserError, match="model.backbone.name '[a-z0-9_]*_dcn': one of") as refusal:
                build()
            assert "\n" not in str(refusal.value)
        else:
            assert unfilled(build).built


def made_of(stem, row):
    """(shapes of all weights, factors of all terms, function -> boxes and scores of two RoIs)."""
    keras.utils.set_random_seed(0)
    detector = build_small(stem, row)
    shapes = [(variable.path, tuple(variable.shape)) for variable in detector.variables]

    def answers():
        rng = np.random.default_rng(1)
        pyramid = [
            rng.normal(size=(1, 64 // s, 64 // s, 32)).astype("float32") for s in detector.neck.strides
        ]
        boxes = np.float32([[[4, 4, 40, 50], [10, 0, 60, 30]]])
        proposals, size_hw = {"boxes": boxes, "valid": np.ones((1, 2), bool)}, np.int32([[64, 64]])
        found = detector.roi_head.candidates(
            detector.roi_head(pyramid, proposals, size_hw), proposals, size_hw
        )
        return [keras.ops.convert_to_numpy(found[key]) for key in ("boxes", "scores")]

    return shapes, detector.roi_head.weights_of_terms, functools.cache(answers)


@pytest.mark.slow
def test_every_row_of_double_head_changes_what_is_built():
    """Weights, factors of the loss, or answers of the same weights; else the backbone or the training."""
    recipe, made = load_recipe("double_head"), functools.cache(functools.partial(made_of, "double_head"))
    [as_it_stands] = [row for row in recipe.rows if is_trained(recipe, row) and not recipe.rows[row].set]
    by = collections.Counter()
    for row, settings in recipe.rows.items():
        other = settings.evaluates or as_it_stands
        changed = differing(resolved("double_head", other), resolved("double_head", row))
        if not changed or settings.recipe:
            continue
        (shapes, factors, answers), (others, other_factors, other_answers) = made(row), made(other)
        if shapes != others:
            by["weights"] += 1
        elif factors != other_factors:
            by["losses"] += 1
        elif any(key.startswith("model.") and not key.startswith("model.backbone.") for key in changed):
            pairs = zip(answers(), other_answers(), strict=True)
            differ = any(np.abs(one - another).max() > 1e-3 for one, another in pairs)
            assert differ == (row != "fig8.d"), (
                row
            )  # that one names the answer that an extended model has anyway
            by["answers"] += 1
        else:
            by["backbone or training"] += 1
    assert by.keys() >= {"weights", "answers", "backbone or training"}, by


def test_two_step_training_freezes_all_but_the_branch():
    """Table 3: step one is ATSS alone, step two the branch alone."""
    steps = stage_recipes(load_recipe("atss_pss", row="table3.two_step", overrides=TINY))
    assert [step.schedule.steps for step in steps] == [36 * 7330, 12 * 7330]
    trained = []
    for step in steps:
        detector = build_detector(step.model.model_dump(exclude={"num_classes"}), 3)
        detector.freeze(step.freeze)
        trained.append({variable.path.split("/", 1)[1] for variable in detector.trainable_variables})
        of_branch = {v.path.split("/", 1)[1] for v in detector.dense_head.selector.trainable_variables}
    assert steps[0].model.model_extra["weights"] == {"class": 0.0, "rank": 0.0}
    assert of_branch and trained[1] == of_branch and not trained[0] & of_branch
    assert steps[1].model.model_extra.get("prediction", "end_to_end") == "end_to_end"

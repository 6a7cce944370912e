"""Names and shapes of torchvision's released detectors: each has a place, and each weight a name."""

import csv
import math
import pathlib

import numpy as np
import pytest
from support.unfilled import blank, unfilled
from support.variants import CLASSES, VARIANTS

from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.layers.norm import EPSILON
from kgarden.models import build_detector
from kgarden.weights.files import write_weights
from kgarden.weights.foreign import pixels_of, take_all
from kgarden.weights.projects import match_weights, project_of, weights_as
from kgarden.weights.torchvision_detectors import with_epsilon

PROJECT = "torchvision-detectors"
# Written with torchvision 0.28; names until 0.12, which released files have, by what its modules rename.
LIST = pathlib.Path(__file__).parent / "files/torchvision_detectors.tsv"
V2 = {"model.backbone.norm": "bn", "model.rpn": {"num_convs": 2}}
V2_RCNN = {**V2, "model.neck": {"norm": "bn"}, "model.roi_head": {"num_convs": 4, "num_fcs": 1, "norm": "bn"}}
V2_RETINANET = {
    "model.backbone.norm": "bn",
    "model.neck": {"top": "p6p7_of_c5", "relu_before_p7": True},
    "model.dense_head.norm": "gn",
}
MODELS = {  # recipe, what is set beside its row torchvision.r50, classes, parameters as published
    "fasterrcnn": ("faster_rcnn", {}, 90, 41_755_286),
    "maskrcnn": ("mask_rcnn", {}, 90, 44_401_393),
    "retinanet": ("retinanet", {}, 91, 34_014_999),
    "fcos": ("fcos", {}, 91, 32_269_600),
    "fasterrcnn_v2": ("faster_rcnn", V2_RCNN, 90, 43_712_278),
    "maskrcnn_v2": ("mask_rcnn", {**V2_RCNN, "model.mask_head": {"norm": "bn"}}, 90, 46_359_409),
    "retinanet_v2": ("retinanet", V2_RETINANET, 91, 38_198_935),
}


def shapes_of(model, column):
    """{name: shape} of a released file, names of one of the columns "name" and "until 0.12"."""
    with open(LIST) as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["model"] in (model, "resnet50")]
    return {
        row[column] or row["name"]: [int(side) for side in row["shape"].split("x") if side] for row in rows
    }


def test_lists_are_whole():
    """torchvision counts frozen norms as no parameters: those of all models but the second versions."""
    for model, (_, _, _, published) in MODELS.items():
        shapes = shapes_of(model, "name")
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        frozen = (
            () if model.endswith("_v2") else ("backbone.body.bn", ".bn1.", ".bn2.", ".bn3.", "downsample.1")
        )
        counted = [
            math.prod(shape)
            for name, shape in shapes.items()
            if not name.endswith(buffers) and not any(part in name for part in frozen)
        ]
        assert sum(counted) == published, model


@pytest.mark.parametrize("model", MODELS)
def test_released_names_are_matched_whole(model):
    recipe, more, classes, _ = MODELS[model]
    recipe = load_recipe(recipe, {**more, "model.num_classes": classes}, "torchvision.r50")
    detector = unfilled(lambda: build_model(recipe))
    for column in ("name",) if model.endswith("_v2") else ("name", "until 0.12"):
        state = blank(shapes_of(model, column))
        assert project_of(state) == PROJECT
        matched = match_weights(detector, state, PROJECT)
        assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
        assert all(name.endswith("num_batches_tracked") for name in matched.ignored)


FCOS = {**VARIANTS["fcos"], "dense_head": {"num_convs": 1, "scaled": False, "points": "torchvision"}}
NORMS = {
    **VARIANTS["mask_rcnn"],
    "neck": {"channels": 32, "norm": "bn"},
    "roi_head": {"width": 16, "num_samples": 32, "num_convs": 1, "num_fcs": 1, "norm": "bn"},
    "mask_head": {"width": 16, "num_convs": 1, "pool_size": 7, "norm": "bn"},
}


@pytest.mark.parametrize(
    "settings",
    [VARIANTS["mask_rcnn"], VARIANTS["retinanet"], FCOS, NORMS],
    ids=["mask", "retina", "fcos", "v2"],
)
def test_a_round_trip_changes_nothing(settings):
    detector = build_detector(settings, CLASSES)
    rng = np.random.default_rng(0)
    for variable in detector.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(variable.dtype))
    weights = weights_as(detector, PROJECT)
    assert project_of(weights) == PROJECT and "backbone.fpn.inner_blocks.0.0.weight" in weights
    matched = match_weights(detector, weights, PROJECT)
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    for variable in detector.weights:
        if variable.path in matched.values:
            np.testing.assert_array_equal(matched.values[variable.path], variable.numpy(), variable.path)


def test_frozen_norms_of_the_first_files_have_no_epsilon():
    """y = scale (x - mean) / sqrt(variance), where ours divides by the root of variance + 1e-5."""
    norm = {"running_var": [0.25, 1e-5, 0.0], "weight": [2.0, 3.0, 0.0]}
    weights = {f"backbone.body.bn1.{name}": np.float32(values) for name, values in norm.items()}
    old, new = (f"backbone.fpn.inner_blocks.0{part}.weight" for part in ("", ".0"))
    changed = with_epsilon({**weights, old: np.ones(1)})
    scale = changed["backbone.body.bn1.weight"] / np.sqrt(np.float32(norm["running_var"]) + EPSILON)
    np.testing.assert_allclose(scale, [2 / 0.5, 3 / 1e-5**0.5, 0], rtol=1e-6)
    for others in (
        {new: np.ones(1)},
        {old: np.ones(1), "head.regression_head.bbox_ctrness.bias": np.ones(1)},
    ):
        assert with_epsilon({**weights, **others})["backbone.body.bn1.weight"].tolist() == norm["weight"]


def test_a_model_that_computes_something_else_is_refused(tmp_path):
    detector = build_detector({**VARIANTS["faster_rcnn"], "convention": "torchvision"}, CLASSES)
    weights = weights_as(detector, PROJECT)
    write_weights(tmp_path / "a.pth", weights)
    assert pixels_of(tmp_path / "a.pth") == "torchvision"
    take_all(detector, tmp_path / "a.pth")
    for settings, message in (
        (VARIANTS["faster_rcnn"], "model.convention: torchvision"),
        (
            {
                **VARIANTS["faster_rcnn"],
                "rpn": {**VARIANTS["faster_rcnn"]["rpn"], "anchor_form": "torchvision"},
            },
            "convention",
        ),
        (VARIANTS["retinanet"], "model.dense_head.anchor_form: torchvision"),
        (VARIANTS["fcos"], "model.dense_head.points: torchvision"),
    ):
        with pytest.raises(UserError, match=f"RoIAlign of this model are not: set .*{message}"):
            take_all(build_detector(settings, CLASSES), tmp_path / "a.pth")

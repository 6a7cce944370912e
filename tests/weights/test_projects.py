"""Other projects' names: released ones are matched whole, and what is written is what was read."""

import keras
import numpy as np
import pytest
from keras import ops
from support import real_data
from support.golden import DIRECTORY
from support.variants import CLASSES, VARIANTS

from kgarden.backbones import make_backbone
from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.weights.files import read_weights
from kgarden.weights.projects import match_weights, project_of, weights_as


def released(name):
    """The list of names and shapes of a released checkpoint, filled with random numbers."""
    rng, weights = np.random.default_rng(0), {}
    for line in (DIRECTORY / name).read_text().splitlines()[1:]:
        key, shape, _ = line.split("\t")
        weights[key] = rng.normal(size=[int(side) for side in shape.split("x")]).astype("float32")
    return weights


RELEASED = {  # recipe, row, number of classes
    "state_dict_keys_CenterNet2-F_R50_1x.tsv": ("centernet2", "table1.f_centernet", 80),
    "centernet2_r50_state_dict_keys.tsv": ("centernet2", None, 80),
    "state_dict_keys_O365_CenterNet2_R50_1x.tsv": ("centernet2", None, 365),
    "state_dict_keys_CenterNet-FPN_R50_1x.tsv": ("centernet2", "table1.centernet", 80),
}


@pytest.mark.parametrize(
    "name",
    [
        name if not number else pytest.param(name, marks=pytest.mark.slow)
        for number, name in enumerate(RELEASED)
    ],
)
def test_released_names_are_matched_whole_and_written_again(name):
    recipe, row, classes = RELEASED[name]
    detector = build_model(load_recipe(recipe, {"model.num_classes": classes}, row))
    weights = released(name)
    assert project_of(weights) == "detectron2"
    matched = match_weights(detector, weights, "detectron2")
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    matched.assign_to(detector)
    written = weights_as(detector, "detectron2")
    assert weights.keys() - written.keys() == set(matched.ignored)
    assert written.keys() <= weights.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, weights[key], err_msg=key, strict=True)


MODELS = {
    "detectron2": (
        "faster_rcnn_c4",
        "centernet2",
        "centernet2_faster",
        "centernet",
        "faster_rcnn",
        "retinanet",
    ),
    "maskrcnn-benchmark": ("faster_rcnn", "double_head"),
    "mmdetection": ("faster_rcnn", "cascade_rcnn", "fcos", "atss", "gfl", "retinanet"),
    "tsd": ("tsd", "tsd_cascade"),
    "cvpods": ("defcn",),
    "adelaidet": ("fcos",),
}


@pytest.mark.parametrize(
    "project, model", [(project, model) for project, models in MODELS.items() for model in models]
)
def test_a_round_trip_changes_nothing(project, model):
    detector = build_detector(VARIANTS[model], CLASSES)
    rng = np.random.default_rng(0)
    for variable in detector.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(variable.dtype))
    weights = weights_as(detector, project)
    assert project_of(weights) == project
    matched = match_weights(detector, weights, project)
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    for variable in detector.weights:
        if variable.path in matched.values:
            np.testing.assert_array_equal(
                matched.values[variable.path], ops.convert_to_numpy(variable), err_msg=variable.path
            )


def test_a_backbone_without_a_pyramid_has_detectron2s_name_for_it():
    c4, fpn = (
        weights_as(build_detector(VARIANTS[name], CLASSES), "detectron2")
        for name in ("faster_rcnn_c4", "faster_rcnn")
    )
    assert "backbone.res2.0.conv1.weight" in c4 and "roi_heads.res5.0.conv1.weight" in c4
    assert "backbone.bottom_up.res2.0.conv1.weight" in fpn


class Trunk:
    """A detector as far as tables look at it: a backbone."""

    def __init__(self, **backbone):
        self.backbone = make_backbone(backbone)
        self.backbone.build((None, None, None, 3))
        self.weights, self.neck = self.backbone.weights, keras.layers.Identity()


@pytest.fixture(scope="module")
def mobilenet():
    return Trunk(name="mobilenet_v2", norm="bn")


@pytest.mark.parametrize("project", ["torchvision", "timm"])
def test_classifiers_are_backbones(mobilenet, project):
    weights = weights_as(mobilenet, project)
    assert project_of(weights) == project
    matched = match_weights(mobilenet, weights, project)
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])


def test_torchvisions_own_file_fits_whole(mobilenet):
    path = real_data.weights("mobilenet_v2-b0353104.pth")
    weights = read_weights(path)
    assert project_of(weights) == "torchvision"
    matched = match_weights(mobilenet, weights, "torchvision")
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    left_out = {name.rsplit(".", 1)[0] for name in matched.ignored if not name.endswith("tracked")}
    assert left_out == {"classifier.1", "features.18.0", "features.18.1"}


def test_what_shapes_cannot_tell_is_checked():
    narrow = {"stem_channels": 8, "res2_channels": 16, "width_per_group": 4}
    with pytest.raises(UserError, match="stride of a stage in the 3x3 .*: set .*stride_in_1x1: false"):
        match_weights(Trunk(name="resnet50", stride_in_1x1=True, **narrow), {}, "torchvision")
    narrow = {"width_per_split": 2, "res2_channels": 16}
    with pytest.raises(UserError, match="timm's Res2Net: set model.backbone.pool_at_stride_1: true"):
        match_weights(Trunk(name="res2net50", **narrow), {}, "timm")

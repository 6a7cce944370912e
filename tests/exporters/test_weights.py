"""`kgarden convert`: weights to another project's file and back, and what is refused."""

import numpy as np
import pytest
from keras import ops

from kgarden.build import build_model, start_from
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.exporters.weights import convert_weights
from kgarden.training.checkpoint import save_weights
from kgarden.weights.files import read_weights, write_weights
from kgarden.weights.projects import weights_as

TINY = {
    "model.num_classes": 3,
    "model.backbone.stem_channels": 8,
    "model.backbone.res2_channels": 8,
    "model.neck.channels": 32,
    "model.roi_head.width": 16,
    "seed": 1,
}


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("quickstart", TINY)


@pytest.fixture(scope="module")
def detector(recipe):
    """A built model whose weights are nobody's initial values."""
    model = build_model(recipe)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(variable.dtype))
    return model


def test_there_and_back_again(tmp_path, recipe, detector):
    ours, theirs, again = (
        tmp_path / name for name in ("a.weights.h5", "folder/b.pth", "folder/c.weights.h5")
    )
    save_weights(detector, ours)
    report = []
    convert_weights(recipe, ours, theirs, names="detectron2", say=report.append)
    assert "backbone.bottom_up.res2.0.conv1.weight" in read_weights(theirs) and report == []
    convert_weights(recipe, theirs, again, say=report.append)
    count = len(read_weights(theirs))
    assert report == [f"{theirs}: {count} of {count} tensors taken, names of detectron2"]
    fresh = build_model(recipe)
    start_from(fresh, again)
    for variable, expected in zip(fresh.weights, detector.weights, strict=True):
        if variable.path != "centernet2/step":
            np.testing.assert_array_equal(ops.convert_to_numpy(variable), ops.convert_to_numpy(expected))


def test_what_a_file_lacks_or_has_too_much_is_named(tmp_path, recipe, detector):
    weights = weights_as(detector, "detectron2")
    lateral = weights.pop("backbone.fpn_lateral4.weight")
    weights["pixel_mean"] = np.zeros((3, 1, 1), "float32")
    report, path, target = [], tmp_path / "a.pth", tmp_path / "a.weights.h5"
    write_weights(path, weights)
    convert_weights(recipe, path, target, say=report.append)
    assert report[1:] == [
        "left out, without a counterpart here: pixel_mean",
        "keep their initial values: neck/lateral4",
    ]
    write_weights(path, {**weights, "backbone.fpn_lateral4.weight": lateral[:5]})
    with pytest.raises(
        UserError, match=r"1 of \d+ tensors do not fit this model, first: backbone.fpn_lateral4"
    ):
        convert_weights(recipe, path, tmp_path / "b.weights.h5")
    write_weights(path, {**weights, "backbone.bottom_up.res7.weight": lateral})
    with pytest.raises(
        UserError, match="first: backbone.bottom_up.res7.weight has no counterpart in this model"
    ):
        convert_weights(recipe, path, tmp_path / "b.weights.h5")
    with pytest.raises(UserError, match="a.weights.h5 exists; give another file"):
        convert_weights(recipe, path, target)


@pytest.mark.parametrize(
    "target, options, message",
    [
        ("a.pth", {}, "give --names, whose names to write: one of adelaidet, cvpods, detectron2"),
        ("a.pth", {"names": "caffe"}, "give --names"),
        ("a.onnx", {"names": "detectron2"}, "are written as .pth, .pt or .safetensors"),
        ("a.pth", {"names": "mmdetection"}, "mmdetection has no counterpart of this model"),
    ],
)
def test_other_targets_are_refused(tmp_path, recipe, detector, target, options, message):
    ours = tmp_path / "a.weights.h5"
    save_weights(detector, ours)
    with pytest.raises(UserError, match=message):
        convert_weights(recipe, ours, tmp_path / target, **options)


def test_the_number_of_classes_is_asked_for(tmp_path):
    with pytest.raises(UserError, match="no model.num_classes; give --classes"):
        convert_weights(load_recipe("quickstart"), tmp_path / "a.pth", tmp_path / "a.weights.h5")


def test_weights_of_ours_must_fit_whole(tmp_path, detector):
    """No layer of the file that is written begins at random without a word."""
    save_weights(detector, tmp_path / "a.weights.h5")
    other = load_recipe("quickstart", {**TINY, "model.num_classes": 4})
    with pytest.raises(UserError, match="not those of this model: .*box_head/classes does not fit"):
        convert_weights(other, tmp_path / "a.weights.h5", tmp_path / "b.pth", names="detectron2")
    assert not (tmp_path / "b.pth").exists()

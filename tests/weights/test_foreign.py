"""Initial weights of other projects: what fits is taken, what does not is named, pixels come along."""

import hashlib
import importlib.machinery
import sys
import types

import numpy as np
import pytest
from keras import ops
from support.variants import CLASSES, VARIANTS

from kgarden.backbones import BACKBONES
from kgarden.config.loading import load_recipe, packaged_recipes
from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.weights import imagenet
from kgarden.weights.files import write_weights
from kgarden.weights.foreign import load_foreign, pixels_of
from kgarden.weights.init_settings import check_init, with_pixels_of_weights
from kgarden.weights.projects import weights_as


def detector_of(classes, seed):
    detector = build_detector(VARIANTS["faster_rcnn"], classes)
    rng = np.random.default_rng(seed)
    for variable in detector.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(variable.dtype))
    return detector


def numbers(detector):
    return {v.path.split("/", 1)[1]: np.array(ops.convert_to_numpy(v)) for v in detector.weights}


@pytest.fixture(scope="module")
def donor():
    return detector_of(CLASSES, 0)


@pytest.fixture(scope="module")
def path(donor, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "a.pth"
    write_weights(path, weights_as(donor, "detectron2"))
    return path


def test_heads_of_other_classes_start_anew_and_are_named(donor, path):
    detector = detector_of(CLASSES + 2, 1)
    before = numbers(detector)
    said = load_foreign(detector, path)
    after, given = numbers(detector), numbers(donor)
    anew = {
        f"roi_head/box_head/{output}/{leaf}" for output in ("classes", "boxes") for leaf in ("kernel", "bias")
    }
    count = len([name for name in after if name != "step"])
    assert said == (
        f"init: {path}: {count - 4} of {count} weights are taken, by the names of detectron2; "
        f"roi_head/box_head/classes, roi_head/box_head/boxes start anew"
    )
    for name, array in after.items():
        if name != "step":
            np.testing.assert_array_equal(array, (before if name in anew else given)[name], err_msg=name)


def test_parts_alone_are_taken(donor, path):
    detector = detector_of(CLASSES, 1)
    before = numbers(detector)
    assert load_foreign(detector, path, parts=("backbone", "neck")) is None
    after, given = numbers(detector), numbers(donor)
    for name, array in after.items():
        taken = name.startswith(("backbone/", "neck/"))
        np.testing.assert_array_equal(array, (given if taken else before)[name], err_msg=name)
    with pytest.raises(UserError, match="no part 'nose'; use some of backbone, neck, proposer, roi_head"):
        load_foreign(detector, path, parts=("nose",))


def test_a_classifier_is_a_backbone_and_its_pixels_come_along(donor, tmp_path):
    path = tmp_path / "resnet18.pth"
    weights = weights_as(donor, "torchvision")
    assert "layer1.0.conv1.weight" in weights and "fc.weight" not in weights
    write_weights(path, {**weights, "fc.weight": np.zeros((10, 64), "float32")})
    detector = detector_of(CLASSES, 1)
    said = load_foreign(detector, path)
    assert "by the names of torchvision; neck/" in said and said.endswith("more start anew")
    for one, two in zip(detector.backbone.weights, donor.backbone.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(two))

    assert pixels_of(path) == "torchvision"
    recipe = load_recipe("faster_rcnn", {"init.weights": str(path), "model.pixels": None})
    assert with_pixels_of_weights(recipe).model.model_extra["pixels"] == "torchvision"
    with pytest.raises(
        UserError, match="expects pixels of torchvision, model.pixels is msra; set model.pixels"
    ):
        with_pixels_of_weights(load_recipe("faster_rcnn", {"init.weights": str(path)}))


@pytest.mark.parametrize(
    "mean, order", [([103.5, 116.25, 123.75], "bgr"), ([123.75, 116.25, 103.5], "rgb"), ([127.5] * 3, None)]
)
def test_pixels_of_a_file_that_holds_them(tmp_path, donor, mean, order):
    """The mean of ImageNet is brightest in red; where it does not tell, nothing is known of the order."""
    weights = weights_as(donor, "detectron2")
    weights |= {"pixel_mean": np.float32(mean).reshape(3, 1, 1), "pixel_std": np.ones((3, 1, 1), "float32")}
    write_weights(tmp_path / "a.pth", weights)
    expected = {"mean": mean, "std": [1.0, 1.0, 1.0], "order": order}
    assert pixels_of(tmp_path / "a.pth") == (expected if order else None)


def test_another_backbone_is_refused(tmp_path, donor):
    weights = weights_as(donor, "detectron2")
    lost = weights.pop("backbone.bottom_up.res3.0.conv1.weight")
    write_weights(tmp_path / "a.pth", weights)
    with pytest.raises(
        UserError, match="does not fit the backbone of this model: .*res3_0/conv1/kernel is not in it"
    ):
        load_foreign(detector_of(CLASSES, 1), tmp_path / "a.pth")
    write_weights(tmp_path / "b.pth", {**weights, "backbone.bottom_up.res3.0.conv1.weight": lost[:3]})
    with pytest.raises(
        UserError, match="backbone of this model: backbone.bottom_up.res3.0.conv1.weight has shape"
    ):
        load_foreign(detector_of(CLASSES, 1), tmp_path / "b.pth")


# --- ImageNet -----------------------------------------------------------------------------------------------


def test_imagenet_weights_are_found_in_a_cache_and_checked(tmp_path, monkeypatch):
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = b"weights"
    name = f"resnet50-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(imagenet.FILES, "resnet50", "https://a.example/" + name)
    (folder / name).write_bytes(content)
    assert imagenet.imagenet_file("resnet50") == folder / name
    (folder / name).write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged: its SHA-256 does not begin with"):
        imagenet.imagenet_file("resnet50")


def test_without_a_network_one_line_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(imagenet.FILES, "resnet50", "http://127.0.0.1:9/resnet50-0676ba61.pth")
    recipe = load_recipe("faster_rcnn", {"init.weights": "imagenet"})
    with pytest.raises(UserError, match=r"resnet50-0676ba61.pth cannot be fetched; .* put it into .*models"):
        check_init(recipe)
    with pytest.raises(UserError, match="no file is known for vgg, only for resnet18.*, dla34"):
        imagenet.imagenet_file("vgg")


def test_imagenet_weights_of_timm_come_from_the_hub(tmp_path, monkeypatch):
    """By its own library, which has a cache; without it, or without a network, one line says what to do."""
    asked = []

    def download(*names):
        asked.append(names)
        if len(asked) > 1:
            raise OSError("no network")
        return str(tmp_path / "model.safetensors")

    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = download
    hub.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert imagenet.imagenet_file("dla34") == tmp_path / "model.safetensors"
    assert asked == [("timm/dla34.in1k", "model.safetensors")]
    with pytest.raises(UserError, match=r"of timm/res2net50d.in1k on .* cannot be fetched; .* init.weights"):
        imagenet.imagenet_file("res2net50")
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kgarden\[hub\]'"):
        imagenet.imagenet_file("dla34")


def test_every_named_backbone_has_imagenet_weights():
    without = BACKBONES.keys() - imagenet.FILES.keys() - imagenet.HUB.keys()
    assert without == {"resnet10"}  # of tests/support/variants.py


def test_recipes_that_begin_with_imagenet_expect_torchvisions_weights():
    """The command at the top of a recipe runs: pixels and the stride's place are those of the file."""
    named = [
        stem for stem, path in packaged_recipes().items() if "init.weights=imagenet\n" in path.read_text()
    ]
    assert {"atss", "cascade_rcnn", "gfl", "retinanet"} <= set(named)
    for stem in named:
        model = load_recipe(stem).model.model_extra
        assert model["pixels"] == "torchvision" and not model["backbone"].get("stride_in_1x1"), stem
        assert model["backbone"]["name"] in imagenet.FILES


def test_imagenet_files_of_caffe2_fit_the_means_of_both_detectrons(tmp_path):
    """fscascade has those of the first, half a gray level apart; two levels, or RGB, are refused."""
    kernel = np.zeros((4, 4, 3, 3), "float32")
    path = tmp_path / "R-50.pth"
    write_weights(path, {f"res2_0_branch2{one}_w": kernel for one in "ab"})
    recipe = load_recipe("fscascade", {"init.weights": str(path)})
    assert with_pixels_of_weights(recipe).model.model_extra["pixels"]["mean"] == [
        102.9801,
        115.9465,
        122.7717,
    ]
    for mean, order in ([102.4, 115.2, 122.6], "bgr"), ([103.53, 116.28, 123.675], "rgb"):
        pixels = {"mean": mean, "std": [1.0, 1.0, 1.0], "order": order}
        with pytest.raises(UserError, match="expects pixels of msra"):
            with_pixels_of_weights(
                load_recipe("fscascade", {"init.weights": str(path), "model.pixels": pixels})
            )


SMALL = ("quickstart", "shapes_", "bccd_", "neu_det_", "nuts_")  # for a CPU


def test_every_small_recipe_has_a_row_from_imagenet():
    """Its file fits: torchvision's pixels, a backbone of full width; and it trains as from random weights."""
    stems = [stem for stem in packaged_recipes() if stem.startswith(SMALL)]
    assert len(stems) >= 11
    for stem in stems:
        recipe = load_recipe(stem, row="from_imagenet")
        model = recipe.model.model_extra
        assert recipe.init.weights == "imagenet" and model["pixels"] == "torchvision", stem
        assert model["backbone"].pop("name") in imagenet.FILES, stem
        assert model["backbone"] == {"norm": "bn", "freeze_at": 2}, stem
        changes = recipe.rows["from_imagenet"].set
        assert all(key == "init" or key.startswith("model.backbone") for key in changes), stem

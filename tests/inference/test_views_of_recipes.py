"""Test-time augmentation by recipe keys: sizes, canvases, what is refused, one path for files and shards."""

import json

import keras
import numpy as np
import pytest
from PIL import Image
from support.small_backbone import RESNET10

from kgarden.build import build_model, view_sizes
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.evaluation import batches_of, detect
from kgarden.inference.predictor import Predictor, inference_of, mirrored
from kgarden.inference.test_time_augmentation import TestTimeAugmentation

TINY = {
    "name": "centernet",
    "backbone": RESNET10,
    "neck": {"channels": 32},
    "dense_head": {"num_convs": 1},
    "selection": {"score_threshold": 0.0, "total": 12},
    "num_classes": 3,
}
SMALL = {
    "model": TINY,
    "data.short_side_px": 64,
    "data.long_side_px": 96,
    "data.canvases": [[64, 96], [96, 64]],
}
CATEGORIES = [{"id": n, "name": f"c{n}"} for n in (7, 2, 9)]


def recipe_of(**evaluate):
    return load_recipe(
        "quickstart", {**SMALL, **{f"evaluate.{key}": value for key, value in evaluate.items()}}
    )


# Keys.


def test_keys_and_short_forms_of_views():
    assert recipe_of().evaluate.views is None
    assert load_recipe("quickstart", {"evaluate.views.flip": True}).evaluate.views.number == 2
    recipe = recipe_of(views={"short_side_px": [48, 64, 80], "flip": True}, merge="maskrcnn_benchmark")
    assert recipe.evaluate.views.number == 6 and recipe.evaluate.merge.convention == "maskrcnn_benchmark"
    assert recipe_of(views={"short_side_px": 48}).evaluate.views.number == 1


def test_a_resolved_recipe_is_the_same_again(tmp_path):
    recipe = recipe_of(views={"short_side_px": [48, 64], "flip": True}, merge={"method": "soft_nms"})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml").evaluate == recipe.evaluate


@pytest.mark.parametrize(
    "keys,words",
    [
        ({"merge": {"iou": 0.5}}, "merge requires several views"),
        ({"views": {"short_side_px": 48}, "merge": "maskrcnn_benchmark"}, "merge requires several views"),
        ({"views": {"short_side_px": [48, 64, 48]}}, "lists a size twice"),
        ({"views": {"flpi": True}}, "did you mean 'flip'"),
        ({"views": {"flip": 1}}, "evaluate.views.flip"),
        (
            {"views": {"flip": True}, "merge": "mmdetection"},
            "must be 'detectron2', 'maskrcnn_benchmark' or 'mmdetection_1'",
        ),
        ({"views": {"flip": True}, "merge": {"iou": 1.5}}, "evaluate.merge.iou"),
        ({"views": {"flip": True}, "merge": {"method": "none"}}, "evaluate.merge.method"),
    ],
)
def test_invalid_views_are_rejected_in_one_line(keys, words):
    with pytest.raises(UserError, match=words) as caught:
        recipe_of(**keys)
    assert "\n" not in str(caught.value)


# Sizes and canvases.


def test_canvases_of_views_by_hand():
    """Those of the recipe in proportion, rounded up to 32; behind them two that hold every picture."""
    recipe = load_recipe(
        "double_head", {"evaluate.views": {"short_side_px": [800, 400, 1000], "long_side_px": 1333}}
    )
    test, small, large = view_sizes(recipe)
    assert test["canvases"] == [[800, 1088], [1088, 800], [800, 1344], [1344, 800]]
    assert small["canvases"] == [[416, 544], [544, 416], [416, 672], [672, 416], [416, 1344], [1344, 416]]
    # 1088 * 1.25 = 1360, 1344 * 1.25 = 1680
    assert large["canvases"][:3] == [[1024, 1376], [1376, 1024], [1024, 1696]]
    assert large["canvases"][-2:] == [[1024, 1344], [1344, 1024]]
    assert {one["long_side_px"] for one in (test, small, large)} == {1333}
    assert all(side % 128 == 0 for canvas in view_sizes(recipe, 128)[1]["canvases"] for side in canvas)
    assert view_sizes(recipe_of()) == view_sizes(recipe_of(views={"flip": True}))


def test_flip_keeps_the_padding_in_place():
    canvas = np.zeros((3, 5, 3), "uint8")
    canvas[:2, :3] = np.arange(1, 7).reshape(2, 3, 1)
    found = mirrored(canvas, (2, 3))[..., 0].tolist()
    assert found == [[3, 2, 1, 0, 0], [6, 5, 4, 0, 0], [0, 0, 0, 0, 0]]


# Files and shards.


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    return build_model(recipe_of(), 3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A COCO data set of noise, wide and tall, sides odd; (recipe's source, [path, ...])."""
    folder, paths = tmp_path_factory.mktemp("photos"), []
    tree = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number, (height, width) in enumerate([(75, 101), (111, 77), (61, 95)], start=1):
        cells = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype="uint8")
        image = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
        paths.append(folder / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
        tree["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        box = {"bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0, "category_id": 7}
        tree["annotations"].append({"id": number, "image_id": number, **box})
    (folder / "truth.json").write_text(json.dumps(tree))
    source = {"format": "coco", "images": str(folder), "annotations": str(folder / "truth.json")}
    return source, paths


@pytest.mark.tensorflow
@pytest.mark.parametrize("merge", [{}, {"convention": "maskrcnn_benchmark", "method": "soft_nms"}])
def test_files_and_shards_give_equal_detections(detector, photos, merge, tmp_path):
    """Two sizes and their mirrors: `kgarden predict` and `kgarden evaluate` say the same of each photo."""
    from kgarden.build import prepare_data

    source, paths = photos
    views = {"short_side_px": [64, 81], "flip": True}
    keys = {"evaluate.views": views, "evaluate.merge": merge, "evaluate.batch_size": 2, "data.val": source}
    recipe = load_recipe("quickstart", {**SMALL, **keys})
    data = prepare_data(recipe, cache=tmp_path, splits=("val",))
    model = inference_of(detector, recipe)
    assert isinstance(model, TestTimeAugmentation)
    results, ids, masked = detect(model, batches_of(data, recipe, detector), CATEGORIES)
    assert sorted(ids) == [1, 2, 3] and not masked
    predictor = Predictor(detector, recipe, CATEGORIES, batch_size=2)
    for number, found in enumerate(predictor(paths), start=1):
        height, width = np.asarray(Image.open(paths[number - 1])).shape[:2]
        assert (found["boxes"] <= [width, height, width, height]).all()
        rows = [one for one in results if one["image_id"] == number]
        assert len(rows) == found["valid"].sum() > 3
        left_top, sides = np.split(np.array([one["bbox"] for one in rows]), 2, axis=1)
        boxes = np.concatenate([left_top, left_top + sides], axis=1)
        np.testing.assert_allclose(found["boxes"][found["valid"]], boxes, atol=0.01)
        np.testing.assert_allclose(found["scores"][found["valid"]], [one["score"] for one in rows], rtol=1e-4)


@pytest.mark.tensorflow
def test_single_view_equals_plain_inference(detector, photos):
    """A lone size goes the way of a recipe without views; at the test size it is the same answer."""
    _, paths = photos
    plain = Predictor(detector, recipe_of())(paths[0])
    alone = Predictor(detector, recipe_of(views={"short_side_px": 64}))(paths[0])
    for key in plain.keys():
        np.testing.assert_array_equal(plain[key], alone[key])
    smaller = Predictor(detector, recipe_of(views={"short_side_px": 48}))
    assert not isinstance(smaller.model, TestTimeAugmentation)
    assert np.abs(smaller(paths[0])["boxes"] - plain["boxes"]).max() > 0.1
    same_size = Predictor(detector, load_recipe("quickstart", {**SMALL, "data.test_short_side_px": 48}))
    np.testing.assert_allclose(smaller(paths[2])["scores"], same_size(paths[2])["scores"], rtol=1e-3)


@pytest.mark.tensorflow
def test_flipped_image_gives_flipped_detections(detector, photos):
    """From the file on: sizes are rounded the same way, so that with flip the views are the same pictures."""
    _, paths = photos
    predictor = Predictor(detector, recipe_of(views={"short_side_px": [64, 80], "flip": True}))
    for path in paths[:2]:
        image = np.asarray(Image.open(path))
        one, two = predictor([image, np.ascontiguousarray(image[:, ::-1])])
        boxes = one["boxes"].copy()
        boxes[:, [0, 2]] = image.shape[1] - one["boxes"][:, [2, 0]]
        np.testing.assert_allclose(one["scores"], two["scores"], rtol=0.02)  # pixels are rounded to 8 bits
        np.testing.assert_allclose(boxes[0], two["boxes"][0], atol=0.5)

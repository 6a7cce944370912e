"""The pipeline with every transform on, with masks and with sampling: what holds for batches."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

tf = pytest.importorskip("tensorflow")

from support import painted_images  # noqa: E402

from kgarden.data import examples, pipeline, sources  # noqa: E402
from kgarden.data.examples import objects_of  # noqa: E402
from kgarden.errors import UserError  # noqa: E402
from tfrecords.converters import coco  # noqa: E402

SIZES = [(60, 80), (80, 60), (50, 70), (40, 100), (60, 80), (90, 70), (64, 64), (60, 80)]
OPTIONS = {"short_side_px": (40, 48), "long_side_px": 64, "canvases": [[48, 64], [64, 48]], "batch_size": 4}
EVERYTHING = [
    "random_iou_crop",
    {"mosaic": {"probability": 0.5}},
    "horizontal_flip",
    "vertical_flip",
    "color_jitter",
    "mixup",
    {"copy_paste": {"probability": 0.7}},
]
MIXED = [  # one of each kind that mixes images; the graph of everything takes twice as long to be made
    {"mosaic": {"probability": 0.5}},
    "horizontal_flip",
    "color_jitter",
    {"copy_paste": {"probability": 0.7}},
]
CROPS = ["random_crop", "large_scale_jitter", "horizontal_flip"]


def draw(folder, count=8, rare=None):
    """A COCO set: in every image a red ellipse, category 1, and a green triangle, 2, with polygons.

    The triangle is unlike its mirror images.

    Args:
        rare: images whose ellipse has category 3 instead.
    """
    (folder / "images").mkdir(parents=True)
    tree = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in (1, 2, 3)]}
    for number, (height, width) in enumerate(SIZES[:count]):
        rng = np.random.default_rng(number)
        image = Image.new("RGB", (width, height))
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        outlines = [np.stack([np.cos(turn), np.sin(turn)], axis=1), np.array([[-1.0, -1], [1, 1], [-1, 1]])]
        for category, outline in enumerate(outlines, 1):
            reach = rng.uniform(9, 16, 2)
            points = rng.uniform(reach, [width - reach[0], height - reach[1]]) + outline * reach
            color = (255, 0, 0) if category == 1 else (0, 255, 0)
            layer = Image.new("RGB", image.size)
            ImageDraw.Draw(layer).polygon([tuple(point) for point in points], fill=color)
            image = Image.fromarray(np.maximum(image, layer))
            low, high = points.min(axis=0), points.max(axis=0)
            is_rare = rare is not None and number in rare and category == 1
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": 3 if is_rare else category,
                    "bbox": [*low, *(high - low)],
                    "segmentation": [points.ravel().tolist()],
                    "iscrowd": 0,
                }
            )
        image.save(folder / f"images/{number}.png")
        name = {"file_name": f"{number}.png", "width": width, "height": height}
        tree["images"].append({"id": number + 1, **name})
    (folder / "a.json").write_text(json.dumps(tree))
    coco.build(folder / "to", images=folder / "images", annotations=folder / "a.json", shards=2)
    return sources.open_dataset(folder / "to")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("drawn") / "set")


def batches_of(datasets, count, **options):
    batches = pipeline.train_batches(datasets, **{**OPTIONS, "max_objects": 12, **options})
    return joined(batches.take(count))


def joined(batches):
    return [{k: v.numpy() for part in batch for k, v in part.items()} for batch in batches]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.fixture(scope="module")
def stream(drawn):
    return batches_of([drawn], 24, augment=MIXED, masks=True, parallel=1)


@pytest.fixture(scope="module")
def crops(drawn):
    return batches_of([drawn], 12, augment=CROPS, masks=True)


def test_mixed_images_resume_exactly_for_any_number_of_threads(drawn, stream):
    later = batches_of([drawn], 11, augment=MIXED, masks=True, start_step=13, parallel=8)
    assert_equal(later, stream[13:])


@pytest.mark.slow
def test_full_augmentation_resumes_exactly_for_any_number_of_threads(drawn):
    whole = batches_of([drawn], 24, augment=EVERYTHING, masks=True, parallel=1)
    later = batches_of([drawn], 11, augment=EVERYTHING, masks=True, start_step=13, parallel=8)
    assert_equal(later, whole[13:])


def test_caches_and_seeds(drawn, crops):
    for cache in ("encoded", "decoded"):
        assert_equal(batches_of([drawn], 6, augment=CROPS, masks=True, cache=cache), crops[:6])
    other = batches_of([drawn], 2, augment=CROPS, masks=True, seed=1)
    assert (other[0]["size_hw"] != crops[0]["size_hw"]).any()


def test_batches_keep_their_form(stream):
    canvases, labels = set(), set()
    for batch in stream:
        canvases.add(batch["images"].shape[1:3])
        labels |= set(batch["labels"].ravel().tolist())
        assert batch["masks"].shape == (4, 12, 112, 112) and batch["masks"].dtype == bool
        for image, (height, width) in zip(batch["images"], batch["size_hw"], strict=True):
            assert 0 < height <= image.shape[0] and 0 < width <= image.shape[1]
            assert not image[height:].any() and not image[:, width:].any()
        none = batch["labels"] < 0
        assert not batch["boxes"][none].any() and not batch["masks"][none].any()
        side = np.tile(batch["size_hw"][:, ::-1], 2)[:, None]
        assert (batch["boxes"] >= 0).all() and (batch["boxes"] <= side).all()
    assert canvases == {(48, 64), (64, 48)} and labels == {-1, 0, 1}


def test_masks_follow_the_pixels(drawn, crops):
    check_masks(crops, least=25)
    flips = ["horizontal_flip", "vertical_flip"]
    check_masks(batches_of([drawn], 12, augment=flips, masks=True), least=25)


def test_masks_of_validation_follow_the_pixels(drawn):
    size = {"short_side_px": 48, "long_side_px": 64, "batch_size": 4}
    check_masks(joined(pipeline.val_batches([drawn], **size, max_objects=12, masks=True)), least=12)


def check_masks(batches, least):
    """Red is class 0, green class 1; both are as bright as can be."""
    ious = []
    for batch in batches:
        for image, size_hw, boxes, labels, masks in zip(
            *(batch[key] for key in ("images", "size_hw", "boxes", "labels", "masks")), strict=True
        ):
            for box, label, bits in zip(boxes, labels, masks, strict=True):
                if label >= 0 and (box[2:] - box[:2]).min() > 12:
                    seen = painted_images.mask_on_image(bits, box, size_hw)
                    there = image[: size_hw[0], : size_hw[1], label] > 127
                    ious.append((seen & there).sum() / (seen | there).sum())
    assert len(ious) > least
    assert np.mean(ious) > 0.88 and np.min(ious) > 0.6  # outlines are painted a pixel wider


def test_plain_path_equals_the_general_path(drawn):
    flips = ["horizontal_flip", "vertical_flip"]
    short = batches_of([drawn], 12, augment=flips)
    long = batches_of([drawn], 12, augment=[*flips, {"mixup": {"probability": 0.0}}])
    for one, other in zip(short, long, strict=True):
        np.testing.assert_allclose(one.pop("boxes"), other.pop("boxes"), atol=1e-4)
    assert_equal(short, long)


def test_mosaic_keeps_the_objects_of_four_images(drawn):
    batches = batches_of([drawn], 10, augment=["mosaic"], max_objects=5)
    counts = np.concatenate([(batch["labels"] >= 0).sum(axis=1) for batch in batches])
    assert counts.max() == 5 and counts.min() >= 1
    for batch in batches:
        assert (batch["size_hw"] == batch["images"].shape[1:3]).all()


@pytest.mark.parametrize(
    "sampling",
    [
        {"sampling": "repeat_factor", "threshold": 0.5},
        {"sampling": "class_aware"},
        {"sampling": "class_rounds"},
    ],
)
def test_rare_classes_are_oversampled_among_partners_too(tmp_path, sampling):
    """Two sets; in the second only the first image has class 3 (label 2)."""
    sets = [draw(tmp_path / "one", 4), draw(tmp_path / "two", 4, rare=[0])]
    weights = [1.0, 3.0]
    sets = [
        type(one)(one.index, one.categories, one.annotations, w) for one, w in zip(sets, weights, strict=True)
    ]
    options = {"augment": [], "canvases": [[64, 64]], **sampling}
    batches = batches_of(sets, 150, **options)
    labels = [set(row[row >= 0].tolist()) for batch in batches for row in batch["labels"]]
    rare = np.mean([2 in one for one in labels])
    # The second set gives 3/4 of the images. By hand, what part of these is its first image?
    # repeat_factor: sqrt(0.5 / 0.25) : 1 : 1 : 1. By classes: 1 + 1/4 : 1/3 + 1/4 three times.
    part = 2**0.5 / (2**0.5 + 3) if "threshold" in sampling else 1.25 / 3
    assert abs(rare - 0.75 * part) < 0.05
    assert_equal(batches_of(sets, 3, start_step=40, **options), batches[40:43])


def test_objects_are_read_from_annotations_of_any_form(tmp_path, monkeypatch):
    """As it was written, which is searched, and written otherwise, which is parsed; unknown ids are none."""
    data = draw(tmp_path / "set", 5)
    (path,) = data.annotations
    tree = json.loads(path.read_text())
    rows = {image_id: row for row, image_id in enumerate(data.index.image_id.tolist())}
    labels = {one["id"]: label for label, one in enumerate(data.categories)}
    expected = [[rows[one["image_id"]], labels[one["category_id"]]] for one in tree["annotations"]]
    with monkeypatch.context() as parsing:
        parsing.setattr(examples, "read_json", None)
        assert len(expected) > 5 and objects_of(data).tolist() == expected
    last = max(rows)
    tree["annotations"] += [{"image_id": 10**6, "category_id": 1}, {"image_id": last, "category_id": 99}]
    tree["images"][0]["file_name"] = '"image_id": 1, "category_id": 1}'
    for indent in (None, 1):
        path.write_text(json.dumps(tree, indent=indent))
        assert objects_of(data).tolist() == expected
    for text in ("", "{}", '{"annotations": [3]}', '{"annotations": [{"image_id": "a", "category_id": 1}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match="annotations.json: "):
            objects_of(data)


def test_sampling_needs_annotations(drawn):
    bare = type(drawn)(drawn.index, drawn.categories, [drawn.annotations[0].parent / "nothing.json"])
    with pytest.raises(UserError, match="nothing.json: no such file; data.sampling reads"):
        pipeline.train_batches([bare], **OPTIONS, sampling="class_aware")
    with pytest.raises(UserError, match="'often' is not one of natural"):
        pipeline.train_batches([drawn], **OPTIONS, sampling="often")

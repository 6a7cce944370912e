import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfrecords.converters import shapes

MANY = 300


@pytest.fixture(scope="module")
def drawings():
    return [shapes.draw(0, number) for number in range(MANY)]


def all_of(drawings, key):
    return np.concatenate([getattr(d, key) for d in drawings])


def test_boxes_are_the_exact_extent_of_the_masks(drawings):
    seen = 0
    for drawing in drawings:
        for box, mask in zip(drawing.boxes, drawing.masks, strict=True):
            y, x = np.nonzero(mask)
            np.testing.assert_array_equal(box, [x.min(), y.min(), x.max() + 1, y.max() + 1])
            seen += 1
    assert seen > 3 * MANY


def test_drawn_pixels_are_inside_the_mask():
    """Draw one object without noise and texture: the pixels that differ from the ground are the mask."""
    for name in shapes.NAMES:
        coverage = shapes.shape_coverage(name, 0.3, 40, 30)
        ground = np.zeros((60, 60, 3))
        shapes._paint(
            np.random.default_rng(0),
            ground,
            (10, 5, 40, 45),
            coverage=coverage,
            color=np.array([90.0, 200, 90]),
        )
        drawn = ground.any(axis=-1)
        expected = np.zeros((60, 60), bool)
        expected[5:45, 10:40] = coverage > 0
        np.testing.assert_array_equal(drawn, expected, err_msg=name)
        assert shapes.extent(drawn) == pytest.approx((10, 5, 40, 45), abs=2)


def test_pixels_under_a_mask_differ_from_the_image_without_the_object(drawings):
    """In the finished image: the mask's visible part has one colour, its rim outside another."""
    contrasts = []
    for drawing in drawings[:100]:
        covered = np.zeros(drawing.image.shape[:2], bool)
        for mask in drawing.masks[::-1]:
            visible = mask & ~covered
            rim = np.zeros_like(mask)
            rim[1:-1, 1:-1] = mask[:-2, 1:-1] | mask[2:, 1:-1] | mask[1:-1, :-2] | mask[1:-1, 2:]
            rim &= ~mask & ~covered
            covered |= mask
            contrasts.append(
                np.linalg.norm(
                    np.median(drawing.image[visible], axis=0).astype(float)
                    - np.median(drawing.image[rim], axis=0)
                )
            )
    assert np.mean(np.array(contrasts) > 40) > 0.98


def test_sizes_and_numbers(drawings):
    sides = np.diff(all_of(drawings, "boxes").reshape(-1, 2, 2), axis=1)[:, 0]
    assert sides.min() == 12 and sides.max() == round(0.6 * 192)
    assert 0.02 < (sides.min(axis=1) < 24).mean() < 0.2
    counts = np.array([len(d.boxes) for d in drawings])
    assert set(counts) == set(range(9))
    assert 0.005 < (counts == 0).mean() < 0.07
    for drawing in drawings:
        assert drawing.image.shape == (192, 256, 3) and drawing.image.dtype == np.uint8
        assert (drawing.boxes >= 0).all() and (drawing.boxes <= [256, 192, 256, 192]).all()


def test_objects_overlap_and_none_is_hidden(drawings):
    shares = []
    for drawing in drawings:
        covered = np.zeros(drawing.image.shape[:2], bool)
        for mask in drawing.masks[::-1]:
            shares.append((mask & covered).sum() / mask.sum())
            covered |= mask
    assert max(shares) <= 0.6
    assert np.mean(np.array(shares) > 0.05) > 0.1


def test_size_and_colour_are_independent_of_the_class(drawings):
    labels, boxes = all_of(drawings, "labels"), all_of(drawings, "boxes")
    counts = np.bincount(labels, minlength=6)
    assert len(counts) == len(shapes.NAMES) >= 6
    assert counts.min() > 0.75 * counts.mean()
    side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    aspect = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    for label in range(len(counts)):
        mine = labels == label
        error = 4 / np.sqrt(mine.sum())
        assert abs(side[mine].mean() - side.mean()) < error * side.std()
        assert abs(aspect[mine].mean() - aspect.mean()) < error * aspect.std()


def test_images_are_determined_by_the_seed():
    for number in (0, 3, 17):
        a, b, c = shapes.draw(5, number), shapes.draw(5, number), shapes.draw(6, number)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        assert (a.image != c.image).any()


def test_classes_are_separable_by_shape_at_24_px():
    """The mask of an object, whatever its angle, is most like a mask of its own class."""

    def masks_at(degrees):
        found = [
            (label, shapes.shape_coverage(name, np.deg2rad(angle), 24, 24) > 0)
            for label, name in enumerate(shapes.NAMES)
            for angle in degrees
        ]
        return np.array([label for label, _ in found]), np.array([mask.ravel() for _, mask in found])

    known, templates = masks_at(range(-20, 21, 5))
    labels, masks = masks_at([-18, -11, -3, 2, 8, 17])
    both, either = (masks[:, None] & templates).sum(-1), (masks[:, None] | templates).sum(-1)
    np.testing.assert_array_equal(known[(both / either).argmax(axis=1)], labels)


def crop_features(drawing):
    """Mean colour inside each true box, and its width and height."""
    rows = []
    for x0, y0, x1, y1 in drawing.boxes:
        rows.append([*drawing.image[y0:y1, x0:x1].mean(axis=(0, 1)), x1 - x0, y1 - y0])
    return np.array(rows).reshape(-1, 5)


def average_precision_50(drawings, class_scores):
    """COCO AP50 when every true box is given, with a score for every class: (N, C) per image."""
    truth, results = {"images": [], "annotations": [], "categories": []}, []
    truth["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(shapes.NAMES)]
    for number, (drawing, scores) in enumerate(zip(drawings, class_scores, strict=True), 1):
        truth["images"].append({"id": number, "width": 256, "height": 192})
        objects = zip(drawing.boxes.tolist(), drawing.labels.tolist(), scores, strict=True)
        for (x0, y0, x1, y1), label, row in objects:
            bbox = [x0, y0, x1 - x0, y1 - y0]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "bbox": bbox,
                    "category_id": label + 1,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
            results += [
                {"image_id": number, "category_id": n + 1, "bbox": bbox, "score": float(score)}
                for n, score in enumerate(row)
            ]
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    judge = COCOeval(coco, coco.loadRes(results), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return judge.stats[1]


def test_colour_and_size_do_not_predict_the_class(drawings):
    """Nearest neighbours by mean colour, width and height, given the true boxes: AP50 under 0.3."""
    templates = [shapes.draw(1, number) for number in range(MANY)]
    known, labels = np.concatenate([crop_features(d) for d in templates]), all_of(templates, "labels")
    scale = known.std(axis=0)
    nearest = []
    for drawing in drawings:
        distance = np.linalg.norm((crop_features(drawing)[:, None] - known) / scale, axis=-1)
        nearest.append(labels[np.argsort(distance, axis=1)[:, :15]])
    for neighbours in (1, 15):
        class_scores = [(one[:, :neighbours, None] == np.arange(6)).mean(axis=1) for one in nearest]
        assert average_precision_50(drawings, class_scores) < 0.3
    perfect = [np.eye(6)[d.labels] for d in drawings]
    assert average_precision_50(drawings, perfect) > 0.99  # the judge can tell


def test_data_set_is_built_in_seconds(tmp_path):
    tf = pytest.importorskip("tensorflow")
    from tfrecords.schema import parse

    started = time.monotonic()
    report = shapes.build(tmp_path / "to", count=40, seed=3)
    assert time.monotonic() - started < 10
    assert report.images == 40 and not report.faults
    files = sorted(map(str, (tmp_path / "to").glob("*.tfrecord")))
    read = {int(r["image_id"]): r for r in map(parse, tf.data.TFRecordDataset(files))}
    truth = json.loads((tmp_path / "to/annotations.json").read_text())
    assert sorted(read) == list(range(1, 41)) == [i["id"] for i in truth["images"]]
    for number, record in read.items():
        drawing = shapes.draw(3, number - 1)
        np.testing.assert_allclose(record["boxes"] * [256, 192, 256, 192], drawing.boxes, atol=1e-4)
        np.testing.assert_array_equal(record["category_ids"], drawing.labels + 1)
        with Image.open(io.BytesIO(record["encoded"].numpy())) as image:
            stored = np.asarray(image).astype(int)
        assert np.abs(stored - drawing.image).mean() < 4


def test_the_same_seed_gives_the_same_files(tmp_path):
    pytest.importorskip("tensorflow")
    digests = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        report = shapes.build(tmp_path / name / "shapes", count=6, seed=seed, shards=1)
        digests.append(report.shards[0]["sha256"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("size_hw", [(96, 96), (128, 320)])
def test_other_sizes(size_hw):
    drawings = [shapes.draw(0, number, size_hw) for number in range(30)]
    sides = np.diff(all_of(drawings, "boxes").reshape(-1, 2, 2), axis=1)[:, 0]
    assert sides.min() >= 12 and sides.max() <= round(0.6 * min(size_hw))
    assert all(d.image.shape == (*size_hw, 3) for d in drawings)

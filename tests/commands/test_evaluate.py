"""Evaluation: ids, px of the original image, COCO metrics, images without detections."""

import gc
import json
import os
import pathlib

import numpy as np
import pytest
from support.fake_detector import CATEGORIES, ground_truth, pictures
from support.fake_runs import make_run
from support.metric_tables import METRICS

from kgarden.commands.evaluate import evaluate_run
from kgarden.evaluation import detect, first_images
from kgarden.inference.postprocess import to_original
from kgarden.metrics.coco import coco_metrics
from kgarden.utils.files import write_json

pytestmark = pytest.mark.both_backends


class Scripted:
    """An InferenceModel that returns given boxes for each image, identified by its pixel value."""

    def __init__(self, boxes, labels):
        self.boxes, self.labels, self.sizes = boxes, labels, []

    def predict_on_batch(self, x):
        self.sizes.append(len(x["images"]))
        rows = x["images"][:, 0, 0, 0].astype(int)
        boxes = np.concatenate([self.boxes[rows], np.full((len(rows), 1, 4), 5.0, "float32")], axis=1)
        labels = np.concatenate([self.labels[rows], np.zeros((len(rows), 1), "int32")], axis=1)
        scores = np.tile(np.float32([[0.9, 0.8]]), (len(rows), 1))
        valid = np.tile(np.array([[True, False]]), (len(rows), 1))  # the second row is padding
        return {"boxes": boxes, "labels": labels, "scores": scores, "valid": valid, "source": labels}


def batches(count, size, scale):
    """Image n has the pixel value n; the last batch is short."""
    for start in range(0, count, size):
        rows = np.arange(start, min(start + size, count))
        images = np.broadcast_to(rows.astype("uint8")[:, None, None, None], (len(rows), 64, 96, 3))
        sizes = np.tile(np.int32([[64, 96]]), (len(rows), 1))
        yield {"images": images, "size_hw": sizes}, {"image_id": rows + 100, "original_hw": sizes * scale}


@pytest.fixture
def truth():
    _, boxes, labels = pictures(10, seed=4)
    return boxes, labels, ground_truth(boxes, labels, scale=3)


def test_ground_truth_as_detections_is_perfect(truth):
    boxes, labels, annotations = truth
    model = Scripted(boxes, labels)
    results, image_ids, _ = detect(model, batches(10, 4, 3), CATEGORIES)
    assert model.sizes == [4, 4, 4]  # the short batch was padded
    assert image_ids == list(range(100, 110)) and len(results) == 10
    for one, wanted in zip(results, annotations["annotations"], strict=True):
        assert one["image_id"] == wanted["image_id"] and one["category_id"] == wanted["category_id"]
        np.testing.assert_allclose(one["bbox"], wanted["bbox"])
    judged = coco_metrics(annotations, json.loads(json.dumps(results)), image_ids)
    assert judged["metrics"]["ap"] == judged["metrics"]["ap75"] == judged["metrics"]["ar100"] == 100.0
    assert judged["metrics"]["ap_medium"] == 100.0  # 48 x 48 px
    assert judged["metrics"]["ap_small"] is None and judged["metrics"]["ap_large"] is None
    names = {row["name"]: (row["id"], row["ap"], row["ap50"]) for row in judged["per_class"]}
    assert names == {"red": (7, 100.0, 100.0), "green": (3, 100.0, 100.0)}


def test_wrong_class_lowers_its_per_class_ap(truth):
    """All red squares are predicted as green: red has no detections, green has false positives."""
    boxes, labels, annotations = truth
    results, image_ids, _ = detect(Scripted(boxes, np.ones_like(labels)), batches(10, 4, 3), CATEGORIES)
    rows = {row["name"]: row for row in coco_metrics(annotations, results, image_ids)["per_class"]}
    assert rows["red"]["ap50"] == 0.0 and 0 < rows["green"]["ap50"] < 100


def test_shifted_boxes_fail_at_high_thresholds():
    """A shift of 3.9 px in 16: IoU 12.1 / 19.9 = 0.608 passes 0.5, 0.55 and 0.6, three of ten thresholds."""
    boxes, labels = np.tile(np.float32([16, 16, 32, 32]), (10, 1, 1)), np.zeros((10, 1), "int32")
    annotations = ground_truth(boxes, labels, scale=3)
    shifted = boxes + np.float32([3.9, 0, 3.9, 0])
    results, image_ids, _ = detect(Scripted(shifted, labels), batches(10, 4, 3), CATEGORIES)
    metrics = coco_metrics(annotations, results, image_ids)["metrics"]
    assert metrics["ap"] == pytest.approx(30.0) and (metrics["ap50"], metrics["ap75"]) == (100.0, 0.0)


def test_metrics_without_detections(truth):
    *_, annotations = truth
    judged = coco_metrics(annotations, [], list(range(100, 110)))
    assert judged["metrics"]["ap"] == 0.0 and judged["metrics"]["ar100"] == 0.0
    assert list(judged["metrics"]) == list(METRICS) and len(METRICS) == 12
    nothing = {**annotations, "annotations": []}
    assert coco_metrics(nothing, [], [100])["metrics"]["ap"] is None


def test_only_the_given_images_are_evaluated(truth):
    boxes, labels, annotations = truth
    results, image_ids, _ = detect(Scripted(boxes, labels), batches(6, 4, 3), CATEGORIES)
    assert image_ids == list(range(100, 106)) == [one["image_id"] for one in results]
    assert coco_metrics(annotations, results, image_ids)["metrics"]["ap"] == 100.0
    assert coco_metrics(annotations, results)["metrics"]["ap"] < 100.0


def test_padding_of_batches_is_ignored(truth):
    """A negative image id marks padding."""
    boxes, labels, _ = truth

    def padded():
        for x, meta in batches(10, 5, 3):
            meta["image_id"][3:] = -1
            yield x, meta

    results, image_ids, _ = detect(Scripted(boxes, labels), padded(), CATEGORIES)
    assert image_ids == [100, 101, 102, 105, 106, 107] == [one["image_id"] for one in results]
    first = list(first_images(Scripted(boxes, labels), padded(), 4))
    assert [image_id for image_id, *_ in first] == [100, 101, 102, 105]
    for image_id, x, found in first:
        assert (x["images"] == image_id - 100).all()
        np.testing.assert_array_equal(found["boxes"][0], boxes[image_id - 100, 0])


def test_boxes_in_px_of_the_original_image_by_hand():
    """A 100 x 50 image resized to 200 x 80, with a scale for each axis; one box extends beyond it."""
    found = {"boxes": np.float32([[[20, 40, 60, 100], [-4, 0, 90, 220]]]), "scores": np.float32([[1, 1]])}
    got = to_original(found, np.int32([[200, 80]]), np.int32([[100, 50]]))
    np.testing.assert_allclose(np.array(got["boxes"]), [[[12.5, 20, 37.5, 50], [0, 0, 50, 100]]])
    assert got["scores"] is found["scores"]


def test_json_files_are_written_atomically(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "b.json", {"x": object()})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}


@pytest.mark.tensorflow
@pytest.mark.slow
def test_memory_of_many_evaluations_in_one_process_is_flat(tmp_path):
    """20 calls after 3 that fill caches; with the gradients of predictions registered, each took 24 MiB."""
    run = make_run(tmp_path / "run")
    used = []
    for _ in range(23):
        evaluate_run(run)
        gc.collect()
        used.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert used[-1] - used[2] < 20 * 2**20, [one >> 20 for one in used]

"""COCO metrics: compared with pycocotools called directly, published numbers and cases by hand."""

import contextlib
import copy
import io
import json
import re

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support import real_data
from support.metric_tables import METRICS

from kgarden.errors import UserError
from kgarden.metrics.coco import IOUS, ap_by_iou, coco_metrics
from kgarden.metrics.coco_json import read_results
from kgarden.metrics.evaluation_table import EvaluationTable, complete
from kgarden.metrics.registry import HEADLINES, measure


def directly(truth_file, results, iou_type):
    """The twelve numbers of pycocotools, called directly."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        judge = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def load(path):
    return json.loads(path.read_text())


def fractions(judged):
    return np.array([judged["metrics"][name] for name in METRICS]) / 100


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_numbers_of_val2014(iou_type):
    """Three digits as published with pycocotools, six as computed by pycocotools here."""
    folder = real_data.folder("coco_samples", "cocoapi_val2014_100")
    truth = folder / "instances_val2014_100.json"
    results = load(folder / f"instances_val2014_fake{iou_type}100_results.json")
    got = fractions(coco_metrics(load(truth), results, iou_type=iou_type))
    np.testing.assert_allclose(got, directly(truth, results, iou_type), rtol=0, atol=5e-7)
    text = (folder / "val2014_fake_eval_res.txt").read_text().split(f"type={iou_type}")[1]
    published = [float(one) for one in re.findall(r"= (\d\.\d+)", text)[:12]]
    np.testing.assert_allclose(got, published, rtol=0, atol=5.01e-4)


def test_ap_at_single_thresholds_of_val2014():
    """AP at IoU 0.5 and 0.75 and the means over the ten thresholds are those of pycocotools, by size."""
    folder = real_data.folder("coco_samples", "cocoapi_val2014_100")
    truth = folder / "instances_val2014_100.json"
    results = load(folder / "instances_val2014_fakebbox100_results.json")
    ap, ap50, ap75, *of_sizes = directly(truth, results, "bbox")[:6]
    got = ap_by_iou(EvaluationTable(load(truth), results)) / 100
    assert got.shape == (10, 4) and (np.diff(got[:, 0]) <= 0).all()
    np.testing.assert_allclose(got.mean(axis=0), [ap, *of_sizes], rtol=0, atol=1e-12)
    np.testing.assert_allclose(got[[0, 5], 0], [ap50, ap75], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(ap_by_iou(EvaluationTable(load(truth), results), IOUS[[4]]), 100 * got[[4]])


def test_published_numbers_without_crowds():
    folder = real_data.folder("coco_samples", "bbox_area_no_crowd")
    results = load(folder / "sampled_bbox_results.json")["annotations"]
    got = fractions(coco_metrics(load(folder / "sampled_gts_bbox_area.json"), results))
    wanted = [0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363]
    wanted += [0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5.1e-7)


def test_numbers_of_real_detections_on_voc():
    folder = real_data.folder("voc100")
    truth = folder / "other_formats/coco_v1/instances_default.json"
    results, notes = read_results(load(folder / "detections/coco/coco_dets.json"), load(truth))
    assert len(results) == 452 and len(notes) == 2  # images and classes have other numbers there
    got = fractions(coco_metrics(load(truth), results))
    np.testing.assert_allclose(got, directly(truth, results, "bbox"), rtol=0, atol=5e-7)
    wanted = [0.3470, 0.6100, 0.3537, 0.0752, 0.3395, 0.4979, 0.3735, 0.5206, 0.5226]
    np.testing.assert_allclose(got[:9], wanted, rtol=0, atol=5.01e-5)


def test_annotation_id_0_is_an_object():
    """This file's annotation ids start at 0; as its own detections its AP is 1 (pycocotools: 0.9993)."""
    folder = real_data.folder("voc100", "detections", "coco")
    truth = load(folder / "coco_dets.json")
    before = copy.deepcopy(truth)
    assert min(one["id"] for one in truth["annotations"]) == 0
    # must not contain equal boxes with equal scores of one class: each would match the other
    assert coco_metrics(truth, truth["annotations"])["metrics"]["ap"] == pytest.approx(100.0)
    assert truth == before


def square(n, image=1, category=1, side=10.0, **more):
    box = [20.0 * n, 0.0, side, side]
    return {"image_id": image, "category_id": category, "bbox": box, **more}


def truth_of(*annotations):
    images = [{"id": n, "height": 100, "width": 400, "file_name": f"{n}.jpg"} for n in (1, 2)]
    return {
        "images": images,
        "categories": [{"id": 1, "name": "cup"}, {"id": 5, "name": "lid"}],
        "annotations": list(annotations),
    }


@pytest.mark.parametrize("ids", [(0, 1), (7, 7), (None, None), ("a", "b"), (3, 0)])
def test_ids_that_pycocotools_misinterprets(ids):
    """By hand: one of two objects found, then a wrong box: precision 1 to recall 0.5, 51 of 101 points."""
    named = [{} if one is None else {"id": one} for one in ids]
    truth = truth_of(*(square(n, **more) for n, more in enumerate(named)))
    results = [square(0, score=0.9), square(5, score=0.8)]
    assert coco_metrics(truth, results)["metrics"]["ap"] == pytest.approx(100 * 51 / 101)


def test_missing_fields_are_completed():
    """10 px squares are small; a triangle's mask has half the area of its box."""
    triangle = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 40, 0, 0, 40]]}
    filled = complete(truth_of(square(0), triangle))["annotations"]
    assert [one["area"] for one in filled] == [100, 1600]
    assert [one["iscrowd"] for one in filled] == [0, 0]
    assert [one["id"] for one in filled] == [1, 2]
    assert filled[1]["bbox"] == [0, 0, 40, 40]
    (masked,) = complete(truth_of(triangle), "segm")["annotations"]
    assert masked["area"] == pytest.approx(800, rel=0.06)  # pixels on the diagonal fall to either side
    found = coco_metrics(truth_of(square(0)), [square(0, score=0.5)])["metrics"]
    assert found["ap_small"] == 100.0 and found["ap_medium"] is None


def test_ap_at_single_thresholds_by_hand():
    """A small object found with IoU 0.8, a medium one with 0.6; no large one."""
    truth = truth_of(square(0), square(5, side=40.0))
    half = {"image_id": 1, "category_id": 1, "score": 0.9}
    results = [{**half, "bbox": [0, 0, 10, 8]}, {**half, "bbox": [100, 0, 40, 24], "score": 0.8}]
    table = EvaluationTable(truth, results)
    nan, one_of_two = np.nan, 100 * 51 / 101  # precision 1 up to recall 0.5
    wanted = {0.55: (100, 100, 100, nan), 0.65: (one_of_two, 100, 0, nan), 0.85: (0, 0, 0, nan)}
    np.testing.assert_allclose(ap_by_iou(table, list(wanted)), list(wanted.values()), rtol=0, atol=1e-9)
    of_all = ap_by_iou(table)[:, 0]  # 0.5, 0.55, ..., 0.95
    np.testing.assert_allclose(of_all[[0, 1, 3, 4, 5, 7, 8, 9]], [100] * 2 + [one_of_two] * 3 + [0] * 3)
    limited = EvaluationTable(truth, results, max_detections=1)
    np.testing.assert_allclose(ap_by_iou(limited, [0.55])[0, 0], one_of_two, rtol=0, atol=1e-9)


def test_iou_type_selects_boxes_or_masks():
    """Two disjoint triangles of the same box: equal as boxes, different as masks."""
    one = {"segmentation": [[0, 0, 40, 0, 0, 40]], "bbox": [0, 0, 40, 40]}
    other = {"segmentation": [[40, 40, 40, 0, 0, 40]], "bbox": [0, 0, 40, 40]}
    truth = truth_of({"image_id": 1, "category_id": 1, **one})
    height, width = 100, 400
    from pycocotools import mask

    (encoded,) = mask.frPyObjects(other["segmentation"], height, width)
    (right,) = mask.frPyObjects(one["segmentation"], height, width)
    result = {"image_id": 1, "category_id": 1, "score": 1.0, "bbox": [0, 0, 40, 40]}
    for shape, iou_type, ap in [(encoded, "bbox", 100), (encoded, "segm", 0), (right, "segm", 100)]:
        for name in ("coco", "voc_area"):
            judged = measure([name], truth, [{**result, "segmentation": shape}], iou_type=iou_type)
            assert judged["metrics"][HEADLINES[name]] == ap


def test_missing_masks_are_an_error():
    truth = truth_of({**square(0), "segmentation": [[0, 0, 10, 0, 0, 10]]})
    with pytest.raises(UserError, match="1 of 1 results have no usable segmentation"):
        coco_metrics(truth, [square(0, score=1.0)], iou_type="segm")
    with pytest.raises(UserError, match="1 of 1 annotations have no usable segmentation"):
        coco_metrics(truth_of(square(0)), [], iou_type="segm")
    with pytest.raises(UserError, match="use bbox or segm"):
        coco_metrics(truth, [], iou_type="keypoints")


def test_difficult_objects_count_for_coco_and_not_for_voc():
    truth = truth_of(square(0, difficult=1), square(1))
    results = [square(0, score=0.9), square(5, score=0.8), square(1, score=0.7)]
    judged = measure(["voc_area", "coco", "voc07"], truth, results)
    assert judged["headline"] == "voc_area_map"
    metrics = judged["metrics"]
    assert metrics["voc_area_map"] == metrics["voc07_map"] == 50.0  # wrong, then right
    assert metrics["ap50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101, abs=1e-4)
    cup, lid = judged["per_class"]
    assert (cup["objects"], cup["voc_area_ap"], lid["objects"], lid["voc_area_ap"]) == (2, 50.0, 0, None)


def test_results_of_unknown_images_and_classes_are_ignored():
    truth = truth_of(square(0))
    results = [square(0, score=0.5), square(0, image=9, score=0.9), square(0, category=4, score=0.9)]
    for name, headline in HEADLINES.items():
        if name == "lvis":  # which asks what is known to be absent
            truth["images"] = [{**one, "neg_category_ids": []} for one in truth["images"]]
        judged = measure([name], truth, results, image_ids=[1, 2, 9])
        assert judged["metrics"][headline] == 100.0
        assert [row["objects"] for row in judged["per_class"]] == [1, 0]


def test_unknown_metrics_are_an_error():
    with pytest.raises(UserError, match="voc12 not supported; use some of coco, voc07"):
        measure(["voc12"], truth_of(), [])

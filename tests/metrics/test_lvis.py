"""LVIS metrics: numbers of the `lvis` package on its sample annotations, and each rule by hand."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console
from support import real_data
from support.lvis_results import mask_of, perturbed
from support.metric_tables import table

from kgarden.errors import UserError
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.lvis import evaluate_lvis
from kgarden.metrics.registry import compute_metrics, measure
from kgarden.metrics.tables import evaluation_tables, summary

# In the package's order: AP, 50, 75, s, m, l, r, c, f, AR, s, m, l.
PUBLISHED = {  # by lvis 0.5.3 (np.float replaced by float) on `perturbed`
    "bbox": (
        "0.615774777 0.895218843 0.74926928 0.640783624 0.640019116 0.659686683 0.9 0.630393028 0.611229037 "
        "0.741235779 0.736106453 0.731651195 0.752162411"
    ),
    "segm": (
        "0.174601987 0.494943059 0.076271004 0.164185796 0.162040622 0.26444194 0.4 0.209371428 0.166624118 "
        "0.238110503 0.21000195 0.209804752 0.323406947"
    ),
}
BOX, OTHER, THIRD = (0, 0, 50, 50), (200, 0, 250, 50), (0, 200, 50, 250)


@pytest.fixture(scope="module")
def sample():
    truth = json.loads((real_data.folder("lvis_samples") / "lvis_val_100.json").read_text())
    return truth, perturbed(truth)


@pytest.mark.parametrize("iou_type", ["bbox", pytest.param("segm", marks=pytest.mark.slow)])
def test_equal_to_the_package(sample, iou_type):
    truth, results = sample
    if iou_type == "segm":
        results = [{**one, "segmentation": mask_of(one, truth)} for one in results]
        results = [{key: value for key, value in one.items() if key != "bbox"} for one in results]
    found = evaluate_lvis(EvaluationTable(truth, results).arrays(iou_type))
    want = [float(one) for one in PUBLISHED[iou_type].split()]
    np.testing.assert_allclose(list(found["metrics"].values()), want, rtol=0, atol=1e-8)


def test_in_evaluations(sample):
    truth, results = sample
    found = measure(["lvis", "coco"], truth, results)
    assert found["headline"] == "lvis_ap" and round(found["metrics"]["lvis_ap"], 4) == 61.5775
    assert {row["frequency"] for row in found["per_class"]} == {"r", "c", "f"}
    assert summary(found) == "LVIS AP 61.6  AP 58.0  AP50 85.2  APr 90.0  APc 63.0  APf 61.1"
    tables = evaluation_tables({**found, "detections_file": "x.json", "images": 100})
    assert [column.header for column in tables[1].columns][:2] == ["LVIS AP", "AP50"]
    for one in tables[:3]:  # nothing is cut off on a terminal of 80 columns
        assert Console(width=1000).measure(one).maximum <= 80


def known(objects, detections, absent=(), inexact=None, frequency="rcf", num_images=2):
    """A Table of three classes; absent and inexact are rows of image and class."""
    data = table(objects, detections, 3, num_images)
    area = (data.objects.boxes[:, 2:] - data.objects.boxes[:, :2]).prod(axis=1)
    rows = np.array([(*one, 0) for one in absent], int).reshape(-1, 3)
    categories = [
        {**one, **({"frequency": of} if of else {})}
        for one, of in zip(data.categories, frequency, strict=True)
    ]
    return dataclasses.replace(
        data,
        objects=dataclasses.replace(data.objects, area=area),
        categories=categories,
        verified=rows,
        not_exhaustive=None if inexact is None else np.array(inexact, int).reshape(-1, 2),
    )


def metrics(*args, **kwargs):
    return evaluate_lvis(known(*args, **kwargs))["metrics"]


WRONG_BEFORE = [(1, *BOX, 0.9, 0), (0, *BOX, 0.5, 0)]  # in image 1, where there is no object of class 0


def test_only_known_classes_of_an_image_are_judged():
    objects = [(0, *BOX, 0)]
    assert metrics(objects, WRONG_BEFORE)["ap"] == 1  # nothing is known of class 0 in image 1
    assert metrics(objects, WRONG_BEFORE, absent=[(1, 0)])["ap"] == 0.5
    assert metrics(objects, WRONG_BEFORE, absent=[(1, 1), (0, 0)])["ap"] == 1
    present = dataclasses.replace(known(objects, WRONG_BEFORE), verified=np.array([[1, 0, 1]]))
    assert (
        evaluate_lvis(present)["metrics"]["ap"] == 1
    )  # present, but not annotated: in no list of the package


def test_unmatched_detections_of_inexact_classes_are_ignored():
    objects, found = [(0, *BOX, 0)], [(0, *OTHER, 0.9, 0), (0, *BOX, 0.5, 0)]
    assert metrics(objects, found)["ap"] == 0.5
    assert metrics(objects, found, inexact=[(0, 0)])["ap"] == 1
    assert metrics(objects, found, inexact=[(1, 0), (0, 1)])["ap"] == 0.5
    assert metrics(objects, found[:1], inexact=[(0, 0)])["ap"] == 0  # and found nothing


def test_frequencies_and_classes_without_objects():
    found = metrics([(0, *BOX, 0), (0, *BOX, 1)], [(0, *BOX, 0.9, 0)])
    assert found["ap"] == 0.5 and found["ap_rare"] == 1 and found["ap_common"] == 0
    assert np.isnan(found["ap_frequent"])
    assert found["ar300"] == 0.5
    plain = metrics([(0, *BOX, 0)], [(0, *BOX, 0.9, 0)], frequency=["", "", ""])
    assert plain["ap"] == 1 and np.isnan(plain["ap_rare"])


def test_sizes_ignore_objects_and_detections_of_others():
    """An object of 50x50 (medium) and one of 20x20 (small); a wrong detection of 20x20 comes first."""
    objects = [(0, *BOX, 0), (0, 300, 300, 320, 320, 0)]
    found = [(0, 400, 0, 420, 20, 0.9, 0), (0, *BOX, 0.8, 0), (0, 300, 300, 320, 320, 0.7, 0)]
    got = metrics(objects, found)
    assert got["ap_medium"] == 1 and got["ap_small"] == 0.5 and np.isnan(got["ap_large"])
    edge = metrics([(0, 0, 0, 32, 32, 0)], [(0, 0, 0, 32, 32, 0.9, 0)])
    assert edge["ap_small"] == edge["ap_medium"] == 1  # 32^2 px^2 belongs to both


def test_objects_of_other_sizes_are_matched_last():
    """A detection fits a large object better than a medium one; as medium it is right, not ignored."""
    objects = [(0, 0, 0, 100, 100, 0), (0, 0, 0, 95, 95, 0)]
    got = metrics(objects, [(0, 0, 0, 100, 99, 0.9, 0)])
    assert got["ar300_medium"] > 0.5 and got["ar300_large"] == 1


def test_thresholds_of_iou():
    """IoU 0.5 reaches one of ten thresholds, 0.72 five."""
    half = metrics([(0, 0, 0, 50, 100, 0)], [(0, 0, 0, 50, 50, 0.9, 0)])
    assert (half["ap50"], half["ap75"], round(half["ap"], 9)) == (1, 0, 0.1)
    more = metrics([(0, 0, 0, 50, 100, 0)], [(0, 0, 0, 50, 72, 0.9, 0)])
    assert (more["ap50"], more["ap75"], round(more["ap"], 9)) == (1, 0, 0.5)


def test_the_best_300_detections_of_an_image_count():
    objects = [(0, *BOX, 0), (1, *BOX, 0)]
    wrong = [(0, *OTHER, 0.9, 1)] * 299  # of another class, of which nothing is known
    last = (0, *BOX, 0.5, 0)
    assert metrics(objects[:1], [*wrong, last])["ap"] == 1
    assert metrics(objects[:1], [last, *wrong, (0, *OTHER, 0.9, 1)])["ap"] == 0  # by score, not as listed
    both = metrics(objects, [*wrong, (0, *OTHER, 0.9, 1), last, (1, *BOX, 0.1, 0)])
    assert round(both["ap"], 3) == round(51 / 101, 3)  # image 1 has a limit of its own


def test_without_the_classes_that_are_absent():
    data = dataclasses.replace(known([(0, *BOX, 0)], []), verified=None)
    with pytest.raises(UserError, match="neg_category_ids, which the ground truth does not have"):
        evaluate_lvis(data)
    assert evaluate_lvis(known([], []))["ap"].shape == (3,)
    truth = {"images": [{"id": 1, "neg_category_ids": []}], "annotations": [], "categories": [{"id": 1}]}
    got = compute_metrics(["lvis"], EvaluationTable(truth, []))
    assert got["headline"] == "lvis_ap"
    assert got["metrics"]["lvis_ap"] is None and got["per_class"][0]["frequency"] == ""

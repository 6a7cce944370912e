"""Limits on the number of detections: objects beyond them by hand, and names of other AP than COCO's."""

import contextlib
import copy
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.metric_tables import table

from kgarden import cli
from kgarden.config.recipe import Evaluate
from kgarden.metrics.analysis import analyse, limits_of
from kgarden.metrics.arrays import COCO_MAX_DETECTIONS
from kgarden.metrics.coco import coco_metrics_of
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.explain import explain_table
from kgarden.metrics.figures import all_figures
from kgarden.metrics.limits import limit_of, limited, most_matched
from kgarden.metrics.registry import compute_metrics
from kgarden.metrics.report import evaluate_boxes
from kgarden.metrics.tables import label_of, summary

CAT, DOG = 0, 1


def box(n):
    return (20 * n, 0, 20 * n + 10, 10)


def cats(*numbers, image=0, label=CAT):
    return [(image, *box(n), label) for n in numbers]


def found(*numbers, image=0, label=CAT, first=0.9):
    """Detections in descending score; box n is object n's."""
    return [(image, *box(n), first - 0.01 * at, label) for at, n in enumerate(numbers)]


def counts(objects, detections, **limits):
    analysis = analyse(dataclasses.replace(table(objects, detections, 2), **limits))
    kinds = {kind: row["count"] for kind, row in analysis["errors"].items()}
    return kinds["missed"], kinds["beyond_limit"], analysis["limits"]["would_do"]


@pytest.mark.parametrize("objects,detections,limits,wanted", [
    # the limit is not reached: what is unmatched is missed
    (cats(0, 1, 2, 3), found(0, 1), {"max_detections": 4}, (2, 0, None, None)),
    # five found, three judged
    (cats(*range(5)), found(*range(5)), {"max_detections": 3}, (0, 2, 5, None)),
    # one found: of the other four, two could have been
    (cats(*range(5)), found(0), {"max_detections": 3}, (2, 2, 5, None)),
    # three wrong boxes first; the fourth would have matched, the other object has no box
    (cats(0, 1), found(7, 8, 9, 0), {"max_detections": 3}, (1, 1, 4, None)),
    # a detection far behind asks for more than the number of objects
    (cats(0, 1, 2), found(7, 8, 9, 0), {"max_detections": 2}, (2, 1, 4, None)),
    # the one of the late detection is one of the two that are too many
    (cats(*range(5)), found(7, 8, 9, 4), {"max_detections": 3}, (3, 2, 5, None)),
    # the order of the ground truth is no matter
    ([(n % 2, *box(n), CAT) for n in range(5)], [], {"max_detections": 2}, (4, 1, 3, None)),
    # a limit of each class and of each image of its own
    (cats(0, 1) + cats(2, 3, label=DOG) + cats(0, 1, image=1), [], {"max_detections": 2}, (6, 0, None, None)),
    # the model keeps three of an image, of all classes
    (cats(0, 1) + cats(2, 3, label=DOG) + cats(0, image=1), found(0), {"per_image": 3}, (3, 1, None, 4)),
    # crowds are no objects
    ([*cats(0, 1), (0, *box(2), CAT, 0, 0, 1)], found(0, 1), {"max_detections": 2}, (0, 0, None, None)),
])  # fmt: skip
def test_objects_beyond_a_limit_by_hand(objects, detections, limits, wanted):
    missed, beyond, would_do = counts(objects, detections, **limits)
    assert (missed, beyond, would_do["max_detections"], would_do["per_image"]) == wanted
    data = dataclasses.replace(table(objects, detections, 2), **limits)
    assert bool(limits_of(data)) == bool(beyond)
    assert limits_of(data) == analyse(data)["limits"]["sentences"]


def test_how_many_objects_could_be_matched_by_hand():
    """Three cats and two dogs in an image, a cat in the next; the crowd is none."""
    objects = [*cats(0, 1, 2), *cats(3, 4, label=DOG), *cats(0, image=1), (1, *box(2), CAT, 0, 0, 1)]
    for limits, wanted in (({}, 6), ({"max_detections": 2}, 5), ({"max_detections": 2, "per_image": 3}, 4)):
        assert most_matched(dataclasses.replace(table(objects, [], 2), **limits)) == wanted
    assert most_matched(dataclasses.replace(table([], [], 2), per_image=3)) == 0


def crowded(objects=5, **limits):
    truth, results = dataset(objects), detections_of(objects)
    return EvaluationTable(truth, results, **limits)


def dataset(objects):
    return {
        "images": [{"id": 1, "height": 20, "width": 20 * objects, "file_name": "a.jpg"}],
        "categories": [{"id": 4, "name": "cell"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 4, "bbox": [20 * n, 0, 10, 10], "area": 100}
            for n in range(objects)
        ],
    }


def detections_of(objects):
    return [
        {"image_id": 1, "category_id": 4, "bbox": [20 * n, 0, 10, 10], "score": 1 - n / 1000}
        for n in range(objects)
    ]


def test_gain_and_confusions_of_objects_beyond_the_limit():
    """150 right boxes, 100 judged: recall 2/3, AP 67 of 101 points; no object is missed, in no figure."""
    analysis = analyse(crowded(150).arrays())
    assert analysis["ap"] == pytest.approx(100 * 67 / 101)
    assert analysis["errors"]["missed"] == {"count": 0, "dap": 0.0}
    assert analysis["errors"]["beyond_limit"]["count"] == 50
    assert analysis["errors"]["beyond_limit"]["dap"] == pytest.approx(100 * 34 / 101)
    assert analysis["per_class"][0]["errors"]["beyond_limit"] == 50
    assert all(predicted is not None for _, predicted, _ in analysis["confusion"]["cells"])
    assert all(content.startswith(b"\x89PNG") for content in all_figures(analysis).values())


def test_the_sentence_says_which_number_would_do():
    evaluation = evaluate_boxes(crowded(150))
    [sentence] = evaluation["limits"]
    assert "50 objects in 1 image" in sentence and "first 100 detections" in sentence
    assert "--max-detections) 150 would do" in sentence and "ap_max150" in sentence
    assert "limits" not in evaluate_boxes(crowded(150, max_detections=150))
    two_of_three = EvaluationTable(dataset(3), detections_of(2), per_image=2)
    [sentence] = evaluate_boxes(two_of_three)["limits"]
    assert "1 object in 1 image" in sentence and "model.selection.total 3 would do" in sentence


def directly(truth, results, limits):
    """The numbers of pycocotools, called directly; its first AP knows no limit but 100."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        for one in coco.dataset["annotations"]:
            one["iscrowd"] = 0
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        judge.params.maxDets = limits
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return 100 * judge.stats


@pytest.mark.parametrize("limit", [100, 120, 300, 40])
def test_another_limit_gives_the_numbers_of_pycocotools(limit):
    random = np.random.default_rng(0)
    truth, results = dataset(150), detections_of(150)
    for one in results:
        one["bbox"] = (np.array(one["bbox"]) + random.normal(0, 0.7, 4)).tolist()
    got = coco_metrics_of(EvaluationTable(truth, results, max_detections=limit))["metrics"]
    wanted = directly(truth, results, [1, 10, limit])
    values = np.array([np.nan if value is None else value for value in got.values()])
    wanted = np.where(wanted < 0, np.nan, wanted)
    np.testing.assert_allclose(values[1:], wanted[1:], atol=1e-5)
    assert np.isnan(wanted[0]) == (limit != 100)
    if limit == 100:
        assert values[0] == pytest.approx(wanted[0])
    assert 0 < values[0] < values[1] < 100


def test_numbers_under_another_limit_have_other_names():
    judged = compute_metrics(["coco", "voc07"], crowded(5, max_detections=3))
    assert judged["headline"] == "ap_max3" and "ap" not in judged["metrics"]
    assert {"ap_max3", "ap50_max3", "ar1", "ar3", "ar_small_max3", "voc07_map"} < judged["metrics"].keys()
    assert "ar10" not in judged["metrics"] and judged["metrics"]["ar3"] == 60.0
    assert {"ap_max3", "ap50_max3", "voc07_ap"} < judged["per_class"][0].keys()
    assert compute_metrics(["coco"], crowded(5, max_detections=10))["metrics"].keys() >= {"ar1", "ar10"}
    assert compute_metrics(["voc07"], crowded(5, max_detections=3))["headline"] == "voc07_map"
    assert limited("ap", 100) == "ap" and limit_of("ap") == ("ap", None)
    assert limit_of(limited("ap_small", 300)) == ("ap_small", 300)
    names = ("ap", "ap50_max300", "ar1", "ar300", "ar_small_max300", "voc07_map")
    assert [*map(label_of, names)] == ["AP", "AP50@300", "AR 1", "AR 300", "AR small@300", "VOC07 mAP"]
    assert summary({**judged, "max_detections": 3}).startswith("AP@3 ")
    assert "AP50@3 " in summary({**judged, "max_detections": 3})


def test_the_default_is_that_of_coco():
    assert Evaluate().max_detections == COCO_MAX_DETECTIONS == 100
    assert EvaluationTable(dataset(1), []).max_detections == 100 == table([], [], 1).max_detections


def test_why_ap_is_0_says_the_limit_first():
    """200 right boxes of 20,000 objects: AP below 1, and nothing else is wrong."""
    truth, results = dataset(20_000), detections_of(200)
    [cause] = explain_table(EvaluationTable(truth, results), "ap")
    assert cause.startswith("At most 100 of 20000 objects can be matched") and "max_detections" in cause
    [cause] = explain_table(EvaluationTable(truth, results, max_detections=20_000, per_image=150), "ap")
    assert cause.startswith("At most 150 of") and "model.selection.total" in cause
    assert "At most" not in explain_table(EvaluationTable(truth, results), "voc07_map")[0]


def test_other_interpretations_are_judged_by_what_could_be_matched():
    """100 of 200 objects could be matched; read as corners, all of those would be: 100 %, not 50 %."""
    truth = dataset(200)
    corners = [
        {**one, "bbox": [one["bbox"][0], 0, one["bbox"][0] + 10, 10]} for one in detections_of(200)[100:]
    ]
    [cause] = explain_table(EvaluationTable(truth, corners), "ap")
    assert "read as x0, y0, x1, y1 in px, 100 % would be" in cause


def test_the_command_line_has_the_setting(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "truth.json").write_text(json.dumps(dataset(12)))
    (tmp_path / "found.json").write_text(json.dumps(detections_of(12)))
    arguments = ["evaluate", "found.json", "--annotations", "truth.json", "--json", "n.json"]
    assert cli.main([*arguments, "--max-detections", "8"]) == 0
    shown, numbers = capsys.readouterr().out, json.loads((tmp_path / "n.json").read_text())
    assert "AP@8" in shown and "beyond limit" in shown and "limit: 4 objects in 1 image" in shown
    assert "COCO's AP: 100" in shown.replace("\n", " ")
    assert numbers["headline"] == "ap_max8" and numbers["max_detections"] == 8
    assert numbers["metrics"]["ap_max8"] == pytest.approx(100 * 67 / 101)
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert json.loads((tmp_path / "n.json").read_text())["metrics"]["ap"] == 100.0
    assert "beyond limit" not in shown and "limit:" not in shown
    assert cli.main([*arguments, "--max-detections", "0"]) == 2

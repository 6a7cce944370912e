"""Verdicts image by image: by hand, and their counts against the error analysis."""

import numpy as np

from kgarden.metrics.analysis import analyse
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.judged import judged_images, mistakes

CATEGORIES = [{"id": 1, "name": "a"}, {"id": 5, "name": "b"}]


def entry(image, category, box, **more):
    return {"image_id": image, "category_id": category, "bbox": box, **more}


TRUTH = {
    "images": [{"id": n, "width": 100, "height": 100} for n in (3, 8)],
    "categories": CATEGORIES,
    "annotations": [
        entry(3, 1, [0, 0, 20, 20], id=1),
        entry(3, 5, [50, 50, 20, 20], id=2),
        entry(8, 1, [0, 0, 40, 40], id=3, iscrowd=1),
    ],
}
FOUND = [
    entry(3, 1, [0, 0, 20, 20], score=0.9),
    entry(3, 1, [0, 0, 20, 18], score=0.8),
    entry(3, 1, [50, 50, 20, 20], score=0.7),
    entry(3, 5, [50, 60, 20, 20], score=0.6),
    entry(3, 5, [80, 0, 10, 10], score=0.5),
    entry(8, 1, [0, 0, 20, 20], score=0.4),
]


def test_verdicts_by_hand():
    images = judged_images(EvaluationTable(TRUTH, FOUND).arrays())
    assert list(images) == [3, 8]
    verdicts = ["right", "duplicate", "class", "localisation", "background"]
    assert [one[6] for one in images[3]["detections"]] == verdicts
    assert images[3]["detections"][3] == [50.0, 60.0, 70.0, 80.0, 1, 0.6, "localisation"]
    assert images[3]["objects"] == [
        [0.0, 0.0, 20.0, 20.0, 0, False, 0.9],
        [50.0, 50.0, 70.0, 70.0, 1, False, None],
    ]
    assert [one[6] for one in images[8]["detections"]] == ["ignored"]  # in a crowd
    assert mistakes(images[3], 0.0) == 5 and mistakes(images[3], 0.7) == 3 and mistakes(images[3], 0.95) == 2
    assert mistakes(images[8], 0.0) == 0


def test_counts_are_those_of_the_analysis():
    rows = np.random.default_rng(0)
    truth = [entry(int(rows.integers(3)), int(rows.choice([1, 5])), _box(rows), id=n + 1) for n in range(30)]
    scores = rows.random(200).round(3).tolist()
    found = [
        entry(int(rows.integers(3)), int(rows.choice([1, 5])), _box(rows), score=score) for score in scores
    ]
    ground_truth = {"images": [{"id": n} for n in range(3)], "categories": CATEGORIES, "annotations": truth}
    arrays = EvaluationTable(ground_truth, found).arrays()
    analysis, images = analyse(arrays), judged_images(arrays)
    verdicts = [one[6] for image in images.values() for one in image["detections"]]
    assert len(verdicts) == 200 and verdicts.count("right") == analysis["right"] > 5
    for kind in ("localisation", "class", "duplicate", "both", "background"):
        assert verdicts.count(kind) == analysis["errors"][kind]["count"]
    matched = sum(one[6] is not None for image in images.values() for one in image["objects"])
    assert matched == analysis["right"]
    for image in images.values():  # an object has the score of the detection that matches it
        right = sorted(one[5] for one in image["detections"] if one[6] == "right")
        assert right == sorted(one[6] for one in image["objects"] if one[6] is not None)


def _box(rows):
    return [*rows.integers(0, 30, 2).tolist(), *rows.integers(10, 30, 2).tolist()]

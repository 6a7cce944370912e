import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.ops.soft_nms import soft_nms

KINDS = {"linear": "linear", "gaussian": "gaussian", "naive": "hard", "hard": "hard"}


def run(boxes, scores, count=None, **settings):
    boxes, scores = np.float32(boxes)[None], np.float32(scores)[None]
    found = soft_nms(boxes, scores, np.ones(scores.shape, bool), count or scores.shape[1], **settings)
    indices, left, valid = (ops.convert_to_numpy(one)[0] for one in found)
    return indices[valid], left[valid]


@pytest.mark.parametrize("golden", goldens("mmdet_soft_nms"), ids=str)
def test_every_case_agrees_with_the_reference(golden):
    got = {}
    for name, case in params(golden)["cases"].items():
        settings = {"kind": KINDS[case["method"]], "min_score": case.get("min_score", 1e-6)}
        settings |= {"iou_threshold": case["iou_thr"]} if "iou_thr" in case else {}
        settings |= {"sigma": case["sigma"]} if "sigma" in case else {}
        indices, scores = run(
            golden["boxes"], golden["scores"], plus_one=bool(case.get("offset")), **settings
        )
        got[f"{name}/keep"] = indices
        if f"{name}/scores" in golden:
            got[f"{name}/scores"] = scores
    assert_agrees(golden, got)


PAIR = [[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]]  # IoU 1/2 of the first two


def test_by_hand():
    indices, scores = run(PAIR, [0.9, 0.8, 0.5], iou_threshold=0.3)
    assert indices.tolist() == [0, 2, 1]
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.4])
    _, scores = run(PAIR, [0.9, 0.8, 0.5], kind="gaussian", sigma=0.5)
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.8 * np.exp(-0.5)], rtol=1e-6)
    indices, _ = run(PAIR, [0.9, 0.8, 0.5], kind="hard", iou_threshold=0.3)
    assert indices.tolist() == [0, 2]
    indices, _ = run(PAIR, [0.9, 0.8, 0.5], count=1)
    assert indices.tolist() == [0]


def test_class_wise_soft_nms_equals_one_run_per_class():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (60, 2))], axis=1)
    scores, labels = rng.uniform(0.01, 1, 60), rng.integers(0, 3, 60)
    settings = {"kind": "linear", "iou_threshold": 0.3, "min_score": 0.05}
    found = soft_nms(
        np.float32(boxes)[None],
        np.float32(scores)[None],
        np.ones((1, 60), bool),
        60,
        labels=labels[None],
        **settings,
    )
    indices, left, valid = (ops.convert_to_numpy(one)[0] for one in found)
    together = {int(row): float(score) for row, score in zip(indices[valid], left[valid], strict=True)}
    alone = {}
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        kept, after = run(boxes[rows], scores[rows], **settings)
        alone |= {int(rows[row]): float(score) for row, score in zip(kept, after, strict=True)}
    assert together == pytest.approx(alone)
    assert (np.diff(left[valid]) <= 0).all()


def test_padding_is_never_selected():
    valid = np.array([[False, True, True]])
    found = soft_nms(np.float32([PAIR]), np.float32([[0.9, 0.8, 0.5]]), valid, 5)
    indices, scores, kept = (ops.convert_to_numpy(one)[0].tolist() for one in found)
    assert indices == [1, 2, 0, 0, 0] and kept == [True, True, False, False, False]
    np.testing.assert_allclose(scores, [0.8, 0.5, 0, 0, 0])

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


def test_an_iou_at_the_threshold_decays_nothing():
    _, scores = run(PAIR, [0.9, 0.8, 0.5], iou_threshold=0.5)
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.5])
    _, scores = run(PAIR, [0.9, 0.8, 0.5], iou_threshold=0.49)
    np.testing.assert_allclose(scores, [0.9, 0.5, 0.4])


def test_a_score_of_exactly_the_least_is_kept():
    indices, _ = run(PAIR, [1.0, 0.5, 0.125], iou_threshold=0.3, min_score=0.25)  # 0.5 decays to 0.25
    assert indices.tolist() == [0, 1]


def test_settings_left_out():
    """A threshold of 0.5, a sigma of 0.5 (Bodla et al. 2017, arXiv:1704.04503) and a least score of 0.001."""
    close = [[0, 0, 10, 10], [0, 0, 10, 5.5]]  # IoU 0.55
    valid = np.ones((1, 2), bool)

    def scores(second, **settings):
        found = soft_nms(np.float32([close]), np.float32([[0.9, second]]), valid, 2, **settings)
        return ops.convert_to_numpy(found[1])[0].tolist()

    assert scores(0.8) == pytest.approx([0.9, 0.8 * 0.45])
    assert scores(0.8, kind="gaussian") == pytest.approx([0.9, 0.8 * np.exp(-(0.55**2) / 0.5)])
    assert scores(0.004) == pytest.approx([0.9, 0.004 * 0.45])
    assert scores(0.002) == pytest.approx([0.9, 0])

"""Selection by hand: thresholds and groups."""

import numpy as np
import pytest
from keras import ops

from kgarden.heads.selection import Selection


@pytest.mark.parametrize("method", ["nms", "soft_nms", "none"])
def test_a_score_at_the_threshold_is_rejected(method):
    candidates = {
        "boxes": np.float32([[[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]]),
        "scores": np.float32([[[0.25], [0.5], [0.2]]]),
    }
    found = Selection(score_threshold=0.25, total=3, method=method)(candidates)
    assert ops.convert_to_numpy(found["source"])[0].tolist() == [1, -1, -1]


def test_boxes_suppress_each_other_within_a_class_of_a_level_alone():
    """The same box four times, of two classes on two levels; one more of each loses to its twin."""
    candidates = {
        "boxes": np.zeros((1, 4, 4), "float32") + np.float32([0, 0, 9, 9]),
        "scores": np.float32([[[0.9, 0.8], [0.5, 0.4], [0.7, 0.6], [0.3, 0.2]]]),
        "levels": [(1, 2), (1, 2)],
    }
    found = Selection(class_wise=True, level_wise=True, total=8)(candidates)
    scores, labels = (ops.convert_to_numpy(found[key])[0] for key in ("scores", "labels"))
    assert scores[scores > 0].tolist() == np.float32([0.9, 0.8, 0.7, 0.6]).tolist()
    assert labels.tolist() == [0, 1, 0, 1, -1, -1, -1, -1]


@pytest.mark.parametrize("by_ranking", [False, True])
def test_the_pool_is_the_best_of_all_pairs_whatever_a_level_has(by_ranking, monkeypatch):
    """Two levels of 6 and 3 rows, 5 classes, scores with ties; NumPy sorts all of them."""
    rng = np.random.default_rng(0)
    boxes, scores = rng.uniform(0, 9, (1, 9, 4)).astype("float32"), rng.integers(1, 9, (1, 9, 5)) / 10
    candidates = {"boxes": boxes, "scores": scores.astype("float32"), "levels": [(2, 3), (1, 3)]}
    if by_ranking:
        candidates["ranking_scores"] = 1 - candidates["scores"]  # of the levels, which keep all here
    picked = Selection(per_level=None, pool=12).pick(candidates)
    got = ops.convert_to_numpy(picked["source"]) * 5 + ops.convert_to_numpy(picked["labels"])
    want = np.argsort(-scores.reshape(-1), kind="stable")[:12]
    assert sorted(scores.reshape(-1)[got[0]]) == sorted(scores.reshape(-1)[want])
    if not by_ranking:
        np.testing.assert_array_equal(got[0], want)
        sorted_pairs = []
        top_k = ops.top_k
        monkeypatch.setattr(ops, "top_k", lambda x, k: sorted_pairs.append(k) or top_k(x, k))
        del candidates["levels"]
        assert Selection(per_level=None, pool=12).pick(candidates)["scores"].shape == (1, 12)
        assert sorted_pairs == [12]  # of 45: with 1,203 classes sorting all takes most of the time

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

"""What assigners of dense heads share, by hand."""

import numpy as np
from keras import ops

from kgarden.targets.assign_result import BACKGROUND, IGNORED, smallest, truth_at, under_crowd

numpy = ops.convert_to_numpy


def test_truth_of_points_without_an_object():
    y = {"boxes": np.float32([[[0, 0, 4, 4], [1, 1, 9, 9]]]), "labels": np.int32([[5, 7]])}
    boxes, labels = truth_at(np.int32([[1, BACKGROUND, IGNORED, 0]]), y)
    assert numpy(labels).tolist() == [[7, BACKGROUND, IGNORED, 5]]
    assert numpy(boxes)[0, [0, 3]].tolist() == [[1, 1, 9, 9], [0, 0, 4, 4]]


def test_an_anchor_of_which_a_crowd_has_exactly_the_share_is_not_masked():
    y = {"boxes": np.float32([[[0, 0, 10, 5], [0, 0, 10, 10]]]), "crowd": np.array([[True, False]])}
    anchors = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    assert numpy(under_crowd(anchors, y, 0.5)).tolist() == [[False, True, False]]


def test_ties_go_to_the_lowest_row():
    possible = np.array([[[True, True, False], [True, False, False], [True, True, False]]])
    cost = np.float32([[[2.0], [1.0], [1.0]]])
    assert numpy(smallest(possible, cost)).tolist() == [[1, 2, BACKGROUND]]

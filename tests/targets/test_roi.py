"""Labels of RoIs by hand."""

import numpy as np
from keras import ops
from support.gradients import value_and_gradients

from kgarden.targets.roi import RoISampling, are_objects, label_rois, sample_rois

numpy = ops.convert_to_numpy


def test_the_best_roi_of_an_object_is_background_below_the_threshold():
    """No low-quality matches in the second stage, unlike RPN's; the threshold itself is foreground."""
    boxes = np.float32([[[0, 0, 10, 3], [40, 0, 50, 5], [40, 0, 50, 4.9], [40, 0, 50, 10]]])
    y = {"boxes": np.float32([[[0, 0, 10, 10], [40, 0, 50, 10]]]), "labels": np.int32([[1, 2]])}
    y["crowd"] = np.zeros((1, 2), bool)
    labels, gt_boxes = label_rois(boxes, np.array([[True, True, True, False]]), y, iou=0.5, num_classes=3)
    assert numpy(labels).tolist() == [[3, 2, 3, -1]]
    assert numpy(gt_boxes)[0, 1].tolist() == [40, 0, 50, 10]


def test_objects_are_found_among_rois_and_padding_is_none():
    y = {"boxes": np.float32([[[1, 1, 5, 5], [0, 0, 0, 0]]]), "labels": np.int32([[1, -1]])}
    y["crowd"] = np.zeros((1, 2), bool)
    rois = np.float32([[[0, 0, 0, 0], [1, 1, 5, 5], [1, 1, 5, 6]]])
    assert numpy(are_objects(rois, y)).tolist() == [[False, True, False]]


def test_rois_have_no_gradient():
    y = {"boxes": np.float32([[[1, 1, 5, 5]]]), "labels": np.int32([[1]]), "crowd": np.zeros((1, 1), bool)}
    random = np.float32([[0.3, 0.2, 0.1]])

    def total(boxes):
        proposals = {"boxes": boxes, "valid": np.ones((1, 2), bool)}
        found = sample_rois(proposals, y, RoISampling(num_samples=3), lambda n: random[:, :n])
        return ops.sum(found["boxes"]) + 0.0 * ops.sum(boxes)

    value, (gradient,) = value_and_gradients(total, [np.float32([[[1, 1, 5, 6], [9, 9, 20, 20]]])])
    assert value > 0 and not np.any(gradient)

"""Two-stage detectors against the reference files `whole_*`: proposals, RoI outputs and whole detections.

Each function returns {name of a file's array: array in our layout}, ready for `assert_agrees`.
"""

import dataclasses

import numpy as np
from keras import ops
from support.whole_models import detections_of, fast, named_detections

from kgarden.structures import BOXES, SCORES, VALID

numpy = ops.convert_to_numpy


def probability(ranks):
    """Sigmoid of the logit that a rank of RPN's stands for."""
    return 1 / (1 + np.exp(-logit(ranks)))


def logit(ranks):
    """The logit that a rank of RPN's stands for, see `ranking` in kgarden/models/rpn.py."""
    ranks = ranks.astype("float64")
    return np.where(ranks >= 1, ranks - 1, 1 - 1 / np.maximum(ranks, 1e-12))


def proposals_of(detector, raw, size_hw, training):
    """Padded proposals, as in kgarden.structures, arrays of numpy."""
    run = fast(lambda raw, size_hw: detector.proposer.proposals(raw, size_hw, training=training))
    return {key: numpy(value) for key, value in run(raw["proposer"], size_hw).items()}


def named_proposals(name, score_name, proposals, score):
    """Valid proposals of each image.

    Args:
        proposals: of `proposals_of`.
        score:     function of the ranks, `logit` or `probability`, whichever the file holds.
    """
    found = {}
    for image, valid in enumerate(proposals[VALID]):
        found[f"{name}_{image}"] = proposals[BOXES][image][valid]
        found[f"{score_name}_{image}"] = score(proposals[SCORES][image][valid])
    return found


def first_of(proposals, count):
    """The first proposals of each image."""
    return {key: value[:, :count] for key, value in proposals.items()}


def named_roi_outputs(raw, proposals, score, stage=""):
    """Logits and deltas of one box head for each image's proposals, and the proposals' scores."""
    logits, deltas = numpy(raw["logits"]), numpy(raw["deltas"])
    found = {}
    for image, valid in enumerate(proposals[VALID]):
        found[f"roi_logits_{stage}{image}"] = logits[image][valid]
        found[f"roi_deltas_{stage}{image}"] = deltas[image][valid].reshape(valid.sum(), -1)
        found[f"roi_scores_{image}"] = score(proposals[SCORES][image][valid])
    return found


def named_tests(detector, x, raw, tests, everything=4096):
    """Detections under the settings of each of a file's `tests`.

    Args:
        tests:      {name: changed limits}: `pre` and `post`, proposals of a level before NMS and of all after
                    it; `rpn_nms`; `score`, `iou` and `total` of the detections.
        everything: pairs of proposal and class that there may be.
    """
    found, usual = {}, detector.proposer.test
    for name, changed in tests.items():
        of_proposals = {"pre": "per_level", "post": "total", "rpn_nms": "iou"}
        of_detections = {"score": "score_threshold", "iou": "iou", "total": "total"}
        detector.proposer.test = dataclasses.replace(usual, **_renamed(changed, of_proposals))
        settings = {"pool": everything, **_renamed(changed, of_detections)}
        found |= named_detections(name, detections_of(detector, x, raw, **settings))
        detector.proposer.test = usual
    return found


def _renamed(settings, names):
    return {names[key]: value for key, value in settings.items() if key in names}

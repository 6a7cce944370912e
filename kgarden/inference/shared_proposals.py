"""Test-time augmentation of two-stage detectors by shared proposals, as in mmdetection 1.

The proposals of all views are mapped to the first view and merged by the NMS of the first stage; the best of
them, as many as the first stage keeps of one view, are shared: mapped to every view, where the second stage
classifies and refines them. Boxes and class probabilities of each proposal are averaged over the views, boxes
in px of the first view, and the final selection runs once. These are `aug_test_rpn` and `aug_test_bboxes` of
mmdetection 1; as there, each view runs through the network twice, and no features are kept in between.
"""

import dataclasses

import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.heads.selection import clipped
from kgarden.inference.views import ViewModel
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops.gather import gather
from kgarden.structures import BOXES, LABELS, SCORES, SIZE_HW, SOURCE, VALID

PROPOSALS = "proposals"
OBJECT = "probability"  # of a proposal to be an object, where the first stage knows it


class SharedProposals:
    """Detections from proposals that all views share; a call maps the views to detections.

    Args:
        detector:  TwoStage.
        selection: the final selection.
    Raises:
        UserError: the detector has one stage.
    """

    def __init__(self, detector, selection):
        if not hasattr(detector, "proposer"):
            raise UserError(
                "evaluate.merge.convention: mmdetection_1 merges proposals, and a one-stage model has none; "
                "use detectron2 or maskrcnn_benchmark"
            )
        of_first_stage = dataclasses.replace(detector.proposer.test, method="nms")
        self.propose = ready_to_predict(ViewProposals(detector))
        self.merge = ready_to_predict(MergeProposals(of_first_stage))
        self.classify = ready_to_predict(ViewClassification(detector))
        self.select = ready_to_predict(SelectMean(selection))

    def __call__(self, views):
        rows = [self.propose.predict_on_batch(view) for view in views]
        rows = {key: np.concatenate([one[key] for one in rows], axis=1) for key in rows[0]}
        shared = self.merge.predict_on_batch(rows)
        found = [self.classify.predict_on_batch({**view, PROPOSALS: shared}) for view in views]
        mean = {key: sum(np.asarray(one[key]) for one in found) / len(found) for key in (BOXES, SCORES)}
        return self.select.predict_on_batch({**mean, VALID: shared[VALID], SIZE_HW: views[0][SIZE_HW]})


class ViewProposals(ViewModel):
    """The proposals of one view in px of the first view; scores are negative for padding."""

    def call(self, x, training=False):
        view = self.view(x)
        found = self.detector.proposals(view, self.detector(view, training=False))
        scores = ops.where(found[VALID], found[SCORES], -1.0)
        more = {OBJECT: found[OBJECT]} if OBJECT in found else {}
        return {BOXES: self.to_first(found[BOXES], x), SCORES: scores, **more}


class MergeProposals(StaticShapeModel):
    """The best proposals of all views after NMS.

    Args:
        selection: of proposals; boxes of all levels suppress each other.
    """

    def __init__(self, selection, **kwargs):
        super().__init__(**kwargs)
        self.selection = selection
        self.built = True

    def call(self, rows, training=False):
        number = ops.arange(rows[SCORES].shape[1], dtype="int32")
        source = ops.broadcast_to(number, ops.shape(rows[SCORES]))
        picked = {BOXES: rows[BOXES], SCORES: rows[SCORES], LABELS: ops.zeros_like(source), SOURCE: source}
        found = self.selection.suppress(picked)
        shared = {key: found[key] for key in (BOXES, SCORES, VALID)}
        if OBJECT in rows:
            shared[OBJECT] = gather(rows[OBJECT], ops.maximum(found[SOURCE], 0))
        return shared


class ViewClassification(ViewModel):
    """Refined boxes, in px of the first view, and class probabilities of the shared proposals in one view.

    Returns boxes (B, P, 4), or (B, P, C, 4), and scores (B, P, C).
    """

    def call(self, x, training=False):
        view, shared = self.view(x), x[PROPOSALS]
        proposals = {**shared, BOXES: self.from_first(shared[BOXES], x)}
        found = self.detector.classified(view, self.detector(view, training=False), proposals)
        shape = ops.shape(found[BOXES])
        boxes = self.to_first(ops.reshape(found[BOXES], (shape[0], -1, 4)), x)
        return {BOXES: ops.reshape(boxes, shape), SCORES: found[SCORES]}


class SelectMean(StaticShapeModel):
    """Selects detections from the mean boxes and scores and clips them to the first view's image."""

    def __init__(self, selection, **kwargs):
        super().__init__(**kwargs)
        self.selection = selection
        self.built = True

    def call(self, x, training=False):
        candidates = {BOXES: x[BOXES], SCORES: x[SCORES], VALID: ops.cast(x[VALID], "bool")[..., None]}
        return clipped(self.selection(candidates), x[SIZE_HW])

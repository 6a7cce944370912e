"""Test-time augmentation: one answer from several views of each picture.

Every view, a picture at another size or in a mirror, goes through the network on a canvas of its own. What
the network says is led back to the first view, laid together, and duplicates are suppressed once more. Two
conventions say what a view hands on:

    detectron2           its detections, as if it were alone
    maskrcnn_benchmark   all candidates that pass the threshold, none of them suppressed yet

    merge = TestTimeAugmentation(detector, convention="detectron2")
    detections = merge.predict_on_batch(x)             # x with "views", see kgarden.structures
"""

import dataclasses

import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.heads.selection import GROUP
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops import boxes as box_ops
from kgarden.structures import BOXES, IMAGES, LABELS, MIRRORED, SCORES, SIZE_HW, SOURCE, VALID, VIEWS

CONVENTIONS = ("detectron2", "maskrcnn_benchmark")
THRESHOLD = 1e-8  # detectron2's, on the detections of views
FIRST_HW = "first_hw"  # size of the picture in the first view
OF_SOFT_NMS = ("soft", "sigma", "min_score")


class TestTimeAugmentation:
    """What an InferenceModel is for one view, for several: asked by `predict_on_batch`.

    Args:
        detector:   with boxes alone.
        convention: one of CONVENTIONS.
        settings:   "method", "iou", "soft", "sigma", "min_score" of the last step, which lie over those of
                    the detector's own selection; a detector without NMS gets "nms".
    Raises:
        UserError: a detector with masks, or settings that mean nothing to the method.
    """

    def __init__(self, detector, convention="detectron2", **settings):
        if getattr(detector, "mask_head", None) is not None:
            raise UserError(
                "evaluate.views: masks of several views cannot be merged; take views out, or leave one size "
                "and no flip"
            )
        if convention not in CONVENTIONS:
            raise UserError(f"evaluate.merge.convention {convention!r}: one of {', '.join(CONVENTIONS)}")
        self.selection = last_selection(detector.selection, **settings)
        of_view = {"detectron2": Detected, "maskrcnn_benchmark": Picked}[convention]
        self.of_view = ready_to_predict(of_view(detector, self.selection))
        self.merge = ready_to_predict(Merge(self.selection))

    def predict_on_batch(self, x):
        """Detections in px of the first view, as an InferenceModel's; "source" counts the rows of all views.

        Args:
            x: {"images", "size_hw", "views"}, see kgarden.structures.
        """
        first = {IMAGES: x[IMAGES], SIZE_HW: x[SIZE_HW], MIRRORED: np.zeros(len(x[IMAGES]), bool)}
        answers = [
            self.of_view.predict_on_batch({**view, FIRST_HW: x[SIZE_HW]}) for view in (first, *x[VIEWS])
        ]
        rows = {key: np.concatenate([answer[key] for answer in answers], axis=1) for key in answers[0]}
        return self.merge.predict_on_batch({**rows, SIZE_HW: x[SIZE_HW]})


def last_selection(selection, method=None, **settings):
    """The selection over all views: that of the detector with settings laid over it.

    Args:
        selection: kgarden.heads.selection.Selection.
        method:    "nms" or "soft_nms"; None: the detector's, "nms" where it has none.
        settings:  "iou", "soft", "sigma", "min_score"; None: the detector's.
    """
    method = method or (selection.method if selection.method == "soft_nms" else "nms")
    settings = {key: value for key, value in settings.items() if value is not None}
    idle = [key for key in OF_SOFT_NMS if key in settings and method != "soft_nms"]
    if idle:
        raise UserError(
            f"evaluate.merge.{idle[0]} means nothing to method {method}: leave it out, or set method soft_nms"
        )
    return dataclasses.replace(selection, method=method, **settings)


class OfView(StaticShapeModel):
    """{"images", "size_hw", "mirrored", "first_hw"} -> rows, in px of the first view.

    Rows are what `Selection.suppress` takes: boxes (B, N, 4), scores (B, N), below 0 for a row that is none,
    labels (B, N), and group (B, N) unless all boxes may suppress each other.

    Args:
        detector:  of a family with a selection.
        selection: what comes after all views.
    """

    def __init__(self, detector, selection, **kwargs):
        super().__init__(**kwargs)
        self.detector = detector
        self.selection = selection
        self.built = True

    def call(self, x, training=False):
        seen = {key: x[key] for key in (IMAGES, SIZE_HW)}
        rows = self.rows(seen, self.detector(seen, training=False))
        mirrored = ops.cast(x[MIRRORED], "bool")[:, None, None]
        boxes = ops.where(mirrored, box_ops.mirror(rows[BOXES], x[SIZE_HW]), rows[BOXES])
        boxes = box_ops.rescale(boxes, x[SIZE_HW], x[FIRST_HW])
        kept = {key: rows[key] for key in (SCORES, LABELS, GROUP) if key in rows}
        return {BOXES: boxes, **kept}

    def rows(self, x, raw):
        """What this view hands on, in its own px."""
        raise NotImplementedError(f"{type(self).__name__} is a frame: a convention says what goes on")


class Detected(OfView):
    """Detections that the view would give if it were alone."""

    def rows(self, x, raw):
        found = self.detector.detect(x, raw)
        scores = ops.where(found[VALID] & (found[SCORES] > THRESHOLD), found[SCORES], -1.0)
        group = {GROUP: found[LABELS]} if self.selection.class_wise else {}
        return {BOXES: found[BOXES], SCORES: scores, LABELS: found[LABELS], **group}


class Picked(OfView):
    """Candidates that a selection would compare with each other.

    They pass its threshold and its limit of each level here and not after merging: nothing else is left out
    by that, and a few thousand rows go on instead of all places.
    """

    def rows(self, x, raw):
        return self.selection.pick(self.detector.candidates(x, raw))


class Merge(StaticShapeModel):
    """Rows of all views in px of the first one, and its "size_hw" -> detections, clipped to the picture."""

    def __init__(self, selection, **kwargs):
        super().__init__(**kwargs)
        self.selection = selection
        self.built = True

    def call(self, rows, training=False):
        number = ops.arange(rows[LABELS].shape[1], dtype="int32")
        picked = {key: rows[key] for key in (BOXES, SCORES, LABELS, GROUP) if key in rows}
        found = self.selection.suppress({**picked, SOURCE: ops.broadcast_to(number, ops.shape(rows[LABELS]))})
        boxes = box_ops.clip(found[BOXES], rows[SIZE_HW])
        return {**found, BOXES: boxes, VALID: found[VALID] & (box_ops.area(boxes) > 0)}

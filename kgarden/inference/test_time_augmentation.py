"""Test-time augmentation: merges the detections of several resized and flipped views of each image.

Every view goes through the network on a canvas of its own. Its boxes are mapped back to the first view and
merged with those of the other views, and NMS runs once more. Three conventions define what is merged:

    detectron2           concatenated: the final detections of every view
    maskrcnn_benchmark   concatenated: the candidates of every view above the score threshold, before NMS
    mmdetection_1        proposals, by NMS; then boxes and scores that the merged proposals get in every view,
                         by their mean: kgarden/inference/shared_proposals.py

    merge = TestTimeAugmentation(detector, convention="detectron2")
    detections = merge.predict_on_batch(x)             # x with "views", see kgarden.structures
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.heads.selection import GROUP, Selection, clipped
from kgarden.inference.shared_proposals import SharedProposals
from kgarden.inference.views import FIRST_HW, ViewModel
from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.structures import BOXES, IMAGES, LABELS, MIRRORED, SCORES, SIZE_HW, SOURCE, VALID, VIEWS

CONVENTIONS = ("detectron2", "maskrcnn_benchmark", "mmdetection_1")
THRESHOLD = 1e-8  # detectron2's, on the detections of views
SOFT_NMS_SETTINGS = ("soft", "sigma", "min_score")


class TestTimeAugmentation:
    """Inference on several views of each image, merged by a final NMS.

    Has the `predict_on_batch` of an InferenceModel.

    Args:
        detector:   a Detector without a mask head; for "mmdetection_1" one of two stages.
        convention: one of CONVENTIONS.
        settings:   "method", "iou", "soft", "sigma", "min_score" of the final NMS, which override those of
                    the detector's own selection; the default method of a detector without NMS is "nms".
    Raises:
        UserError: the detector has a mask head, the convention or a setting does not apply to it.
    """

    __test__ = False  # the name starts with Test, but pytest must not collect it

    def __init__(self, detector: keras.Model, convention: str = "detectron2", **settings):
        if getattr(detector, "mask_head", None) is not None:
            raise UserError(
                "evaluate.views: merging masks of several views is not supported; remove views, or use one "
                "size without flip"
            )
        if convention not in CONVENTIONS:
            raise UserError(
                f"evaluate.merge.convention: {convention!r} is not supported; use one of "
                f"{', '.join(CONVENTIONS)}"
            )
        self.selection = last_selection(detector.selection, **settings)
        if convention == "mmdetection_1":
            self.merged = SharedProposals(detector, self.selection)
        else:
            self.merged = Concatenated(detector, self.selection, convention)

    def predict_on_batch(self, x: dict) -> dict:
        """Returns detections in px of the first view; "source" counts the rows of all views.

        Args:
            x: {"images", "size_hw", "views"}, see kgarden.structures.
        """
        first = {IMAGES: x[IMAGES], SIZE_HW: x[SIZE_HW], MIRRORED: np.zeros(len(x[IMAGES]), bool)}
        return self.merged([{**view, FIRST_HW: x[SIZE_HW]} for view in (first, *x[VIEWS])])


def last_selection(selection: Selection, method: str | None = None, **settings) -> Selection:
    """Builds the selection over all views: the detector's, with settings overridden.

    Args:
        selection: of the detector.
        method:    "nms" or "soft_nms"; None: the detector's, or "nms" if it uses none.
        settings:  "iou", "soft", "sigma", "min_score"; None: the detector's.
    """
    method = method or (selection.method if selection.method == "soft_nms" else "nms")
    settings = {key: value for key, value in settings.items() if value is not None}
    unused = [key for key in SOFT_NMS_SETTINGS if key in settings and method != "soft_nms"]
    if unused:
        raise UserError(
            f"evaluate.merge.{unused[0]} does not apply to method {method}; remove it, or set method soft_nms"
        )
    return dataclasses.replace(selection, method=method, **settings)


class Concatenated:
    """Rows of all views, concatenated; a call maps the views to detections.

    Args:
        detector:   a Detector with a selection.
        selection:  the final selection over all views.
        convention: "detectron2" or "maskrcnn_benchmark".
    """

    def __init__(self, detector, selection, convention):
        rows_of = {"detectron2": ViewDetections, "maskrcnn_benchmark": ViewCandidates}[convention]
        self.rows_of = ready_to_predict(rows_of(detector, selection))
        self.merge = ready_to_predict(Merge(selection))

    def __call__(self, views):
        rows = [self.rows_of.predict_on_batch(view) for view in views]
        rows = {key: np.concatenate([one[key] for one in rows], axis=1) for key in rows[0]}
        return self.merge.predict_on_batch({**rows, SIZE_HW: views[0][SIZE_HW]})


class ViewRows(ViewModel):
    """Base class: computes the rows of one view that are merged, in px of the first view.

    Maps a view to the rows that `Selection.suppress` takes: boxes (B, N, 4), scores (B, N), negative for
    padding, labels (B, N), and group (B, N) unless all boxes may suppress each other.

    Args:
        detector:  a Detector with a selection.
        selection: the final selection over all views.
    """

    def __init__(self, detector, selection, **kwargs):
        super().__init__(detector, **kwargs)
        self.selection = selection

    def call(self, x, training=False):
        view = self.view(x)
        rows = self.rows(view, self.detector(view, training=False))
        kept = {key: rows[key] for key in (SCORES, LABELS, GROUP) if key in rows}
        return {BOXES: self.to_first(rows[BOXES], x), **kept}

    def rows(self, x, raw):
        """Returns the rows of this view, in its own px."""
        raise NotImplementedError(f"{type(self).__name__} must implement rows(x, raw)")


class ViewDetections(ViewRows):
    """The final detections of the view alone (detectron2)."""

    def rows(self, x, raw):
        detections = self.detector.detect(x, raw)
        valid = detections[VALID] & (detections[SCORES] > THRESHOLD)
        scores = ops.where(valid, detections[SCORES], -1.0)
        group = {GROUP: detections[LABELS]} if self.selection.class_wise else {}
        return {BOXES: detections[BOXES], SCORES: scores, LABELS: detections[LABELS], **group}


class ViewCandidates(ViewRows):
    """The candidates of the view before NMS (maskrcnn_benchmark).

    The score threshold and the limit per level are applied here and not after merging. The result is the
    same, with a few thousand rows instead of all candidates.
    """

    def rows(self, x, raw):
        return self.selection.pick(self.detector.candidates(x, raw))


class Merge(StaticShapeModel):
    """Selects detections from the rows of all views and clips them to the first view's image."""

    def __init__(self, selection, **kwargs):
        super().__init__(**kwargs)
        self.selection = selection
        self.built = True

    def call(self, rows, training=False):
        number = ops.arange(rows[LABELS].shape[1], dtype="int32")
        picked = {key: rows[key] for key in (BOXES, SCORES, LABELS, GROUP) if key in rows}
        source = ops.broadcast_to(number, ops.shape(rows[LABELS]))
        return clipped(self.selection.suppress({**picked, SOURCE: source}), rows[SIZE_HW])

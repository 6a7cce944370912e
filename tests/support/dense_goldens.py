"""The reference files of one-stage detectors (`onestage_*`) as our heads read them."""

import numpy as np
from keras import ops
from support.golden import params

from kgarden.heads.selection import Selection

NAMES = {"cls_logits": "classes", "ctr_logits": "centerness"}


def truth_of(golden):
    """Ground truth of a file as in kgarden.structures."""
    labels = np.where(golden["gt_valid"] > 0, golden["gt_labels"], -1).astype("int32")
    return {
        "boxes": golden["gt_boxes"],
        "labels": labels,
        "crowd": np.zeros(labels.shape, bool),
        "image_id": np.arange(len(labels)),
    }


def maps_of(rows, level_sizes, anchors=1):
    """Rows of places (B, A, D) or (B, A) -> list of (B, H, W, anchors * D); arrays or tensors."""
    rows = rows if len(rows.shape) == 3 else rows[..., None]
    maps, start = [], 0
    for height, width in level_sizes:
        stop = start + height * width * anchors
        maps.append(ops.reshape(rows[:, start:stop], (-1, height, width, anchors * rows.shape[-1])))
        start = stop
    return maps


def raw_of(golden, code, anchors=1, **replaced):
    """What a head would have said: the raw outputs that the file gives.

    Args:
        code:     name of the array with the code of the boxes.
        replaced: arrays or tensors instead of the file's, by the file's names.
    """
    names = {**NAMES, code: "code"}
    arrays = {name: replaced.get(name, golden[name]) for name in names if name in golden}
    return {
        names[name]: maps_of(array, params(golden)["level_sizes"], anchors) for name, array in arrays.items()
    }


def labels_of(golden, matched):
    """Classes of matched objects, C on background."""
    labels = np.take_along_axis(golden["gt_labels"], np.maximum(matched, 0), axis=1)
    return np.where(matched >= 0, labels, params(golden)["num_classes"])


def detections_of(golden, head, raw):
    """The outputs nms_det_* of a file, by the file's settings."""
    settings = params(golden)
    asked = settings["detections"]
    selection = Selection(
        score_threshold=asked["score_thr"],
        per_level=asked["pre_nms_per_level"],
        iou=asked["nms_iou"],
        total=asked["max_dets"],
    )
    size_hw = np.tile(np.int32(settings["image_size"]), (len(golden["gt_boxes"]), 1))
    found = selection(head.candidates(raw, size_hw if asked["clip"] else None))
    found = {key: ops.convert_to_numpy(value) for key, value in found.items()}
    return {
        "nms_det_boxes": found["boxes"],
        "nms_det_scores": found["scores"],
        "nms_det_labels": found["labels"],
        "nms_num_det": found["valid"].sum(axis=1),
    }

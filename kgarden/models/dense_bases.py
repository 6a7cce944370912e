"""Dense heads that PSS and CondInst are built on, with the necks and NMS thresholds of their detectors."""

from typing import NamedTuple

from kgarden.config.instantiate import instantiate, name_and_settings
from kgarden.models.atss import ATSSHead
from kgarden.models.fcos import FCOSHead
from kgarden.models.gfl import GFLHead
from kgarden.models.retinanet import RetinaNetHead


class Base(NamedTuple):
    """A dense detector that another head is built on.

    Attributes:
        head:     its dense head, of the form of kgarden/heads/dense.py.
        settings: of the head, where the paper's training differs from that head's own defaults.
        neck:     settings of the FPN that belongs to it.
        omega:    points or anchors that PSS may select for an object, see DenseHead.candidate_mask.
        nms_iou:  of its own detections.
    """

    head: type
    settings: dict
    neck: dict
    omega: str = "candidates"
    nms_iou: float = 0.6


BASES = {
    "fcos": Base(FCOSHead, {"weights": {"box": 2.0}}, {"relu_before_p7": True}),
    "atss": Base(ATSSHead, {}, {"relu_before_p7": False}),
    "gfl": Base(GFLHead, {}, {"relu_before_p7": False}),
    "retinanet": Base(
        RetinaNetHead, {}, {"top": "p6p7_of_c5", "relu_before_p7": False}, omega="positives", nms_iou=0.5
    ),
}


def make_base(settings, strides, num_classes):
    """Builds the dense head under another head.

    Args:
        settings: a key of BASES, or {name: a key of BASES, and settings of that head}.
    Raises:
        UserError: unknown name or setting.
    """
    name, settings = name_and_settings(settings, "model.base", BASES)
    defaults = BASES[name].settings
    settings = {**defaults, **settings}
    if "weights" in defaults:
        settings["weights"] = {**defaults["weights"], **settings["weights"]}
    return instantiate(BASES[name].head, settings, "model.base", strides=strides, num_classes=num_classes)

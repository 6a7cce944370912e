"""Detectors assembled from parts by name, also in combinations that no paper has.

model: {name: one_stage, backbone, neck, dense_head: {name: fcos, ...}, selection,
        mask_head: {name: condinst, ...}}
model: {name: two_stage, backbone, neck, proposer: {head: {name: centernet, ...}, train: {...}, test: {...}},
        roi_head: {name: cascade, ...}, selection, mask_head: {name: mask_rcnn, ...}}
"""

from kgarden.config.instantiate import forwards_to, instantiate, name_and_settings
from kgarden.heads.selection import Selection
from kgarden.models.atss import ATSSHead
from kgarden.models.base.detector import trunk
from kgarden.models.base.one_stage import OneStage
from kgarden.models.base.two_stage import AsProposer, TwoStage, roi_selection
from kgarden.models.cascade_rcnn import CascadeHead
from kgarden.models.centernet import CenterNetHead
from kgarden.models.centernet2 import fusion
from kgarden.models.condinst import mask_head_on as condinst_on
from kgarden.models.defcn import DeFCNHead
from kgarden.models.double_head import DoubleHead
from kgarden.models.faster_rcnn import FasterHead
from kgarden.models.fcos import FCOSHead
from kgarden.models.fscascade import FSCascadeHead
from kgarden.models.gfl import GFLHead
from kgarden.models.mask_rcnn import mask_head_on as mask_rcnn_on
from kgarden.models.mask_rcnn import mask_rcnn as _mask_rcnn
from kgarden.models.pss import PSSHead
from kgarden.models.retinanet import RetinaNetHead
from kgarden.models.rpn import make_proposer
from kgarden.models.tsd import TSDHead
from kgarden.models.tsd_cascade import TSDCascadeHead
from kgarden.necks import make_neck

DENSE_HEADS = {
    "atss": ATSSHead,
    "centernet": CenterNetHead,
    "defcn": DeFCNHead,
    "fcos": FCOSHead,
    "gfl": GFLHead,
    "pss": PSSHead,
    "retinanet": RetinaNetHead,
}
MASK_HEADS = {"condinst": condinst_on}  # of a dense head
MASK_HEADS_OF_ROIS = {"mask_rcnn": mask_rcnn_on}
ROI_HEADS = {
    "cascade": CascadeHead,
    "double_head": DoubleHead,
    "faster": FasterHead,
    "fscascade": FSCascadeHead,
    "tsd": TSDHead,
    "tsd_cascade": TSDCascadeHead,
}
PROPOSALS = {"score_threshold": 1e-4, "iou": 0.9, "class_wise": False}


def one_stage(
    num_classes,
    dense_head,
    seed=0,
    backbone="resnet50",
    neck=None,
    selection=None,
    mask_head=None,
    pixels=None,
):
    """Any dense head on any backbone and neck.

    Args:
        num_classes: C.
        dense_head:  {name: a key of DENSE_HEADS, and its settings}.
        mask_head:   {name: condinst, and its settings}; None: boxes alone.
        seed, backbone, neck, selection, pixels: as in kgarden/models/centernet2.py.
    Returns:
        OneStage.
    """
    neck = make_neck(neck or {})
    fixed = dict(strides=neck.strides, num_classes=num_classes)
    head = by_name(DENSE_HEADS, dense_head, "model.dense_head", **fixed)
    return OneStage(
        dense_head=head,
        mask_head=_mask_head(MASK_HEADS, mask_head, head, neck.channels),
        selection=instantiate(Selection, selection or {}, "model.selection"),
        **trunk(backbone, neck, pixels),
        num_classes=num_classes,
        seed=seed,
        name="one_stage",
    )


def two_stage(
    num_classes,
    proposer,
    roi_head,
    seed=0,
    backbone="resnet50",
    neck=None,
    selection=None,
    mask_head=None,
    pixels=None,
):
    """Any dense head as the first stage of any RoI head.

    Args:
        num_classes: C.
        proposer:    {head: {name: "rpn" or a key of DENSE_HEADS, and its settings},
                     train, test: settings of the Selection of proposals}.
        roi_head:    {name: a key of ROI_HEADS, and its settings, fuse: a key of centernet2.FUSIONS}.
        mask_head:   {name: mask_rcnn, and its settings}; None: boxes alone.
        seed, backbone, neck, selection, pixels: as in kgarden/models/centernet2.py.
    Returns:
        TwoStage.
    """
    neck = make_neck(neck or {})
    settings = {"fuse": "off", **({"name": roi_head} if isinstance(roi_head, str) else roi_head)}
    fuse = fusion(settings.pop("fuse"))
    fixed = dict(strides=neck.strides, num_classes=num_classes, name="roi_head")
    roi_head = by_name(ROI_HEADS, settings, "model.roi_head", **fixed)
    return TwoStage(
        proposer=instantiate(_proposer, proposer, "model.proposer", neck=neck, seed=seed),
        roi_head=roi_head,
        fuse=fuse,
        mask_head=_mask_head(MASK_HEADS_OF_ROIS, mask_head, roi_head, neck.strides),
        selection=roi_selection(selection),
        **trunk(backbone, neck, pixels),
        num_classes=num_classes,
        seed=seed,
        name="two_stage",
    )


@forwards_to(_mask_rcnn, fixed=("heads",))
def mask_rcnn(num_classes, **parts):
    """Mask R-CNN on any RoI head with boxes of one sample; see kgarden/models/mask_rcnn.py."""
    further = ("double_head", "fscascade", "tsd", "tsd_cascade")
    return _mask_rcnn(num_classes, heads={name: ROI_HEADS[name] for name in further}, **parts)


def _proposer(neck, seed, head, train=None, test=None):
    """A class-agnostic dense head with its selections."""
    name, settings = name_and_settings(head, "model.proposer.head", ["rpn", *DENSE_HEADS])
    if name == "rpn":
        return make_proposer(neck, seed, rpn=settings, proposals={"train": train or {}, "test": test or {}})
    return AsProposer(
        by_name(DENSE_HEADS, head, "model.proposer.head", strides=neck.strides, num_classes=None),
        train=_proposals(train, "train", per_level=4000, total=2000),
        test=_proposals(test, "test", per_level=1000, total=256),
        name="proposer",
    )


def _proposals(settings, when, **defaults):
    """The Selection of proposals in training or in testing."""
    return instantiate(Selection, {**PROPOSALS, **defaults, **(settings or {})}, f"model.proposer.{when}")


def _mask_head(known, settings, head, of_pyramid):
    """The mask head of a dense head or a RoI head; None without settings."""
    if settings is None:
        return None
    name, settings = name_and_settings(settings, "model.mask_head", known)
    return known[name](head, of_pyramid, settings)


def by_name(known, settings, where, **fixed):
    """Builds a part of `known` from {name, and settings}."""
    name, settings = name_and_settings(settings, where, known)
    return instantiate(known[name], settings, where, **fixed)

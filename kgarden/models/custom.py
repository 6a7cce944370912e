"""Detectors from parts by name: what no paper combined.

model: {name: one_stage, backbone, neck, dense_head: {name: fcos, ...}, selection,
        mask_head: {name: condinst, ...}}
model: {name: two_stage, backbone, neck, proposer: {head: {name: centernet, ...}, train: {...}, test: {...}},
        roi_head: {name: cascade, ...}, selection, mask_head: {name: mask_rcnn, ...}}
"""

from kgarden.backbones import make_backbone
from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError
from kgarden.heads.selection import Selection
from kgarden.layers.pixels import pixel_settings
from kgarden.models.atss import ATSSHead
from kgarden.models.base.one_stage import OneStage
from kgarden.models.base.two_stage import AsProposer, TwoStage
from kgarden.models.cascade_rcnn import CascadeHead
from kgarden.models.centernet import CenterNetHead
from kgarden.models.condinst import mask_head_on as condinst_on
from kgarden.models.defcn import DeFCNHead
from kgarden.models.faster_rcnn import FasterHead
from kgarden.models.fcos import FCOSHead
from kgarden.models.gfl import GFLHead
from kgarden.models.mask_rcnn import mask_head_on as mask_rcnn_on
from kgarden.models.pss import PSSHead
from kgarden.models.retinanet import RetinaNetHead
from kgarden.models.rpn import make_proposer
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
ROI_HEADS = {"cascade": CascadeHead, "faster": FasterHead}
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
    neck = make_neck(neck or "fpn")
    head = _by_name(
        DENSE_HEADS, dense_head, "model.dense_head", strides=neck.strides, num_classes=num_classes
    )
    return OneStage(
        dense_head=head,
        mask_head=_mask_head(MASK_HEADS, mask_head, head, neck.channels),
        selection=instantiate(Selection, selection or {}, "model.selection"),
        **_trunk(backbone, neck, pixels),
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
        roi_head:    {name: a key of ROI_HEADS, and its settings}.
        mask_head:   {name: mask_rcnn, and its settings}; None: boxes alone.
        seed, backbone, neck, selection, pixels: as in kgarden/models/centernet2.py.
    Returns:
        TwoStage.
    """
    neck = make_neck(neck or "fpn")
    made = dict(strides=neck.strides, num_classes=num_classes, name="roi_head")
    roi_head = _by_name(ROI_HEADS, roi_head, "model.roi_head", **made)
    return TwoStage(
        proposer=instantiate(_proposer, proposer, "model.proposer", neck=neck, seed=seed),
        roi_head=roi_head,
        mask_head=_mask_head(MASK_HEADS_OF_ROIS, mask_head, roi_head, neck.strides),
        selection=instantiate(
            Selection, {"per_level": None, "pool": 4096, **(selection or {})}, "model.selection"
        ),
        **_trunk(backbone, neck, pixels),
        num_classes=num_classes,
        seed=seed,
        name="two_stage",
    )


def _proposer(neck, seed, head, train=None, test=None):
    """A dense head that looks for one class of things, "any object"."""
    name, settings = _name_and_rest(head, "model.proposer.head", ["rpn", *DENSE_HEADS])
    if name == "rpn":
        return make_proposer(neck, seed, rpn=settings, proposals={"train": train or {}, "test": test or {}})
    made = _by_name(DENSE_HEADS, head, "model.proposer.head", strides=neck.strides, num_classes=None)
    return AsProposer(
        made,
        train=instantiate(
            Selection,
            {**PROPOSALS, "per_level": 4000, "total": 2000, **(train or {})},
            "model.proposer.train",
        ),
        test=instantiate(
            Selection, {**PROPOSALS, "per_level": 1000, "total": 256, **(test or {})}, "model.proposer.test"
        ),
        name="proposer",
    )


def _mask_head(known, settings, head, of_pyramid):
    if settings is None:
        return None
    name, settings = _name_and_rest(settings, "model.mask_head", known)
    return known[name](head, of_pyramid, settings)


def _trunk(backbone, neck, pixels):
    return {"backbone": make_backbone(backbone), "neck": neck, "pixels": pixel_settings(pixels)}


def _by_name(known, settings, where, **fixed):
    name, settings = _name_and_rest(settings, where, known)
    return instantiate(known[name], settings, where, **fixed)


def _name_and_rest(settings, where, known):
    settings = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = settings.pop("name", None)
    if name not in known:
        raise UserError(f"{where}.name {name!r}: one of {', '.join(known)}")
    return name, settings

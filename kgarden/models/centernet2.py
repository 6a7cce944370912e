"""CenterNet2: a probabilistic two-stage detector.

Zhou, Koltun, Krähenbühl, "Probabilistic two-stage detection", 2021, arXiv:2103.07461. Stage one says
how likely any object is, P(O = 1), and stage two which class it is, P(C | O = 1); the score is their
product. So stage one must be a calibrated one-stage detector that is blind to classes, and few
proposals (256) are enough.

    paper / release                     here
    P(O_k)                              CenterNetHead(objectness=True, num_classes=None)
    P(C_k | O_k)                        CascadeHead or FasterHead
    P(C_k) = sum P(C|O) P(O)   (Eq. 1)  `product`; `released` is what the published models use;
                                        `roi_head.fuse` chooses
    loss weight 0.5 of stage one        `weights` {positive 0.5, negative 0.5, box 1.0}
    256 proposals, NMS 0.9              proposer.test
    other first stages (section 5)      proposer.name: retinanet, atss, gfl, and rpn (Tables 4, 5);
                                        in no paper: fcos, and pss, whose proposals need no NMS
    IoU 0.6 / 0.7 / 0.8, NMS 0.7        roi_head.ious, selection.iou

Where paper and release disagree the release is the default: it produced the published numbers.
"""

from keras import ops

from kgarden.config.instantiate import instantiate, name_and_settings
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.selection import Selection
from kgarden.models.atss import ATSSHead
from kgarden.models.base.detector import trunk
from kgarden.models.base.two_stage import AsProposer, TwoStage, roi_selection
from kgarden.models.cascade_rcnn import CascadeHead
from kgarden.models.centernet import CenterNetHead, centernet
from kgarden.models.dense_bases import BASES
from kgarden.models.double_head import DoubleHead
from kgarden.models.faster_rcnn import FasterHead
from kgarden.models.fcos import FCOSHead
from kgarden.models.fscascade import FSCascadeHead
from kgarden.models.gfl import GFLHead
from kgarden.models.pss import PSSHead
from kgarden.models.retinanet import RetinaNetHead
from kgarden.models.rpn import make_proposer
from kgarden.models.tsd import TSDHead
from kgarden.necks import make_neck

STAGE_ONE_WEIGHTS = {"positive": 0.5, "negative": 0.5, "box": 1.0}

# First stages of Table 1, and FCOS. The release has the first alone; of the others the paper says that
# classes and boxes read one tower, that GFL regresses plain distances, and that terms weigh half of what they
# do alone. Their scores are square roots like CenterNet's; as in detectron2, anchors in the padding are
# background.
ONE_TOWER = {"shared_tower": True, "sqrt_scores": True}
OTHERS = ONE_TOWER | {"pad_divisor": None}
FIRST_STAGES = {
    "centernet": (
        CenterNetHead,
        {"ignore_above": 0.85, "weights": STAGE_ONE_WEIGHTS},
    ),
    "retinanet": (
        RetinaNetHead,
        OTHERS | {"low_quality_matches": "own", "normalizer": "ema", "weights": {"class": 0.5, "box": 0.5}},
    ),
    "atss": (
        ATSSHead,
        OTHERS | {"rank_by": "score", "weights": {"class": 0.5, "box": 1.0, "centerness": 0.5}},
    ),
    "gfl": (GFLHead, OTHERS | {"reg_max": None, "weights": {"class": 0.5, "box": 1.0}}),
    "fcos": (
        FCOSHead,
        ONE_TOWER | {"rank_by": "score", "weights": {"class": 0.5, "box": 0.5, "centerness": 0.5}},
    ),
}
PSS = {"weights": {"class": 0.5, "rank": 0.125}}  # halves as well, on a base of these
# Selection of proposals, the release's: best of all and of each level. RPN keeps its own (rpn.py).
PROPOSALS = {
    "train": 2000,
    "test": 256,
    "train_per_level": 4000,
    "test_per_level": 1000,
    "nms_iou": 0.9,
    "method": "nms",
    "score_threshold": 1e-4,
}
ROI_HEADS = {
    "cascade": (CascadeHead, {"ious": (0.6, 0.7, 0.8)}),
    "faster": (FasterHead, {"iou": 0.6, "class_agnostic": True}),
    # In no paper:
    "double_head": (DoubleHead, {"iou": 0.6}),
    "fscascade": (FSCascadeHead, {"ious": (0.6, 0.7, 0.8)}),
    "tsd": (TSDHead, {"iou": 0.6}),
}

# Equation 1: the score of a class is likelihood times conditional probability.


def product(scores, proposals):
    """P(C_k) = P(C_k | O) P(O), Eq. 1.

    Args:
        scores:    (B, P, C) P(C | O) of the RoI head.
        proposals: as in kgarden.structures, with "probability" (B, P), P(O).
    Returns:
        (B, P, C).
    """
    return scores * proposals["probability"][..., None]


def released(scores, proposals):
    """sqrt(P(C_k | O) sqrt(P(O))), the published models' form of Eq. 1 (MULT_PROPOSAL_SCORE).

    Arguments and result as for `product`.
    """
    return ops.sqrt(scores * ops.sqrt(proposals["probability"])[..., None])


FUSIONS = {"released": released, "product": product, "off": None}


def fusion(how):
    """The function by which `TwoStage` fuses the scores of both stages, by its name in FUSIONS; None: "off".

    Raises:
        UserError: unknown name; when called, proposals without "probability".
    """
    one_of("roi_head.fuse", how, FUSIONS)
    if how == "off":
        return None

    def fuse(scores, proposals):
        if proposals.get("probability") is None:
            raise UserError(
                f"model.roi_head.fuse {how!r}: fusion needs proposal probabilities, and this proposer gives "
                "only a ranking; use 'off'"
            )
        return FUSIONS[how](scores, proposals)

    return fuse


# The two stages.


def centernet2(
    num_classes,
    seed=0,
    backbone="resnet50",
    neck=None,
    proposer=None,
    roi_head=None,
    selection=None,
    pixels=None,
):
    """CenterNet2: CenterNet2_R50_1x of the release (42.9 AP on COCO).

    Args:
        num_classes: C.
        seed:        of the sampling of RoIs.
        backbone:    a name, or {name, ...}; see kgarden/backbones.
        neck:        settings of the FPN.
        proposer:    {name: a key of FIRST_STAGES, "centernet" if left out, "pss" or "rpn", and the settings
                     of its head, and any of PROPOSALS}.
        roi_head:    {name: a key of ROI_HEADS, and the settings of that head, fuse: a key of
                     FUSIONS}; "none" leaves the second stage out: CenterNet* alone, with the tower and target
                     settings of `proposer`.
        selection:   settings of the final Selection.
        pixels:      "msra", "torchvision", or {mean, std, order}; see kgarden/layers/pixels.py.
    Returns:
        TwoStage, or OneStage without a second stage.
    """
    shared = dict(seed=seed, backbone=backbone, neck=neck, selection=selection, pixels=pixels)
    if roi_head == "none":
        return first_stage_alone(num_classes, proposer or {}, **shared)
    neck = make_neck(neck or {})
    settings = {"name": "cascade", "fuse": "released", **(roi_head or {})}
    return TwoStage(
        **trunk(backbone, neck, pixels),
        proposer=_proposer(neck, seed, **(proposer or {})),
        fuse=fusion(settings.pop("fuse")),
        roi_head=_roi_head(settings, neck.strides, num_classes),
        selection=roi_selection(selection, iou=0.7),
        num_classes=num_classes,
        seed=seed,
        name="centernet2",
    )


def first_stage_alone(num_classes, proposer, **shared):
    """CenterNet* with the tower and target settings of a proposer."""
    if proposer.get("name", "centernet") != "centernet":
        raise UserError("model.roi_head none leaves CenterNet* alone: leave model.proposer.name out")
    of_head = {key: value for key, value in proposer.items() if key not in ("name", "weights", *PROPOSALS)}
    return centernet(num_classes, dense_head=of_head, **shared)


def _proposer(neck, seed, name="centernet", **settings):
    """The first stage by name, with its selections of proposals."""
    one_of("proposer.name", name, [*FIRST_STAGES, "pss", "rpn"])
    given = {key: settings.pop(key) for key in PROPOSALS if key in settings}
    if name == "rpn":
        return make_proposer(neck, seed, rpn=settings, proposals=_selections(**given))
    kind, settings = _dense_head(name, neck.channels, settings)
    own = {"method": "none"} if settings.get("prediction", "one_to_many") == "end_to_end" else {}
    selections = _selections(**{**PROPOSALS, **own, **given})
    return AsProposer(
        instantiate(kind, settings, "model.proposer", strides=neck.strides, num_classes=None),
        **{when: Selection(class_wise=False, **of_mode) for when, of_mode in selections.items()},
        name="proposer",
    )


def _dense_head(name, width, settings):
    """Class and settings of a first stage that knows likelihoods."""
    if name != "pss":
        kind, defaults = FIRST_STAGES[name]
        return kind, {"width": width, **defaults, **settings}
    base, of_base = name_and_settings(settings.get("base"), "model.proposer.base", BASES, "fcos")
    of_base = {"name": base, "width": width, **FIRST_STAGES[base][1], **of_base}
    return PSSHead, {"prediction": "end_to_end", **PSS, **settings, "base": of_base}


def _selections(
    train=None,
    test=None,
    train_per_level=None,
    test_per_level=None,
    nms_iou=None,
    method=None,
    score_threshold=None,
):
    """{"train", "test": those settings of Selection that are given}."""
    shared = {"iou": nms_iou, "method": method, "score_threshold": score_threshold}
    counts = {"train": (train, train_per_level), "test": (test, test_per_level)}
    found = {
        when: {**shared, "total": total, "per_level": of_level} for when, (total, of_level) in counts.items()
    }
    return {
        when: {key: value for key, value in of_mode.items() if value is not None}
        for when, of_mode in found.items()
    }


def _roi_head(settings, strides, num_classes):
    """The second stage by name, with CenterNet2's thresholds."""
    name, settings = name_and_settings(settings, "model.roi_head", ROI_HEADS)
    head, defaults = ROI_HEADS[name]
    fixed = dict(strides=strides, num_classes=num_classes, name="roi_head")
    return instantiate(head, {**defaults, **settings}, "model.roi_head", **fixed)

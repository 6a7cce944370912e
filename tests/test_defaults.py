"""Defaults of every builder's parts, and of functions that heads call; layers are made but not built.

Numbers are those of the papers and of the configurations of detectron2, mmdetection, maskrcnn-benchmark,
CenterNet2, AdelaiDet, DeFCN, PSS and the authors' Double-Head R-CNN, with which
tests/config/test_official_settings.py compares the recipes. Where there is no published number the default is
our own, marked so: such a line only holds that it does not change unnoticed.
"""

import inspect
import math
import operator

import numpy as np
import pytest

from kgarden.backbones import make_backbone
from kgarden.config.instantiate import instantiate
from kgarden.heads.conv_head import ConvHead
from kgarden.heads.dense import DenseHead
from kgarden.heads.fc_head import FCHead
from kgarden.heads.mask_branch import MaskBranch
from kgarden.heads.selection import Selection
from kgarden.heads.tower import Tower
from kgarden.layers.initializers import xavier_fan_in
from kgarden.layers.norm import BatchNorm, GroupNorm
from kgarden.losses.box_iou import bounded_iou_loss
from kgarden.losses.dice import dice_loss
from kgarden.losses.focal import quality_focal_loss, sigmoid_focal_loss
from kgarden.losses.heatmap import heatmap_focal_loss
from kgarden.losses.ltrb_iou import ltrb_iou_loss
from kgarden.losses.product_focal import focal_loss
from kgarden.losses.ranking import ranking_loss
from kgarden.losses.roi import balanced_l1, smooth_l1
from kgarden.models import MODELS
from kgarden.models.double_head import DoubleHead
from kgarden.models.mask_rcnn import MaskHead
from kgarden.ops.anchors import anchor_grid
from kgarden.ops.roi_align import assign_levels, roi_align
from kgarden.optimizers.optimizers import SGD, AdamW
from kgarden.targets.atss import atss_candidates
from kgarden.targets.centernet import center_targets, more_positives
from kgarden.targets.fcos import possible_points
from kgarden.targets.max_iou import MaxIoU
from kgarden.targets.one_to_one import choose, quality

ONE_PERCENT = -math.log(99)  # bias of a class that starts at a probability of 0.01
FOCAL = {"alpha": 0.25, "gamma": 2.0}


def built(name, **settings):
    """A detector of 80 classes, not built; `backbone` is small, since its defaults are not looked at."""
    settings = {"backbone": "resnet18", **settings}
    return instantiate(MODELS[name], settings, "model", num_classes=80, seed=0)


def at(detector, path):
    """`detector.a.b[0].c` for the path "a.b.0.c"; a type for "type", a length for "len"."""
    for step in path.split("."):
        if step == "type":
            detector = type(detector).__name__
        elif step == "len":
            detector = len(detector)
        elif step.lstrip("-").isdigit():
            detector = detector[int(step)]
        elif isinstance(detector, dict):
            detector = detector[step]
        else:
            detector = operator.attrgetter(step)(detector)
    return detector


def parts(prefix, **expected):
    """{"prefix.name": value}; a double underscore stands for a dot."""
    return {f"{prefix}.{name.replace('__', '.')}": value for name, value in expected.items()}


def starts(prefix, bias, stddev=0.01):
    """How an output layer begins."""
    return parts(prefix, bias_initializer__value=bias, kernel_initializer__stddev=stddev)


def towers(number=4, norm="GroupNorm"):
    of_tower = dict(convs__len=number, convs__0__norm__type=norm, convs__0__kernel_initializer__stddev=0.01)
    return parts("dense_head.box_tower", **of_tower) | parts("dense_head.class_tower", **of_tower)


OF_DETECTIONS = parts(
    "selection", score_threshold=0.05, per_level=1000, method="nms", iou=0.6, class_wise=True, total=100
)
OF_ROIS = OF_DETECTIONS | parts("selection", per_level=None, pool=4096, level_wise=False)  # pool: our own
DENSE = OF_DETECTIONS | towers() | starts("dense_head.classes", ONE_PERCENT)
DENSE |= parts("dense_head", scaled=True, sqrt_scores=False, rank_by="class", gate_by="class", clip=True)
DENSE |= {"dense_head.code.kernel_initializer.stddev": 0.01}

FCOS = DENSE | parts(
    "dense_head",
    size_ranges=((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)),
    center_radius=1.5,
    center_of="box",
    centerness_on="box",
    quality="centerness",
    least_weight=1e-6,
    distance="relu",
    box_loss="giou",
    smoothing=None,
    focal=FOCAL,
    weights_of_terms={"class": 1.0, "box": 1.0, "centerness": 1.0},
)
FCOS |= {"neck.relu_before_p7": True}
ATSS = DENSE | parts(
    "dense_head",
    top_k=9,
    anchor_scale=8,
    anchor_offset=0.0,
    crowd_share=None,
    pad_divisor=32,
    count_empty=True,
)
ATSS |= {"neck.relu_before_p7": False, "dense_head.box_loss": "giou"}
OF_ATSS = parts(
    "dense_head",
    box_code="deltas",
    delta_weights=(10.0, 10.0, 5.0, 5.0),
    centerness_on="box",
    focal=FOCAL,
    weights_of_terms={"class": 1.0, "box": 2.0, "centerness": 1.0},
)
OF_GFL = parts(
    "dense_head", reg_max=16, beta=2.0, weights_of_terms={"class": 1.0, "box": 2.0, "distribution": 0.25}
)
RETINANET = DENSE | towers(norm="NoneType") | starts("dense_head.classes", ONE_PERCENT)
RETINANET |= parts(
    "dense_head",
    scaled=False,
    anchors=9,
    anchor_settings__sizes__0=[32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)],
    anchor_settings__ratios=(0.5, 1.0, 2.0),
    anchor_settings__offset=0.0,
    rule=MaxIoU(0.5, 0.4, "all", 0.0),
    normalizer="count_empty",
    ema_momentum=0.9,  # of detectron2, and the start below: as the row "detectron2" uses them
    ema_start=50.0,
    delta_weights=(1.0, 1.0, 1.0, 1.0),
    box_loss="smooth_l1",
    box_beta=0.0,
    focal=FOCAL,
    weights_of_terms={"class": 1.0, "box": 1.0},
)
RETINANET |= {"neck.top": "p6p7_of_c5", "selection.iou": 0.5}

CENTERNET = parts(
    "target_settings",
    size_ranges=((0, 80), (64, 160), (128, 320), (256, 640), (512, 10_000_000)),
    min_overlap=0.8,
    min_radius=4.0,
)
CENTERNET |= parts("focal", alpha=0.25, beta=4.0, gamma=2.0, clamp=1e-4)
CENTERNET |= starts("ltrb", 8.0) | parts("box_tower", convs__len=4, convs__0__norm__type="GroupNorm")
CENTERNET |= {"box_loss": "giou", "weigh_by_heat": False}
ALONE = {f"dense_head.{path}": value for path, value in CENTERNET.items()} | OF_DETECTIONS
ALONE |= starts("dense_head.classes", ONE_PERCENT)
ALONE |= parts(
    "dense_head",
    objectness=None,
    focal__ignore_above=None,
    weights_of_terms={"positive": 1.0, "negative": 1.0, "box": 2.0},
    more_positives={"threshold": 0.2, "top_k": 9},
)
POOLING = parts("roi_head.pool", size=7, settings__sampling_ratio=0, settings__aligned=True)
SAMPLING = parts("roi_head.sampling", iou=0.5, num_samples=512, positive_fraction=0.25)
CENTERNET2 = {f"proposer.head.{path}": value for path, value in CENTERNET.items()} | OF_ROIS | POOLING
CENTERNET2 |= starts("proposer.head.objectness", ONE_PERCENT)
CENTERNET2 |= parts(
    "proposer",
    head__focal__ignore_above=0.85,
    head__more_positives=None,
    head__weights_of_terms={"positive": 0.5, "negative": 0.5, "box": 1.0},
    train__total=2000,
    test__total=256,
    train__per_level=4000,
    test__per_level=1000,
    train__iou=0.9,
    test__iou=0.9,
    train__score_threshold=1e-4,
    test__score_threshold=1e-4,
    train__class_wise=False,
    test__class_wise=False,
)
CENTERNET2 |= SAMPLING | {"selection.iou": 0.7, "roi_head.sampling.iou": 0.6}
CENTERNET2_CASCADE = CENTERNET2 | parts(
    "roi_head",
    type="CascadeHead",
    ious=(0.6, 0.7, 0.8),
    box_loss__keywords={"beta": 0.0},
    coders__2__weights=(30.0, 30.0, 15.0, 15.0),
)

OF_EACH_LEVEL = dict(score_threshold=0.0, iou=0.7, class_wise=False, level_wise=True)
RPN = {
    f"proposer.{when}.{name}": value for when in ("train", "test") for name, value in OF_EACH_LEVEL.items()
}
RPN |= parts(
    "proposer",
    train__per_level=2000,
    train__total=1000,
    test__per_level=1000,
    test__total=1000,
    head__num_samples=256,
    head__positive_fraction=0.5,
    head__anchors=3,
    head__anchor_settings__ratios=(0.5, 1.0, 2.0),
    head__box_tower__convs__len=1,
)
RPN |= starts("proposer.head.classes", 0.0)
OF_FPN = parts("proposer.head", anchor_settings__sizes=[[32], [64], [128], [256], [512]])
BOX_HEAD = parts("roi_head.box_head", features__width=1024, features__layers__len=2, groups=80)
BOX_HEAD |= parts("roi_head.box_head", classes__kernel_initializer__stddev=0.01)
BOX_HEAD |= parts("roi_head.box_head", boxes__kernel_initializer__stddev=0.001)
FASTER = RPN | OF_FPN | OF_ROIS | POOLING | SAMPLING | BOX_HEAD
FASTER |= {"selection.iou": 0.5, "neck.top": "subsample", "neck.levels": [2, 3, 4, 5, 6]}
FASTER |= parts(
    "roi_head",
    pool__chosen=[0, 1, 2, 3],
    coder__weights=(10.0, 10.0, 5.0, 5.0),
    box_loss__keywords={"beta": 0.0},
)
DETECTRON2 = parts(
    "proposer.head", rule=MaxIoU(0.7, 0.3, "own", 0.0), normalizer="slots", box_beta=0.0, straddle=None
)
C4 = RPN | OF_ROIS | SAMPLING | {"roi_head.pool.size": 14, "selection.iou": 0.5, "proposer.head.anchors": 15}
C4 |= parts("proposer", train__per_level=12_000, train__pool=12_000, train__total=2000, train__shared_by=1)
C4 |= parts("proposer", test__per_level=6000)
CASCADE = RPN | OF_FPN | OF_ROIS | POOLING | SAMPLING | {"selection.iou": 0.5, "proposer.train.total": 2000}
CASCADE |= parts(
    "roi_head",
    ious=(0.5, 0.6, 0.7),
    ensemble="logits",
    test_stage=None,
    coders__0__weights=(10.0, 10.0, 5.0, 5.0),
    coders__1__weights=(20.0, 20.0, 10.0, 10.0),
    stage_weights=(1.0, 0.5, 0.25),
)
FSCASCADE = RPN | OF_FPN | OF_ROIS | {"selection.iou": 0.5, "proposer.train.total": 2000}
FSCASCADE |= parts("roi_head.pool.settings", sampling_ratio=2, aligned=False)
FSCASCADE |= parts(
    "roi_head",
    type="FSCascadeHead",
    ious=(0.5, 0.6, 0.7),
    coders__0__weights=(10.0, 10.0, 5.0, 5.0),
    coders__1__weights=(20.0, 20.0, 10.0, 10.0),
    coders__2__weights=(30.0, 30.0, 15.0, 15.0),
    coders__2__plus_one=True,
    box_loss__keywords={"beta": 1.0},
    stage_weights=(1.0, 0.5, 0.25),
    feature_gradient=(1.0, 1.0, 1.0),
    resample=False,
    gt_rois="readd",
    drop_empty=True,
    ensemble="last",
    cfs=True,
    cfs_sum="post_relu",
    cfs_stop_gradient=False,
    cfs_reg_feature="own",
    localisation="lfs",
    lfs_mode="serial",
    lfs_final_relu=True,
    loc_reduce="flatten",
    head_grad_rescale=False,
    box_heads__0__conv_sizes=(3, 3),
    box_heads__2__conv_sizes=(3, 1),
)
BENCHMARK = parts("roi_head.pools.0", settings__sampling_ratio=2, settings__aligned=False)
DOUBLE_HEAD = RPN | OF_FPN | OF_ROIS | SAMPLING | BENCHMARK | {"selection.iou": 0.5}
DOUBLE_HEAD |= parts("proposer.head", box_beta=1 / 9, straddle=0.0, normalizer="sampled", plus_one=True)
DOUBLE_HEAD |= parts(
    "roi_head",
    weights_of_terms={"fc_class": 2.0, "conv_box": 2.5},
    scale_of={"fc": 1.0, "conv": 1.3},
    fusion="complementary",
    box_loss__keywords={"beta": 1.0},
    coder__plus_one=True,
    size=7,
)
SHARED = parts("proposer", train__total=2000, train__shared_by=2, test__total=1000, test__shared_by=1)
DOUBLE_HEAD |= SHARED
EXTENDED = {"roi_head.weights_of_terms": {"fc_class": 1.4, "fc_box": 0.6, "conv_class": 0.5, "conv_box": 2.0}}
MASKS = FASTER | parts(
    "mask_head",
    pool__size=14,
    pool__chosen=[0, 1, 2, 3],
    pool__settings__sampling_ratio=0,
    convs__len=4,
    convs__0__filters=256,
    count=128,
    weight=1.0,
)
CONDINST = parts(
    "mask_head",
    widths=[(10, 8), (8, 8), (8, 1)],
    upsampling=4,
    max_proposals=250,  # our own: half of what the release draws from two images
    sizes=[64, 128, 256, 512, 1024],
    weights_of_terms={"mask": 1.0, "semantic": 1.0},
    branch__levels=3,
    branch__refine__0__filters=128,
    branch__tower__len=4,
    branch__tower__0__norm__type="BatchNorm",
    controller__kernel_initializer__stddev=0.01,
)
CONDINST |= FCOS | parts("dense_head", center_of="mask", smoothing=1.0, sqrt_scores=True, clip=False)
CONDINST |= parts("dense_head", rank_by="score", gate_by="score")
DEFCN = parts(
    "dense_head",
    quality_settings={"alpha": 0.8, "form": "mul"},
    center_radius=1.5,
    matching="hungarian",
    focal=FOCAL,
    weights_of_terms={"class": 1.0, "box": 2.0, "auxiliary": 1.0},
    auxiliary={"top_k": 9},
    max_filter__reach=1,
    max_filter__kernel_size=3,
)
DEFCN |= {"selection.method": "none", "selection.at_most_cells": True, "selection.total": 100}
PSS = parts(
    "dense_head",
    base__weights_of_terms={"class": 1.0, "box": 2.0, "centerness": 1.0},
    weights_of_terms={"class": 1.0, "rank": 0.25},
    ranking={"margin": 0.5, "num_negatives": 100, "negatives": "best_class"},
    focal=FOCAL,
    detach_scores=False,
    selector__tower__convs__len=2,
    selector__feature="reg_feature",
    selector__stop_gradient=True,
)
PSS |= parts("dense_head.assignment", matching="hungarian", form="mul", alpha=0.8, omega="candidates")
PSS |= starts("dense_head.selector.predictor", 0.0)
PSS |= parts("selection", method="none", score_threshold=0.0, per_level=100)

CASES = {
    "fcos": ({}, FCOS),
    "atss": ({}, ATSS | OF_ATSS),
    "gfl": ({}, ATSS | OF_GFL),
    "retinanet": ({}, RETINANET),
    "centernet": ({}, ALONE),
    "centernet2": ({}, CENTERNET2_CASCADE),
    "centernet2 faster": (
        {"roi_head": {"name": "faster"}},
        CENTERNET2 | {"roi_head.type": "FasterHead", "roi_head.box_head.groups": 1},
    ),
    "faster_rcnn": ({}, FASTER | DETECTRON2),
    "faster_rcnn mmdetection": (
        {"convention": "mmdetection"},
        FASTER | parts("proposer.head", rule=MaxIoU(0.7, 0.3, "all", 0.3), normalizer="sampled"),
    ),
    "faster_rcnn maskrcnn_benchmark": (
        {"convention": "maskrcnn_benchmark"},
        SHARED | parts("roi_head.pool.settings", sampling_ratio=2, aligned=False, plus_one=True),
    ),
    "faster_rcnn sigmoid": (
        {"roi_head": {"sigmoid": True}},
        {"roi_head.box_head.classes.bias_initializer.value": ONE_PERCENT},
    ),
    "faster_rcnn_c4": ({}, C4),
    "cascade_rcnn": ({}, CASCADE),
    "cascade_rcnn detectron2": ({"convention": "detectron2"}, {"roi_head.box_loss.keywords": {"beta": 0.0}}),
    "fscascade": ({}, FSCASCADE),
    "double_head": ({}, DOUBLE_HEAD),
    "double_head extended": ({"configuration": "double_head_ext"}, EXTENDED),
    "mask_rcnn": ({}, MASKS),
    "condinst": ({}, CONDINST),
    "defcn": ({}, DEFCN),
    "pss": ({}, PSS),
    "pss one_to_many": ({"prediction": "one_to_many"}, OF_DETECTIONS),
    "pss retinanet": (
        {"base": "retinanet", "prediction": "one_to_many"},
        {"selection.iou": 0.5, "dense_head.assignment.omega": "positives"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_detector(case):
    settings, expected = CASES[case]
    detector = built(case.split()[0], **settings)
    found = {path: at(detector, path) for path in expected}
    wrong = {path: (found[path], value) for path, value in expected.items() if not same(found[path], value)}
    assert not wrong


def same(found, value):
    return found == value or (is_numeric(value) and found == pytest.approx(value))


def is_numeric(value):
    if isinstance(value, list | tuple | dict):
        values = value.values() if isinstance(value, dict) else value
        return all(isinstance(one, int | float) for one in values)
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_scores_of_centernet2_are_fused_as_in_the_release():
    """The geometric mean of the second stage's score and the proposal's, not Eq. 1."""
    scores, proposals = np.float32([[[0.81]]]), {"scores": np.float32([[0.64]]), "probability": None}
    proposals["probability"] = np.float32([[0.4096]])
    fused = built("centernet2").fuse(scores, proposals)
    assert float(fused[0, 0, 0]) == pytest.approx(0.72, rel=1e-5)
    assert built("centernet2", roi_head={"fuse": "off"}).fuse is None


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


ARGUMENTS = [
    # Focal loss, section 4; GFL, section 4; PSS and POTO as RetinaNet.
    (sigmoid_focal_loss, FOCAL),
    (quality_focal_loss, {"beta": 2.0}),
    (focal_loss, FOCAL),
    (ranking_loss, {"margin": 0.5, "num_negatives": 100}),
    (quality, {"alpha": 0.8, "form": "mul"}),
    (choose, {"matching": "hungarian"}),
    (heatmap_focal_loss, {"alpha": 0.25, "beta": 4.0, "gamma": 2.0, "clamp": 1e-4}),
    (center_targets, {"min_overlap": 0.8, "min_radius": 4.0}),
    (more_positives, {"threshold": 0.2, "top_k": 9}),
    (ltrb_iou_loss, {"kind": "giou", "smoothing": 1.0}),
    (atss_candidates, {"top_k": 9}),
    (possible_points, {"radius": 1.5}),
    (MaxIoU, {"positive": 0.7, "negative": 0.3}),
    (anchor_grid, {"offset": 0.0}),
    # Bounded IoU loss and balanced L1 of mmdetection; detectron2's L1; Dice loss of CondInst.
    (bounded_iou_loss, {"beta": 0.2, "epsilon": 1e-3}),
    (balanced_l1, {"beta": 1.0, "alpha": 0.5, "gamma": 1.5}),
    (smooth_l1, {"beta": 0.0}),
    (dice_loss, {"epsilon": 1e-5}),
    # FPN, Eq. 1; ROIAlignV2.
    (roi_align, {"sampling_ratio": 0, "canonical_level": 4, "canonical_size": 224, "aligned": True}),
    (assign_levels, {"canonical_level": 4, "canonical_size": 224}),
    (
        Selection,
        # all but sigma and min_score, which are mmdetection's, are our own
        {"pool": 10_000, "level_wise": False, "sigma": 0.5, "min_score": 0.001, "at_most_cells": False},
    ),
    (DenseHead, {"width": 256, "num_convs": 4, "norm": "gn", "shared_tower": False, "prior": 0.01}),
    (Tower, {"num_convs": 4, "width": 256}),
    (MaskHead, {"width": 256, "num_convs": 4, "count": 128, "weight": 1.0}),
    (MaskBranch, {"levels": 3, "width": 128, "num_convs": 4, "norm": "bn"}),
    (DoubleHead, {"focus": (1.0, 1.0), "weights": (2.0, 2.5), "box_beta": 1.0}),
    (FCHead, {"width": 1024, "num_fcs": 2}),
    (BatchNorm, {"momentum": 0.9, "epsilon": 1e-5}),
    (SGD, {"momentum": 0.9}),
    (AdamW, {"betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.01}),
]


@pytest.mark.parametrize(("function", "expected"), ARGUMENTS, ids=lambda one: getattr(one, "__name__", ""))
def test_arguments(function, expected):
    assert {name: defaults(function)[name] for name in expected} == expected


def test_the_authors_conv_head():
    """Wu et al. 2020, arXiv:1904.06493: five blocks, two of them non-local."""
    head = ConvHead()
    assert (head.count, head.width, head.middle) == (5, 1024, 256)
    assert [type(block).__name__ for block in head.blocks] == ["NonLocal", "Bottleneck"] * 2
    assert (head.blocks[0].mode, head.blocks[0].groups) == ("dot_product", 4)


def test_weights_of_layers_start_as_in_the_references():
    initializer = xavier_fan_in()
    assert (initializer.scale, initializer.mode, initializer.distribution) == (1.0, "fan_in", "uniform")


def test_norms():
    """Group norm has 32 groups; a frozen batch norm keeps its statistics in training."""
    norm = GroupNorm()
    norm.build((None, None, None, 256))
    assert norm.groups == 32
    frozen, plain = BatchNorm(frozen=True), BatchNorm()
    frozen.trainable = True
    assert not frozen.uses_batch(True) and plain.uses_batch(True) and not plain.uses_batch(False)


def test_a_frozen_backbone_does_not_double_its_variance_in_every_block():
    """The last norm of a block starts at 0.2 where it does not normalise (our own), at 1 where it does."""
    for norm, scale in (("frozen_bn", 0.2), ("bn", 1.0)):
        block = make_backbone({"name": "resnet50", "norm": norm}).stage(2)[0]
        assert block.conv3.norm.first_gamma.value == scale and block.conv1.norm.first_gamma.value == 1.0

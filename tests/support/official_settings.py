"""What the keys of published configurations are called here: one table for each project.

A table says, for each key of a project's configurations, what a recipe row has for it, in its units.
`Row` holds the row's effective settings; a value of the table is the dotted key of one, or a function of the
row, or a pair of such a value and a function that translates the reference's value. Three lists take
what cannot be compared:

    fixed           kgarden has no such setting and does always what this value of it says
    idle            keys without effect in some configurations, with the condition
    implementation  keys that say how a program works, not what it learns or detects
"""

import functools
import json
import math
import re
from typing import NamedTuple

import keras
import numpy as np
from support.effective_settings import effective

from kgarden.build import build_optimizer, learning_rate_of
from kgarden.config.loading import load_recipe
from kgarden.ops.anchors import anchor_grid

EPOCH = 7330  # steps of an epoch of COCO train2017, images with objects, 16 a batch
KINDS = {"kernel": "kernel", "bias": "bias", "norm_scale": "gamma", "norm_shift": "beta", "scalar": "scales"}


class Table(NamedTuple):
    """See the head of this file; keys of `idle` and `implementation` are patterns."""

    keys: dict
    fixed: dict
    idle: tuple
    implementation: dict


class Row:
    """A recipe row: `row[dotted key]` is the setting in force, `row.get` one that may not exist."""

    def __init__(self, stem, row):
        self.stem, self.name = stem, row
        self.settings = effective(stem, row)
        self.recipe = load_recipe(stem, row=row)
        self.rate = learning_rate_of(self.recipe)

    def __getitem__(self, key):
        return self.settings[key]

    def get(self, key, default=None):
        return self.settings.get(key, default)

    def of_head(self, key):
        """A setting of the dense head, alone or as a proposer."""
        part = "model.dense_head" if "model.dense_head.class" in self.settings else "model.proposer.head"
        return self.settings.get(f"{part}.{key}")

    def of_boxes(self, key):
        """A setting of the box head, the first one of a cascade."""
        cascade = "model.roi_head.box_heads.0.class" in self.settings
        return self.settings.get(f"model.roi_head.{'box_heads.0' if cascade else 'box_head'}.{key}")

    @property
    def is_c4(self):
        return self["model.neck.class"] == "LastLevel"

    @functools.cached_property
    def rules(self):
        """{kind of parameter: (factor on the learning rate, weight decay)} by the row's optimizer."""
        optimizer = build_optimizer(self.recipe)
        variables = [keras.Variable(np.zeros(1, "float32"), name=name) for name in KINDS.values()]
        optimizer.build(variables)
        return dict(zip(KINDS, zip(optimizer.lr_factors, optimizer.decays, strict=True), strict=True))

    def anchors(self):
        """Boxes of the anchors of the first cell of each level."""
        settings = {
            name: self.of_head(f"anchor_settings.{name}") for name in ("strides", "sizes", "ratios", "offset")
        }
        settings["size_major"] = self.of_head("anchor_settings.size_major")
        settings["form"] = self.of_head("anchor_settings.form")
        boxes = anchor_grid([(1, 1)] * len(settings["strides"]), **settings).boxes
        return {
            str(level): part.tolist() for level, part in enumerate(np.split(boxes, len(settings["strides"])))
        }


# --- words that several tables share ----------------------------------------------------------------------


def short_sides(row):
    return row["data.short_side_px"]


def test_side(row):
    return row["data.test_short_side_px"] or max(short_sides(row))


def test_long_side(row):
    return row["data.test_long_side_px"] or row["data.long_side_px"]


def flips(row):
    return [one["horizontal_flip"] for one in row["augment"] if "horizontal_flip" in one]


def flip_probability(row):
    """The augmentation's own default is a half."""
    return sum(settings.get("probability", 0.5) for settings in flips(row))


def levels_of(strides):
    return [f"p{int(math.log2(stride))}" for stride in strides]


def stages(row):
    """The backbone's stages that are read."""
    first = row["model.backbone.last_stage"] if row.is_c4 else row["model.neck.levels"][0]
    return [f"res{stage}" for stage in range(first, row["model.backbone.last_stage"] + 1)]


def anchor_levels(row):
    return stages(row) if row.is_c4 else levels_of(row.of_head("strides"))


def roi_levels(row):
    return stages(row) if row.is_c4 else levels_of(row["model.roi_head.pool.strides"])


def of_both(key):
    """A setting that proposals have alike in training and in testing."""

    def value(row):
        train, test = (row[f"model.proposer.{when}.{key}"] for when in ("train", "test"))
        return train if train == test else [train, test]

    return value


def thresholds(row):
    return [row.of_head("rule.negative"), row.of_head("rule.positive")]


def delta_weights(row):
    stage = "coders.0" if "model.roi_head.coders.0.weights" in row.settings else "coder"
    return row[f"model.roi_head.{stage}.weights"]


def clips(row):
    return any(row[f"schedule.optimizer.clip_{by}"] is not None for by in ("value", "norm"))


def decay_of_norms(row):
    return row["schedule.optimizer.weight_decay"] if row["schedule.optimizer.decay_norms"] else 0.0


def method_is(name):
    return lambda row: row["model.selection.method"] == name


def head(key):
    return lambda row: row.of_head(key)


def boxes(key):
    return lambda row: row.of_boxes(key)


def upper(key):
    return lambda row: (row.of_head(key) or "").upper()


def has(key):
    return lambda row: row.get(key) is not None


def frozen_parts(row):
    return ["stem", *(f"res{stage}" for stage in range(2, row["model.backbone.freeze_at"] + 1))]


STAGE_NAMES = {"conv1": "stem", **{f"layer{number}": f"res{number + 1}" for number in range(1, 5)}}


def stage_of(names):
    """Stages in the names of a reference's modules."""
    found = {
        word for name in names for word in name.split(".") if re.fullmatch(r"stem|res\d|layer\d|conv1", word)
    }
    return sorted({STAGE_NAMES.get(word, word) for word in found} - ({"conv1"} if "stem" in found else set()))


def learned_norms(row):
    """Parts whose norms learn scale and shift."""
    found = {tower: row.of_head(f"{tower}.norm") for tower in ("box_tower", "class_tower")}
    found["conv head"] = row.get("model.roi_head.branches.conv.features.norm")
    found["backbone"] = row["model.backbone.norm"] != "frozen_bn"
    return sorted(part for part, learns in found.items() if learns)


NORM_PARTS = {"bbox_tower": "box_tower", "cls_tower": "class_tower", "feature_extractor": "conv head"}


def norm_parts(names):
    return sorted({NORM_PARTS.get(name.split(".")[-1], name.split(".")[0]) for name in names})


def rules_of(kinds):
    """Translates optimizer rules by the reference's kinds of parameters."""
    words = {
        "weight": "kernel",
        "bias": "bias",
        "scale": "norm_scale",
        "shift": "norm_shift",
        "other": "scalar",
    }
    return {words[kind.split()[0]]: [list(one) for one in rule] for kind, rule in kinds.items()}


# --- the words of the files themselves --------------------------------------------------------------------

COMMON = {
    "base_lr": "schedule.base_lr",
    "momentum": "schedule.optimizer.momentum",
    "batch_size": "data.batch_size",
    "warmup_steps": "schedule.warmup.steps",
    "warmup_factor": "schedule.warmup.factor",
    "warmup_kind": (lambda row: "linear", lambda kind: {"LinearLR": "linear"}.get(kind, kind)),
    "steps": "schedule.steps",
    "decay_at": "schedule.decay.at",
    "epochs": lambda row: row["schedule.steps"] / EPOCH,
    "decay_epochs": lambda row: [step / EPOCH for step in row["schedule.decay.at"]],
    "decay_factor": "schedule.decay.factor",
    "clip_norm": "schedule.optimizer.clip_norm",
    "clip_value": "schedule.optimizer.clip_value",
    "clip_enabled": clips,
    "pixel_mean": "model.pixels.mean",
    "pixel_std": "model.pixels.std",
    "pixel_order": "model.pixels.order",
    "train_short_sides": short_sides,
    "train_long_side": "data.long_side_px",
    "test_short_side": test_side,
    "test_long_side": test_long_side,
    "flip_probability": flip_probability,
    "freeze_at": "model.backbone.freeze_at",
    "trunk_norm": lambda row: {
        "scale_and_shift_train": row["model.backbone.norm"] != "frozen_bn",
        "statistics": "stored" if row["model.backbone.norm"] == "frozen_bn" else "batch",
    },
    "stride_in_1x1": "model.backbone.stride_in_1x1",
    "score_threshold": "model.selection.score_threshold",
    "per_level": "model.selection.per_level",
    "nms_iou": (
        lambda row: row["model.selection.iou"] if method_is("nms")(row) else None,
        lambda iou: None if iou == 1.0 else iou,  # no IoU is above 1
    ),
    "detections": "model.selection.total",
    "gate": "model.dense_head.gate_by",
    "weight_decay": "schedule.optimizer.weight_decay",
    "weight_decay_norm": decay_of_norms,
    "proposals": lambda row: {
        "score_threshold": row["model.proposer.test.score_threshold"],
        **{
            f"{word}_{when}": row[f"model.proposer.{when}.{key}"]
            for word, key in (("per_level", "per_level"), ("nms_iou", "iou"), ("total", "total"))
            for when in ("train", "test")
        },
    },
}


# --- detectron2, and what is built on it: AdelaiDet, CenterNet2 -------------------------------------------

TOPS = {
    "build_resnet_fpn_backbone": "subsample",
    "build_retinanet_resnet_fpn_backbone": "p6p7_of_c5",
    "build_fcos_resnet_fpn_backbone": "p6p7_of_p5",
    "build_p67_resnet_fpn_backbone": "p6p7_of_p5",
    "build_resnet_backbone": None,
}
NORMS = {"FrozenBN": "frozen_bn", "BN": "bn", "GN": "gn", "": None}
ARCHITECTURES = {
    "GeneralizedRCNN": "TwoStage",
    "RetinaNet": "RetinaNetHead",
    "OneStageDetector": "FCOSHead",
    "CondInst": "CondInst",
    "CenterNetDetector": "CenterNetHead",
}


def architecture(row):
    if "model.proposer.class" in row.settings:
        return "TwoStage"
    masks = row.get("model.mask_head.class")
    return "CondInst" if masks == "CondInst" else row["model.dense_head.class"]


def coco_or_voc(key):
    """Names of data sets as detectron2 has them."""

    def names(row):
        found = []
        for source in row[f"data.{key}"]:
            if source["format"] == "voc":
                found.append(f"voc_{source['root'][-4:]}_{source['split']}")
            else:
                found.append("coco_2017_" + re.sub(r"\d+$", "", source["glob"].split("/")[-1]))
        return found

    return names


ROI_HEADS = {"StandardROIHeads": "FasterHead", "CascadeROIHeads": "CascadeHead", "Res5ROIHeads": "C4Head"}
ROI_HEADS |= {"CustomROIHeads": "FasterHead", "CustomCascadeROIHeads": "CascadeHead"}

DETECTRON2 = {
    "MODEL.META_ARCHITECTURE": (architecture, ARCHITECTURES.get),
    "MODEL.MASK_ON": has("model.mask_head.class"),
    "MODEL.BACKBONE.NAME": (lambda row: row.get("model.neck.top"), TOPS.get),
    "MODEL.BACKBONE.FREEZE_AT": "model.backbone.freeze_at",
    "MODEL.RESNETS.DEPTH": "model.backbone.depth",
    "MODEL.RESNETS.OUT_FEATURES": stages,
    "MODEL.RESNETS.NUM_GROUPS": "model.backbone.groups",
    "MODEL.RESNETS.NORM": ("model.backbone.norm", NORMS.get),
    "MODEL.RESNETS.WIDTH_PER_GROUP": "model.backbone.width_per_group",
    "MODEL.RESNETS.STRIDE_IN_1X1": "model.backbone.stride_in_1x1",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": lambda row: row["model.backbone.widths"][1],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": lambda row: row["model.backbone.widths"][0],
    "MODEL.FPN.IN_FEATURES": lambda row: [] if row.is_c4 else stages(row),
    "MODEL.FPN.OUT_CHANNELS": "model.neck.channels",
    "MODEL.PIXEL_MEAN": "model.pixels.mean",
    "MODEL.PIXEL_STD": "model.pixels.std",
    "INPUT.FORMAT": ("model.pixels.order", str.lower),
    "MODEL.PROPOSAL_GENERATOR.NAME": (head("class"), {"RPN": "RPNHead", "CenterNet": "CenterNetHead"}.get),
    "MODEL.ANCHOR_GENERATOR.SIZES": head("anchor_settings.sizes"),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": lambda row: [row.of_head("ratios")],
    "MODEL.ANCHOR_GENERATOR.OFFSET": head("anchor_settings.offset"),
    "MODEL.RPN.IN_FEATURES": anchor_levels,
    "MODEL.RPN.BOUNDARY_THRESH": (head("straddle"), lambda px: None if px < 0 else px),
    "MODEL.RPN.IOU_THRESHOLDS": thresholds,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "model.proposer.head.num_samples",
    "MODEL.RPN.POSITIVE_FRACTION": "model.proposer.head.positive_fraction",
    "MODEL.RPN.SMOOTH_L1_BETA": "model.proposer.head.box_beta",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "model.proposer.train.per_level",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "model.proposer.test.per_level",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "model.proposer.train.total",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "model.proposer.test.total",
    "MODEL.RPN.NMS_THRESH": of_both("iou"),
    "MODEL.RPN.CONV_DIMS": (head("box_tower.num_convs"), len),
    "MODEL.ROI_HEADS.NAME": ("model.roi_head.class", ROI_HEADS.get),
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.num_classes",
    "MODEL.ROI_HEADS.IN_FEATURES": roi_levels,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": lambda row: [row["model.roi_head.sampling.iou"]],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "model.roi_head.sampling.num_samples",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "model.roi_head.sampling.positive_fraction",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "model.selection.score_threshold",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "model.selection.iou",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": delta_weights,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "model.roi_head.box_loss",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": "model.roi_head.box_beta",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "model.roi_head.pool.size",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "model.roi_head.pool.settings.sampling_ratio",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("model.roi_head.pool.settings.aligned", {"ROIAlignV2": True}.get),
    "MODEL.ROI_BOX_HEAD.NUM_FC": lambda row: row.of_boxes("features.num_fcs") or 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": boxes("features.width"),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": lambda row: row.of_boxes("features.num_convs") or 0,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": boxes("class_agnostic"),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": boxes("sigmoid"),
    "MODEL.ROI_BOX_HEAD.MULT_PROPOSAL_SCORE": has("model.fuse"),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": lambda row: [
        row[f"model.roi_head.coders.{stage}.weights"] for stage in range(3)
    ],
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": "model.roi_head.ious",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "model.mask_head.pool.size",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "model.mask_head.num_convs",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "model.mask_head.width",
    "MODEL.ROI_MASK_HEAD.NORM": ("model.mask_head.norm", NORMS.get),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": "model.mask_head.class_agnostic",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("model.mask_head.pool.settings.aligned", {"ROIAlignV2": True}.get),
    "MODEL.RETINANET.NUM_CLASSES": "model.num_classes",
    "MODEL.RETINANET.IN_FEATURES": anchor_levels,
    "MODEL.RETINANET.NUM_CONVS": "model.dense_head.num_convs",
    "MODEL.RETINANET.IOU_THRESHOLDS": thresholds,
    "MODEL.RETINANET.PRIOR_PROB": "model.dense_head.prior",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "model.selection.score_threshold",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "model.selection.per_level",
    "MODEL.RETINANET.NMS_THRESH_TEST": "model.selection.iou",
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": "model.dense_head.delta_weights",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": "model.dense_head.focal.gamma",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": "model.dense_head.focal.alpha",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": "model.dense_head.box_beta",
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "model.dense_head.box_loss",
    "MODEL.RETINANET.NORM": ("model.dense_head.norm", NORMS.get),
    "SOLVER.LR_SCHEDULER_NAME": ("schedule.decay.name", {"WarmupMultiStepLR": "steps"}.get),
    "SOLVER.MAX_ITER": "schedule.steps",
    "SOLVER.BASE_LR": "schedule.base_lr",
    "SOLVER.MOMENTUM": "schedule.optimizer.momentum",
    "SOLVER.WEIGHT_DECAY": "schedule.optimizer.weight_decay",
    "SOLVER.WEIGHT_DECAY_NORM": decay_of_norms,
    "SOLVER.WEIGHT_DECAY_BIAS": ("schedule.optimizer.decay_biases", lambda decay: decay is None),
    "SOLVER.BIAS_LR_FACTOR": "schedule.optimizer.bias_lr_factor",
    "SOLVER.GAMMA": "schedule.decay.factor",
    "SOLVER.STEPS": "schedule.decay.at",
    "SOLVER.WARMUP_FACTOR": "schedule.warmup.factor",
    "SOLVER.WARMUP_ITERS": "schedule.warmup.steps",
    "SOLVER.IMS_PER_BATCH": "data.batch_size",
    "SOLVER.CLIP_GRADIENTS.ENABLED": clips,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": lambda row: "norm" if row["schedule.optimizer.clip_norm"] else "value",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "schedule.optimizer.clip_value",
    "SOLVER.AMP.ENABLED": lambda row: row["precision"] != "float32",
    "INPUT.MIN_SIZE_TRAIN": short_sides,
    "INPUT.MAX_SIZE_TRAIN": "data.long_side_px",
    "INPUT.MIN_SIZE_TEST": test_side,
    "INPUT.MAX_SIZE_TEST": test_long_side,
    "INPUT.RANDOM_FLIP": lambda row: "horizontal" if flips(row) else "none",
    "INPUT.HFLIP_TRAIN": lambda row: bool(flips(row)),
    "INPUT.MASK_FORMAT": lambda row: "bitmap",
    "DATASETS.TRAIN": coco_or_voc("train"),
    "DATASETS.TEST": coco_or_voc("val"),
    "DATALOADER.SAMPLER_TRAIN": ("data.sampling.name", {"TrainingSampler": "natural"}.get),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": lambda row: not row["data.keep_empty"],
    "TEST.DETECTIONS_PER_IMAGE": "model.selection.total",
}

DETECTRON2_FIXED = {
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
    "MODEL.BACKBONE.ANTI_ALIAS": False,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.RPN.IOU_LABELS": [0, -1, 1],
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.RPN.BBOX_REG_WEIGHTS": [1.0] * 4,
    "MODEL.RPN.LOSS_WEIGHT": 1.0,
    "MODEL.RETINANET.IOU_LABELS": [0, -1, 1],
    "MODEL.ROI_HEADS.IOU_LABELS": [0, 1],
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_EQL_LOSS": False,
    "SOLVER.NESTEROV": False,
    "SOLVER.WARMUP_METHOD": "linear",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.CROP.ENABLED": False,
    "INPUT.IS_ROTATE": False,
    "INPUT.CUSTOM_AUG": "",
    "INPUT.TEST_INPUT_TYPE": "default",
    "INPUT.NOT_CLAMP_BOX": False,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
}


def is_one_stage(theirs):
    return theirs["MODEL.META_ARCHITECTURE"] in (
        "CenterNetDetector",
        "RetinaNet",
        "OneStageDetector",
        "CondInst",
    )


def without_res5_head(theirs):
    return theirs.get("MODEL.ROI_HEADS.NAME") == "Res5ROIHeads"


DETECTRON2_IDLE = (
    (r"MODEL\.ROI_.*", is_one_stage, "no second stage"),
    (r"MODEL\.ANCHOR_GENERATOR\..*", lambda c: "CENTERNET" in str(c.keys()), "no anchors"),
    (r"MODEL\.FPN\.(OUT_CHANNELS|NORM|FUSE_TYPE)", without_res5_head, "no pyramid"),
    (r"MODEL\.ROI_BOX_HEAD\.(FC_DIM|CONV_DIM|NORM)", without_res5_head, "res5 is the head"),
    (r"MODEL\.ROI_BOX_HEAD\.CONV_DIM", lambda c: c["MODEL.ROI_BOX_HEAD.NUM_CONV"] == 0, "no convolution"),
    (
        r"MODEL\.ROI_BOX_HEAD\.(FED_.*|PRIOR_PROB|EQL_.*|CAT_.*)",
        lambda c: not c["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"],
        "of sigmoid losses on LVIS",
    ),
    (
        r"MODEL\.ROI_BOX_CASCADE_HEAD\..*",
        lambda c: "Cascade" not in c["MODEL.ROI_HEADS.NAME"],
        "no cascade",
    ),
    (
        r"MODEL\.RESNETS\.DEFORM_.*",
        lambda c: not any(c["MODEL.RESNETS.DEFORM_ON_PER_STAGE"]),
        "not deformable",
    ),
    (
        r"SOLVER\.CLIP_GRADIENTS\.(?!ENABLED).*",
        lambda c: not c["SOLVER.CLIP_GRADIENTS.ENABLED"],
        "no clipping",
    ),
    (
        r"SOLVER\.CLIP_GRADIENTS\.NORM_TYPE",
        lambda c: c["SOLVER.CLIP_GRADIENTS.CLIP_TYPE"] == "value",
        "clipped by value",
    ),
    (r"SOLVER\.(BASE_LR_END|NUM_DECAYS|RESCALE_INTERVAL)", lambda c: True, "of other schedules"),
    (r"INPUT\.CROP\..*", lambda c: not c["INPUT.CROP.ENABLED"], "no crops"),
    (
        r"INPUT\.(TRAIN_SIZE|TEST_SIZE|SCALE_RANGE)",
        lambda c: not c.get("INPUT.CUSTOM_AUG"),
        "of its own crops",
    ),
    (r"INPUT\.MASK_FORMAT", lambda c: not c["MODEL.MASK_ON"], "no masks"),
    (r"DATALOADER\.REPEAT_.*", lambda c: True, "of repeat-factor sampling"),
    (r"MODEL\.ANCHOR_GENERATOR\.ANGLES", lambda c: True, "of rotated boxes"),
)

DETECTRON2_IMPLEMENTATION = {
    r"VERSION|VIS_THRESH|DATALOADER\.NUM_WORKERS": "of the program",
    r"SOLVER\.(CHECKPOINT_PERIOD|REFERENCE_WORLD_SIZE|RESET_ITER|TRAIN_ITER)": "of the program",
    r"MODEL\.(ANCHOR_GENERATOR\.NAME|RPN\.HEAD_NAME|ROI_(BOX|MASK)_HEAD\.NAME)": "name of a class",
}

ADELAIDET = {
    "MODEL.FCOS.NUM_CLASSES": "model.num_classes",
    "MODEL.FCOS.IN_FEATURES": anchor_levels,
    "MODEL.FCOS.FPN_STRIDES": "model.dense_head.strides",
    "MODEL.FCOS.PRIOR_PROB": "model.dense_head.prior",
    "MODEL.FCOS.INFERENCE_TH_TEST": "model.selection.score_threshold",
    "MODEL.FCOS.NMS_TH": "model.selection.iou",
    "MODEL.FCOS.PRE_NMS_TOPK_TEST": "model.selection.per_level",
    "MODEL.FCOS.POST_NMS_TOPK_TEST": "model.selection.total",
    "MODEL.FCOS.TOP_LEVELS": lambda row: sum(level > 5 for level in row["model.neck.levels"]),
    "MODEL.FCOS.NORM": ("model.dense_head.norm", NORMS.get),
    "MODEL.FCOS.USE_SCALE": "model.dense_head.scaled",
    "MODEL.FCOS.BOX_QUALITY": ("model.dense_head.quality", {"ctrness": "centerness", "iou": "iou"}.get),
    "MODEL.FCOS.THRESH_WITH_CTR": lambda row: row["model.dense_head.gate_by"] == "score",
    "MODEL.FCOS.LOSS_ALPHA": "model.dense_head.focal.alpha",
    "MODEL.FCOS.LOSS_GAMMA": "model.dense_head.focal.gamma",
    "MODEL.FCOS.LOSS_WEIGHT_CLS": "model.dense_head.weights_of_terms.class",
    "MODEL.FCOS.SIZES_OF_INTEREST": lambda row: [top for _, top in row["model.dense_head.size_ranges"]][:-1],
    "MODEL.FCOS.USE_RELU": lambda row: row["model.dense_head.distance"] == "relu",
    "MODEL.FCOS.NUM_CLS_CONVS": "model.dense_head.class_tower.num_convs",
    "MODEL.FCOS.NUM_BOX_CONVS": "model.dense_head.box_tower.num_convs",
    "MODEL.FCOS.CENTER_SAMPLE": has("model.dense_head.center_radius"),
    "MODEL.FCOS.POS_RADIUS": "model.dense_head.center_radius",
    "MODEL.FCOS.LOC_LOSS_TYPE": "model.dense_head.box_loss",
    "MODEL.CONDINST.MASK_OUT_STRIDE": lambda row: (
        row["model.mask_head.strides"][0] / row["model.mask_head.upsampling"]
    ),
    "MODEL.CONDINST.MAX_PROPOSALS": (lambda row: 2 * row["model.mask_head.max_proposals"]),  # of two images
    "MODEL.CONDINST.TOPK_PROPOSALS_PER_IM": (
        "model.mask_head.topk_proposals",
        lambda count: None if count < 0 else count,
    ),
    "MODEL.CONDINST.MASK_HEAD.CHANNELS": "model.mask_head.channels",
    "MODEL.CONDINST.MASK_HEAD.NUM_LAYERS": "model.mask_head.num_layers",
    "MODEL.CONDINST.MASK_HEAD.DISABLE_REL_COORDS": lambda row: not row["model.mask_head.coordinates"],
    "MODEL.CONDINST.MASK_BRANCH.OUT_CHANNELS": "model.mask_head.bases",
    "MODEL.CONDINST.MASK_BRANCH.IN_FEATURES": lambda row: levels_of(row["model.dense_head.strides"])[
        : row["model.mask_head.branch.levels"]
    ],
    "MODEL.CONDINST.MASK_BRANCH.CHANNELS": "model.mask_head.branch.width",
    "MODEL.CONDINST.MASK_BRANCH.NORM": ("model.mask_head.branch.norm", NORMS.get),
    "MODEL.CONDINST.MASK_BRANCH.NUM_CONVS": "model.mask_head.branch.num_convs",
    "MODEL.CONDINST.MASK_BRANCH.SEMANTIC_LOSS_ON": has("model.mask_head.semantic.class"),
}
ADELAIDET_FIXED = {
    "MODEL.FCOS.LOSS_NORMALIZER_CLS": "fg",
    "MODEL.FCOS.USE_DEFORMABLE": False,
    "MODEL.FCOS.NUM_SHARE_CONVS": 0,
    "MODEL.FCOS.YIELD_PROPOSAL": False,
    "MODEL.FCOS.YIELD_BOX_FEATURES": False,
    "MODEL.CONDINST.BOTTOM_PIXELS_REMOVED": -1,
}
ADELAIDET_IDLE = (
    (r"MODEL\.FCOS\.\w*_TRAIN", lambda c: not c["MODEL.FCOS.YIELD_PROPOSAL"], "of proposals in training"),
    (r"INPUT\.CROP\.CROP_INSTANCE", lambda c: not c["INPUT.CROP.ENABLED"], "no crops"),
)
ADELAIDET_IMPLEMENTATION = {r"MODEL\.CONDINST\.MASK_HEAD\.USE_FP16": "precision is a recipe's own"}


def of_proposals(when, key):
    """A setting of CenterNet's selection, which is the final one where there is no second stage."""

    def value(row):
        part = f"model.proposer.{when}" if "model.proposer.class" in row.settings else "model.selection"
        return row[f"{part}.{key}"]

    return value


CENTERNET2 = {
    "MODEL.CENTERNET.NUM_CLASSES": "model.num_classes",
    "MODEL.CENTERNET.IN_FEATURES": anchor_levels,
    "MODEL.CENTERNET.FPN_STRIDES": head("strides"),
    "MODEL.CENTERNET.PRIOR_PROB": head("prior"),
    "MODEL.CENTERNET.INFERENCE_TH": of_proposals("test", "score_threshold"),
    "MODEL.CENTERNET.CENTER_NMS": lambda row: of_proposals("test", "method")(row) == "peaks",
    "MODEL.CENTERNET.NOT_NMS": lambda row: of_proposals("test", "method")(row) == "none",
    "MODEL.CENTERNET.NMS_TH_TRAIN": of_proposals("train", "iou"),
    "MODEL.CENTERNET.NMS_TH_TEST": of_proposals("test", "iou"),
    "MODEL.CENTERNET.PRE_NMS_TOPK_TRAIN": of_proposals("train", "per_level"),
    "MODEL.CENTERNET.POST_NMS_TOPK_TRAIN": of_proposals("train", "total"),
    "MODEL.CENTERNET.PRE_NMS_TOPK_TEST": of_proposals("test", "per_level"),
    "MODEL.CENTERNET.POST_NMS_TOPK_TEST": of_proposals("test", "total"),
    "MODEL.CENTERNET.NORM": upper("box_tower.norm"),
    "MODEL.CENTERNET.NUM_CLS_CONVS": head("class_tower.num_convs"),
    "MODEL.CENTERNET.NUM_BOX_CONVS": head("box_tower.num_convs"),
    "MODEL.CENTERNET.LOC_LOSS_TYPE": head("box_loss"),
    "MODEL.CENTERNET.SIGMOID_CLAMP": head("focal.clamp"),
    "MODEL.CENTERNET.HM_MIN_OVERLAP": head("target_settings.min_overlap"),
    "MODEL.CENTERNET.MIN_RADIUS": head("target_settings.min_radius"),
    "MODEL.CENTERNET.SOI": head("target_settings.size_ranges"),
    "MODEL.CENTERNET.POS_WEIGHT": head("weights_of_terms.positive"),
    "MODEL.CENTERNET.NEG_WEIGHT": head("weights_of_terms.negative"),
    "MODEL.CENTERNET.REG_WEIGHT": head("weights_of_terms.box"),
    "MODEL.CENTERNET.HM_FOCAL_BETA": head("focal.beta"),
    "MODEL.CENTERNET.HM_FOCAL_ALPHA": head("focal.alpha"),
    "MODEL.CENTERNET.LOSS_GAMMA": head("focal.gamma"),
    "MODEL.CENTERNET.WITH_AGN_HM": lambda row: bool(row.of_head("objectness.class")),
    "MODEL.CENTERNET.ONLY_PROPOSAL": lambda row: row.of_head("num_classes") is None,
    "MODEL.CENTERNET.IGNORE_HIGH_FP": (head("focal.ignore_above"), lambda p: None if p < 0 else p),
    "MODEL.CENTERNET.MORE_POS": lambda row: row.of_head("more_positives.top_k") is not None,
    "MODEL.CENTERNET.MORE_POS_THRESH": head("more_positives.threshold"),
    "MODEL.CENTERNET.MORE_POS_TOPK": head("more_positives.top_k"),
    "MODEL.CENTERNET.NOT_NORM_REG": lambda row: not row.of_head("weigh_by_heat"),
}
CENTERNET2_FIXED = {
    "MODEL.CENTERNET.NUM_SHARE_CONVS": 0,
    "MODEL.CENTERNET.AS_PROPOSAL": False,
    "MODEL.CENTERNET.NO_REDUCE": False,
    "MODEL.CENTERNET.USE_DEFORMABLE": False,
}
CENTERNET2_IDLE = (
    (r"MODEL\.CENTERNET\.\w*_TRAIN", is_one_stage, "no proposals"),
    (r"MODEL\.CENTERNET\.MORE_POS_.*", lambda c: not c["MODEL.CENTERNET.MORE_POS"], "no more positives"),
    (r"MODEL\.CENTERNET\.NUM_CLS_CONVS", lambda c: c["MODEL.CENTERNET.ONLY_PROPOSAL"], "no class tower"),
    *ADELAIDET_IDLE[1:],
)


# --- cvpods, as DeFCN uses it -----------------------------------------------------------------------------


def resized(row):
    """cvpods' pipelines of a row."""
    sides = {"max_size": row["data.long_side_px"], "sample_style": "choice"}
    train = ["ResizeShortestEdge", {"short_edge_length": short_sides(row), **sides}]
    return [train, *(["RandomFlip", {}] for _ in flips(row))]


def resized_for_test(row):
    sides = {"max_size": test_long_side(row), "sample_style": "choice"}
    return [["ResizeShortestEdge", {"short_edge_length": test_side(row), **sides}]]


def defcn_branch(key):
    return lambda row: row.get(f"model.dense_head.{key}")


def cvpods_ranges(ranges):
    """The last range is open."""
    return [[low, 1e8 if high == "inf" else high] for low, high in ranges]


DEFCN = {
    **{
        key: DETECTRON2[key]
        for key in DETECTRON2
        if key.startswith(("MODEL.RESNETS", "MODEL.FPN", "MODEL.PIX"))
    },
    "MODEL.MASK_ON": has("model.mask_head.class"),
    "MODEL.BACKBONE.FREEZE_AT": "model.backbone.freeze_at",
    "MODEL.FCOS.NUM_CLASSES": "model.num_classes",
    "MODEL.FCOS.IN_FEATURES": anchor_levels,
    "MODEL.FCOS.NUM_CONVS": "model.dense_head.num_convs",
    "MODEL.FCOS.FPN_STRIDES": "model.dense_head.strides",
    "MODEL.FCOS.PRIOR_PROB": "model.dense_head.prior",
    "MODEL.FCOS.CENTERNESS_ON_REG": lambda row: row["model.dense_head.centerness_on"] == "box",
    "MODEL.FCOS.NORM_REG_TARGETS": lambda row: row["model.dense_head.distance"] == "relu",
    "MODEL.FCOS.SCORE_THRESH_TEST": "model.selection.score_threshold",
    "MODEL.FCOS.TOPK_CANDIDATES_TEST": "model.selection.per_level",
    "MODEL.FCOS.NMS_THRESH_TEST": "model.selection.iou",
    "MODEL.FCOS.FOCAL_LOSS_GAMMA": "model.dense_head.focal.gamma",
    "MODEL.FCOS.FOCAL_LOSS_ALPHA": "model.dense_head.focal.alpha",
    "MODEL.FCOS.IOU_LOSS_TYPE": "model.dense_head.box_loss",
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": "model.dense_head.center_radius",
    "MODEL.FCOS.OBJECT_SIZES_OF_INTEREST": ("model.dense_head.size_ranges", cvpods_ranges),
    "MODEL.FCOS.REG_WEIGHT": "model.dense_head.weights_of_terms.box",
    "MODEL.NMS_TYPE": ("model.selection.method", lambda name: "nms" if name else "none"),
    "MODEL.POTO.ALPHA": defcn_branch("quality_settings.alpha"),
    "MODEL.POTO.CENTER_SAMPLING_RADIUS": defcn_branch("center_radius"),
    "MODEL.POTO.AUX_TOPK": defcn_branch("auxiliary.top_k"),
    "MODEL.POTO.FILTER_KERNEL_SIZE": defcn_branch("max_filter.kernel_size"),
    "MODEL.POTO.FILTER_TAU": defcn_branch("max_filter.tau"),
    "SOLVER.LR_SCHEDULER.NAME": ("schedule.decay.name", {"WarmupMultiStepLR": "steps"}.get),
    "SOLVER.LR_SCHEDULER.MAX_ITER": "schedule.steps",
    "SOLVER.LR_SCHEDULER.STEPS": "schedule.decay.at",
    "SOLVER.LR_SCHEDULER.WARMUP_FACTOR": "schedule.warmup.factor",
    "SOLVER.LR_SCHEDULER.WARMUP_ITERS": "schedule.warmup.steps",
    "SOLVER.LR_SCHEDULER.GAMMA": "schedule.decay.factor",
    "SOLVER.OPTIMIZER.NAME": ("schedule.optimizer.name", {"D2SGD": "sgd"}.get),
    "SOLVER.OPTIMIZER.BASE_LR": "schedule.base_lr",
    "SOLVER.OPTIMIZER.BIAS_LR_FACTOR": "schedule.optimizer.bias_lr_factor",
    "SOLVER.OPTIMIZER.WEIGHT_DECAY": "schedule.optimizer.weight_decay",
    "SOLVER.OPTIMIZER.WEIGHT_DECAY_NORM": decay_of_norms,
    "SOLVER.OPTIMIZER.MOMENTUM": "schedule.optimizer.momentum",
    "SOLVER.CLIP_GRADIENTS.ENABLED": clips,
    "SOLVER.IMS_PER_BATCH": "data.batch_size",
    "INPUT.AUG.TRAIN_PIPELINES": resized,
    "INPUT.AUG.TEST_PIPELINES": resized_for_test,
    "INPUT.FORMAT": ("model.pixels.order", str.lower),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": lambda row: not row["data.keep_empty"],
    "TEST.DETECTIONS_PER_IMAGE": "model.selection.total",
}
DEFCN_FIXED = {
    **{
        key: DETECTRON2_FIXED[key]
        for key in DETECTRON2_FIXED
        if key.startswith(("MODEL.RESNETS", "MODEL.FPN"))
    },
    "MODEL.RESNETS.NUM_CLASSES": None,
    "MODEL.RESNETS.ACTIVATION.NAME": "ReLU",
    "MODEL.RESNETS.ZERO_INIT_RESIDUAL": False,
    "MODEL.RESNETS.DEEP_STEM": False,
    "MODEL.FPN.BLOCK_IN_FEATURES": "p5",
    "MODEL.SHIFT_GENERATOR.NUM_SHIFTS": 1,
    "MODEL.SHIFT_GENERATOR.OFFSET": 0.5,
    "SOLVER.LR_SCHEDULER.WARMUP_METHOD": "linear",
    "SOLVER.BATCH_SUBDIVISIONS": 1,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
}


def of_poto(theirs):
    return theirs["MODEL.FCOS.CENTER_SAMPLING_RADIUS"] == 0.0


DEFCN_IDLE = (
    (r"MODEL\.FCOS\.CENTER_SAMPLING_RADIUS|MODEL\.FCOS\.OBJECT_SIZES_OF_INTEREST", of_poto, "POTO decides"),
    (r"MODEL\.FCOS\.NMS_THRESH_TEST", of_poto, "no IoU is above 1: nothing is suppressed"),
    (r"MODEL\.NMS_TYPE", of_poto, "no IoU is above 1: nothing is suppressed"),
    (r"MODEL\.FCOS\.BBOX_REG_WEIGHTS", lambda c: True, "of deltas, which FCOS does not predict"),
    (r"MODEL\.FCOS\.NORM_SYNC", lambda c: True, "of batch norm"),
    (r"DATALOADER\.(REPEAT_.*)", lambda c: True, "of repeat-factor sampling"),
    *[idle for idle in DETECTRON2_IDLE if "CLIP_GRADIENTS" in idle[0] or "MASK_FORMAT" in idle[0]],
)
DEFCN_IMPLEMENTATION = {
    r"SOLVER\.(CHECKPOINT_PERIOD|IMS_PER_DEVICE|LR_SCHEDULER\.MAX_EPOCH)": "of the program",
    r"MODEL\.RESNETS\.ACTIVATION\.INPLACE|DATALOADER\.NUM_WORKERS": "of the program",
}


# --- maskrcnn-benchmark, and the release of Double-Head R-CNN on it ---------------------------------------


def conv_body(row):
    return f"R-{row['model.backbone.depth']}-{'C4' if row.is_c4 else 'FPN'}"


def pooled_strides(part):
    return lambda row: [1 / stride for stride in row[f"model.{part}.pool.strides"]]


def conv_head(key):
    return lambda row: row.get(f"model.roi_head.branches.conv.features.{key}")


def roi_pool(key):
    """Of the only pool, or of the first of Double-Head's."""
    return lambda row: row.get(f"model.roi_head.pool.{key}", row.get(f"model.roi_head.pools.0.{key}"))


def fc_features(key):
    return lambda row: (
        row.of_boxes(f"features.{key}") or row.get(f"model.roi_head.branches.fc.features.{key}")
    )


def loss_factors(row):
    """Of the conv-head's and the fc-head's losses, class and box each."""
    terms = ("conv_class", "conv_box", "fc_class", "fc_box")
    return [row.get(f"model.roi_head.weights_of_terms.{term}", 0.0) for term in terms]


def class_agnostic(row):
    found = row.of_boxes("class_agnostic")
    return row.get("model.roi_head.branches.fc.class_agnostic") if found is None else found


def non_local_blocks(row):
    return sum(
        row.get(f"model.roi_head.branches.conv.features.blocks.{number}.class") == "NonLocal"
        for number in range(8)
    )


SAME_IMAGES = {
    ("coco_2014_train", "coco_2014_valminusminival"): ["coco_2017_train"],
    ("coco_2014_minival",): ["coco_2017_val"],
    ("voc_2007_train", "voc_2007_val"): ["voc_2007_trainval"],
}


def the_same_images(names):
    return SAME_IMAGES.get(tuple(names), names)


def normed(key):
    return lambda row: row.get(key) is not None


BENCHMARK = {
    "MODEL.MASK_ON": has("model.mask_head.class"),
    "MODEL.META_ARCHITECTURE": (architecture, ARCHITECTURES.get),
    "MODEL.CLS_AGNOSTIC_BBOX_REG": class_agnostic,
    "MODEL.BACKBONE.CONV_BODY": conv_body,
    "MODEL.BACKBONE.FREEZE_CONV_BODY_AT": "model.backbone.freeze_at",
    "MODEL.RPN.ANCHOR_SIZES": lambda row: sum(row["model.proposer.head.sizes"], []),
    "MODEL.RPN.ANCHOR_STRIDE": "model.proposer.head.strides",
    "MODEL.RPN.ASPECT_RATIOS": "model.proposer.head.ratios",
    "MODEL.RPN.STRADDLE_THRESH": "model.proposer.head.straddle",
    "MODEL.RPN.FG_IOU_THRESHOLD": "model.proposer.head.rule.positive",
    "MODEL.RPN.BG_IOU_THRESHOLD": "model.proposer.head.rule.negative",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "model.proposer.head.num_samples",
    "MODEL.RPN.POSITIVE_FRACTION": "model.proposer.head.positive_fraction",
    "MODEL.RPN.PRE_NMS_TOP_N_TRAIN": "model.proposer.train.per_level",
    "MODEL.RPN.PRE_NMS_TOP_N_TEST": "model.proposer.test.per_level",
    "MODEL.RPN.POST_NMS_TOP_N_TRAIN": "model.proposer.train.total",
    "MODEL.RPN.POST_NMS_TOP_N_TEST": "model.proposer.test.total",
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN": "model.proposer.train.total",
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST": "model.proposer.test.total",
    "MODEL.RPN.NMS_THRESH": of_both("iou"),
    "MODEL.RPN.USE_FPN": lambda row: not row.is_c4,
    "MODEL.ROI_HEADS.USE_FPN": lambda row: not row.is_c4,
    "MODEL.ROI_HEADS.FG_IOU_THRESHOLD": "model.roi_head.sampling.iou",
    "MODEL.ROI_HEADS.BG_IOU_THRESHOLD": "model.roi_head.sampling.iou",
    "MODEL.ROI_HEADS.BBOX_REG_WEIGHTS": delta_weights,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "model.roi_head.sampling.num_samples",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": "model.roi_head.sampling.positive_fraction",
    "MODEL.ROI_HEADS.SCORE_THRESH": "model.selection.score_threshold",
    "MODEL.ROI_HEADS.NMS": "model.selection.iou",
    "MODEL.ROI_HEADS.DETECTIONS_PER_IMG": "model.selection.total",
    "TEST.DETECTIONS_PER_IMG": "model.selection.total",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": roi_pool("size"),
    "MODEL.ROI_BOX_HEAD.POOLER_SCALES": lambda row: [1 / stride for stride in roi_pool("strides")(row)],
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES": lambda row: row["model.num_classes"] + 1,
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": fc_features("width"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "model.mask_head.pool.size",
    "MODEL.ROI_MASK_HEAD.POOLER_SCALES": pooled_strides("mask_head"),
    "MODEL.ROI_MASK_HEAD.CONV_LAYERS": lambda row: (
        [row["model.mask_head.width"]] * row["model.mask_head.num_convs"]
    ),
    "MODEL.ROI_MASK_HEAD.RESOLUTION": lambda row: 2 * row["model.mask_head.pool.size"],
    "MODEL.ROI_MASK_HEAD.USE_GN": normed("model.mask_head.norm"),
    "MODEL.RESNETS.NUM_GROUPS": "model.backbone.groups",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "model.backbone.width_per_group",
    "MODEL.RESNETS.STRIDE_IN_1X1": "model.backbone.stride_in_1x1",
    "MODEL.RESNETS.TRANS_FUNC": ("model.backbone.norm", {"BottleneckWithFixedBatchNorm": "frozen_bn"}.get),
    "MODEL.RESNETS.STEM_FUNC": ("model.backbone.norm", {"StemWithFixedBatchNorm": "frozen_bn"}.get),
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": "model.neck.channels",
    "MODEL.BACKBONE.OUT_CHANNELS": "model.neck.channels",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": DETECTRON2["MODEL.RESNETS.RES2_OUT_CHANNELS"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": DETECTRON2["MODEL.RESNETS.STEM_OUT_CHANNELS"],
    "INPUT.MIN_SIZE_TRAIN": short_sides,
    "INPUT.MAX_SIZE_TRAIN": "data.long_side_px",
    "INPUT.MIN_SIZE_TEST": test_side,
    "INPUT.MAX_SIZE_TEST": test_long_side,
    "INPUT.PIXEL_MEAN": "model.pixels.mean",
    "INPUT.PIXEL_STD": "model.pixels.std",
    "INPUT.TO_BGR255": lambda row: row["model.pixels.order"] == "bgr",
    "INPUT.HORIZONTAL_FLIP_PROB_TRAIN": flip_probability,
    "DATASETS.TRAIN": (coco_or_voc("train"), the_same_images),
    "DATASETS.TEST": (coco_or_voc("val"), the_same_images),
    "SOLVER.MAX_ITER": "schedule.steps",
    "SOLVER.BASE_LR": "schedule.base_lr",
    "SOLVER.BIAS_LR_FACTOR": "schedule.optimizer.bias_lr_factor",
    "SOLVER.MOMENTUM": "schedule.optimizer.momentum",
    "SOLVER.WEIGHT_DECAY": "schedule.optimizer.weight_decay",
    "SOLVER.WEIGHT_DECAY_BIAS": lambda row: (
        row["schedule.optimizer.weight_decay"] * row["schedule.optimizer.decay_biases"]
    ),
    "SOLVER.GAMMA": "schedule.decay.factor",
    "SOLVER.STEPS": "schedule.decay.at",
    "SOLVER.WARMUP_FACTOR": "schedule.warmup.factor",
    "SOLVER.WARMUP_ITERS": "schedule.warmup.steps",
    "SOLVER.IMS_PER_BATCH": "data.batch_size",
    "MODEL.ROI_BOX_HEAD.MASK_LOSS": loss_factors,
    "MODEL.ROI_BOX_HEAD.NEIGHBOR_CONV_EXPAND": "model.roi_head.conv_roi_scale",
    "MODEL.ROI_BOX_HEAD.NONLOCAL_SHARED_NUM_STACK": non_local_blocks,
    "MODEL.ROI_BOX_HEAD.NONLOCAL_SHARED_NUM_GROUP": conv_head("blocks.0.groups"),
    "MODEL.ROI_BOX_HEAD.NONLOCAL_USE_SOFTMAX": lambda row: conv_head("blocks.0.mode")(row) != "dot_product",
    "MODEL.ROI_BOX_HEAD.NONLOCAL_USE_BN": lambda row: conv_head("norm")(row) == "bn",
    "MODEL.ROI_BOX_HEAD.NONLOCAL_USE_RELU": conv_head("blocks.0.post_relu"),
    "MODEL.ROI_BOX_HEAD.NONLOCAL_USE_FFCONV": lambda row: conv_head("blocks.1.class")(row) == "Bottleneck",
    "MODEL.ROI_BOX_HEAD.NONLOCAL_USE_ATTENTION": lambda row: non_local_blocks(row) > 0,
    "MODEL.ROI_BOX_HEAD.NONLOCAL_INTER_CHANNELS": conv_head("blocks.0.width"),
    "MODEL.ROI_BOX_HEAD.NONLOCAL_OUT_CHANNELS": conv_head("width"),
}
BENCHMARK_FIXED = {
    "MODEL.RPN_ONLY": False,
    "MODEL.FPN.USE_GN": False,
    "MODEL.FPN.USE_RELU": False,
    "MODEL.BACKBONE.USE_GN": False,
    "MODEL.RPN.MIN_SIZE": 0,
    "MODEL.ROI_BOX_HEAD.USE_GN": False,
    "MODEL.ROI_BOX_HEAD.DILATION": 1,
    "MODEL.ROI_BOX_HEAD.ROI_EXPAND": False,
    "MODEL.ROI_BOX_HEAD.NEIGHBOR_FC_EXPAND": 1.0,
    "MODEL.ROI_BOX_HEAD.NONLOCAL_CLS_NUM_STACK": 0,
    "MODEL.ROI_BOX_HEAD.NONLOCAL_REG_NUM_STACK": 0,
    "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR": False,
    "MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS": False,
    "MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS_THRESHOLD": 0.5,
    "MODEL.ROI_MASK_HEAD.DILATION": 1,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.STAGE_WITH_DCN": [False] * 4,
    "INPUT.BRIGHTNESS": 0.0,
    "INPUT.CONTRAST": 0.0,
    "INPUT.SATURATION": 0.0,
    "INPUT.HUE": 0.0,
    "INPUT.VERTICAL_FLIP_PROB_TRAIN": 0.0,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "SOLVER.WARMUP_METHOD": "linear",
}


def on_pyramid(theirs):
    return theirs["MODEL.RPN.USE_FPN"]


BENCHMARK_IDLE = (
    (r"MODEL\.RPN\.POST_NMS_TOP_N_.*", on_pyramid, "of a level, as many as before NMS"),
    (r"MODEL\.RPN\.FPN_POST_NMS_.*", lambda c: not on_pyramid(c), "no pyramid"),
    (r"MODEL\.FPN\..*", lambda c: not on_pyramid(c), "no pyramid"),
    (r"MODEL\.ROI_BOX_HEAD\.MLP_HEAD_DIM", lambda c: not on_pyramid(c), "res5 is the head"),
    (r"MODEL\.ROI_BOX_HEAD\.(CONV_HEAD_DIM|NUM_STACKED_CONVS)", lambda c: True, "of another head"),
    (r"MODEL\.ROI_MASK_HEAD\.MLP_HEAD_DIM", lambda c: True, "of another head"),
    (r"MODEL\.ROI_BOX_HEAD\.NONLOCAL_(CLS|REG)_NUM_GROUP", lambda c: True, "no blocks of a task's own"),
    (
        r"MODEL\.RESNETS\.(WITH_MODULATED_DCN|DEFORMABLE_GROUPS)",
        lambda c: not any(c["MODEL.RESNETS.STAGE_WITH_DCN"]),
        "not deformable",
    ),
)
BENCHMARK_IMPLEMENTATION = {
    r"TEST\.IMS_PER_BATCH": "of the program",
    r"DATALOADER\.SIZE_DIVISIBILITY": "canvases are multiples of 32",
    r"MODEL\.RPN\.RPN_HEAD|MODEL\.ROI_(BOX|MASK)_HEAD\.(FEATURE_EXTRACTOR|PREDICTOR)": "name of a class",
    r".*\.EVALUATION_FLAGS": "which combinations of the heads its test program scores, one after the other",
    r"MODEL\.RPN\.FPN_POST_NMS_PER_BATCH": "what the number of proposals in training counts",
}


# --- mmdetection ------------------------------------------------------------------------------------------

TYPES = {  # of a detector
    "RetinaNet": "RetinaNetHead",
    "FCOS": "FCOSHead",
    "ATSS": "ATSSHead",
    "GFL": "GFLHead",
    "FasterRCNN": "FasterHead",
    "CascadeRCNN": "CascadeHead",
    "MaskRCNN": "MaskHead",
}
EXTRA_CONVS = {"on_input": "p6p7_of_c5", "on_output": "p6p7_of_p5"}
BOX_LOSSES = {"L1Loss": "smooth_l1", "SmoothL1Loss": "smooth_l1", "GIoULoss": "giou", "IoULoss": "iou"}
NO_DEFORMATION = [False] * 4


def main_part(row):
    for part in ("mask_head", "dense_head", "roi_head"):
        if f"model.{part}.class" in row.settings:
            name = row[f"model.{part}.class"]
            return "FasterHead" if name == "C4Head" else name
    return None


def scale(row):
    """The largest allowed sides, where there is one size."""
    [side] = short_sides(row)
    return [row["data.long_side_px"], side]


def scale_of_test(row):
    return [test_long_side(row), test_side(row)]


def deviations(weights):
    return lambda row: [1 / weight for weight in (weights(row) if callable(weights) else row[weights])]


def prefixed(prefix, entries):
    return {f"{prefix}.{key}": value for key, value in entries.items()}


def of_steps(key):
    """Epochs of steps."""

    def epochs(row):
        steps = row[key]
        return [step / EPOCH for step in steps] if isinstance(steps, list) else steps / EPOCH

    return epochs


def gn_groups(row):
    return row["model.dense_head.norm_groups"] or 32


def one_before(steps):
    """Its linear warm-up reaches the full rate a step early."""
    return steps - 1


def box_loss(row):
    return row.of_head("box_loss") or "smooth_l1"  # RPN has no other


def backbone_entries():
    return {
        "depth": "model.backbone.depth",
        "num_stages": lambda row: row["model.backbone.last_stage"] - 1,
        "out_indices": lambda row: [2] if row.is_c4 else [0, 1, 2, 3],
        "frozen_stages": lambda row: row["model.backbone.freeze_at"] - 1,
        "norm_cfg.type": (lambda row: "BN", lambda kind: kind),
        "norm_cfg.requires_grad": lambda row: row["model.backbone.norm"] != "frozen_bn",
        "norm_eval": lambda row: row["model.backbone.norm"] == "frozen_bn",
        "style": lambda row: "caffe" if row["model.backbone.stride_in_1x1"] else "pytorch",
        "base_channels": lambda row: row["model.backbone.widths"][0],
    }


def head_entries():
    """Of a dense head."""
    return {
        "type": (head("class"), lambda name: name.replace("RetinaHead", "RetinaNetHead")),
        "num_classes": "model.num_classes",
        "in_channels": "model.neck.channels",
        "stacked_convs": head("num_convs"),
        "feat_channels": head("width"),
        "strides": head("strides"),
        "norm_cfg": head("norm"),
        "norm_cfg.type": upper("norm"),
        "norm_cfg.num_groups": gn_groups,
        "conv_bias": (lambda row: row.of_head("tower_bias") or False, lambda bias: bias is True),
        "loss_cls.gamma": head("focal.gamma"),
        "loss_cls.alpha": head("focal.alpha"),
        "loss_cls.beta": head("beta"),
        "loss_cls.loss_weight": head("weights_of_terms.class"),
        "loss_bbox.type": (head("box_loss"), BOX_LOSSES.get),
        "loss_bbox.loss_weight": head("weights_of_terms.box"),
        "loss_centerness.loss_weight": head("weights_of_terms.centerness"),
        "loss_dfl.loss_weight": head("weights_of_terms.distribution"),
        "reg_max": head("reg_max"),
        "norm_on_bbox": lambda row: row.of_head("distance") == "relu",
        "centerness_on_reg": lambda row: row.of_head("centerness_on") == "box",
        "center_sampling": lambda row: row.of_head("center_radius") is not None,
        "center_sample_radius": head("center_radius"),
        "regress_ranges": head("size_ranges"),
        "init_cfg.override.bias_prob": head("prior"),
    }


def anchor_entries(prefix):
    return {
        f"{prefix}.octave_base_scale": head("anchor_scale"),
        f"{prefix}.scales_per_octave": lambda row: row.of_head("octaves") or 1,
        f"{prefix}.ratios": lambda row: row.of_head("ratios") or [1.0],
        f"{prefix}.strides": head("strides"),
        f"{prefix}.center_offset": head("anchor_offset"),
        f"{prefix}.scales": (
            lambda row: [size / row.of_head("strides")[0] for size in row.of_head("sizes")[0]],
            lambda scales: scales,
        ),
    }


def box_head_entries(prefix, part, coder):
    """Of a box head of a second stage."""

    def of(key):
        return lambda row: row.get(f"model.roi_head.{part}.{key}")

    return prefixed(
        prefix,
        {
            "num_classes": "model.num_classes",
            "fc_out_channels": of("features.width"),
            "roi_feat_size": "model.roi_head.pool.size",
            "reg_class_agnostic": of("class_agnostic"),
            "bbox_coder.target_stds": deviations(f"model.roi_head.{coder}.weights"),
            "loss_bbox.type": ("model.roi_head.box_loss", BOX_LOSSES.get),
            "loss_bbox.beta": "model.roi_head.box_beta",
            "with_avg_pool": lambda row: row.is_c4,
            "in_channels": lambda row: (
                row["model.backbone.widths"][4] if row.is_c4 else row["model.neck.channels"]
            ),
        },
    )


def pool_entries(prefix, part):
    return {
        f"{prefix}.roi_layer.output_size": f"{part}.size",
        f"{prefix}.roi_layer.sampling_ratio": f"{part}.settings.sampling_ratio",
        f"{prefix}.featmap_strides": f"{part}.strides",
        f"{prefix}.out_channels": "model.neck.channels",
    }


def sampling_entries(prefix, stage, iou):
    return prefixed(
        prefix,
        {
            "assigner.pos_iou_thr": iou,
            "assigner.neg_iou_thr": iou,
            "assigner.min_pos_iou": iou,
            "sampler.num": f"model.roi_head.{stage}.num_samples",
            "sampler.pos_fraction": f"model.roi_head.{stage}.positive_fraction",
        },
    )


def stage_iou(stage):
    return lambda row: row["model.roi_head.ious"][stage]


MMDETECTION = {
    "model.type": (main_part, TYPES.get),
    "model.data_preprocessor.mean": "model.pixels.mean",
    "model.data_preprocessor.std": "model.pixels.std",
    "model.data_preprocessor.bgr_to_rgb": lambda row: row["model.pixels.order"] == "rgb",
    "model.data_preprocessor.pad_mask": "data.masks",
    **prefixed("model.backbone", backbone_entries()),
    "model.neck.in_channels": "model.backbone.channels",
    "model.neck.out_channels": "model.neck.channels",
    "model.neck.start_level": lambda row: row["model.neck.levels"][0] - 2,
    "model.neck.add_extra_convs": ("model.neck.top", EXTRA_CONVS.get),
    "model.neck.num_outs": lambda row: len(row["model.neck.levels"]),
    "model.neck.relu_before_extra_convs": "model.neck.relu_before_p7",
    **prefixed("model.bbox_head", head_entries()),
    **anchor_entries("model.bbox_head.anchor_generator"),
    "model.bbox_head.bbox_coder.target_stds": deviations(head("delta_weights")),
    "model.bbox_head.bbox_coder.clip_border": head("clip"),
    "model.train_cfg.assigner.pos_iou_thr": head("rule.positive"),
    "model.train_cfg.assigner.neg_iou_thr": head("rule.negative"),
    "model.train_cfg.assigner.min_pos_iou": head("rule.low_quality_above"),
    "model.train_cfg.assigner.match_low_quality": lambda row: (
        row.of_head("rule.low_quality_matches") == "all"
    ),
    "model.train_cfg.assigner.topk": head("top_k"),
    "model.test_cfg.nms_pre": "model.selection.per_level",
    "model.test_cfg.score_thr": "model.selection.score_threshold",
    "model.test_cfg.nms.type": "model.selection.method",
    "model.test_cfg.nms.iou_threshold": "model.selection.iou",
    "model.test_cfg.max_per_img": "model.selection.total",
    # first stage
    "model.rpn_head.type": head("class"),
    "model.rpn_head.in_channels": "model.neck.channels",
    "model.rpn_head.feat_channels": head("width"),
    **anchor_entries("model.rpn_head.anchor_generator"),
    "model.rpn_head.loss_bbox.type": (box_loss, BOX_LOSSES.get),
    "model.rpn_head.loss_bbox.beta": head("box_beta"),
    "model.train_cfg.rpn.assigner.pos_iou_thr": head("rule.positive"),
    "model.train_cfg.rpn.assigner.neg_iou_thr": head("rule.negative"),
    "model.train_cfg.rpn.assigner.min_pos_iou": head("rule.low_quality_above"),
    "model.train_cfg.rpn.assigner.match_low_quality": lambda row: (
        row.of_head("rule.low_quality_matches") == "all"
    ),
    "model.train_cfg.rpn.sampler.num": head("num_samples"),
    "model.train_cfg.rpn.sampler.pos_fraction": head("positive_fraction"),
    "model.train_cfg.rpn.allowed_border": (head("straddle"), lambda px: None if px < 0 else px),
    "model.train_cfg.rpn_proposal.nms_pre": "model.proposer.train.per_level",
    "model.train_cfg.rpn_proposal.max_per_img": "model.proposer.train.total",
    "model.train_cfg.rpn_proposal.nms.type": "model.proposer.train.method",
    "model.train_cfg.rpn_proposal.nms.iou_threshold": "model.proposer.train.iou",
    "model.test_cfg.rpn.nms_pre": "model.proposer.test.per_level",
    "model.test_cfg.rpn.max_per_img": "model.proposer.test.total",
    "model.test_cfg.rpn.nms.type": "model.proposer.test.method",
    "model.test_cfg.rpn.nms.iou_threshold": "model.proposer.test.iou",
    # second stage
    "model.roi_head.type": (
        lambda row: "FasterHead" if row.is_c4 else row["model.roi_head.class"],
        {"StandardRoIHead": "FasterHead", "CascadeRoIHead": "CascadeHead"}.get,
    ),
    "model.roi_head.num_stages": lambda row: len(row["model.roi_head.ious"]),
    "model.roi_head.stage_loss_weights": "model.roi_head.stage_weights",
    **pool_entries("model.roi_head.bbox_roi_extractor", "model.roi_head.pool"),
    **pool_entries("model.roi_head.mask_roi_extractor", "model.mask_head.pool"),
    "model.roi_head.shared_head.depth": "model.backbone.depth",
    "model.roi_head.shared_head.style": backbone_entries()["style"],
    "model.roi_head.shared_head.norm_cfg.requires_grad": backbone_entries()["norm_cfg.requires_grad"],
    "model.roi_head.shared_head.norm_eval": backbone_entries()["norm_eval"],
    **box_head_entries("model.roi_head.bbox_head", "box_head", "coder"),
    **sampling_entries("model.train_cfg.rcnn", "sampling", "model.roi_head.sampling.iou"),
    "model.roi_head.mask_head.num_convs": "model.mask_head.num_convs",
    "model.roi_head.mask_head.in_channels": "model.neck.channels",
    "model.roi_head.mask_head.conv_out_channels": "model.mask_head.width",
    "model.roi_head.mask_head.num_classes": "model.num_classes",
    "model.roi_head.mask_head.loss_mask.loss_weight": "model.mask_head.weight",
    "model.train_cfg.rcnn.mask_size": lambda row: 2 * row["model.mask_head.pool.size"],
    "model.train_cfg.rcnn.assigner.match_low_quality": lambda row: False,
    "model.test_cfg.rcnn.score_thr": "model.selection.score_threshold",
    "model.test_cfg.rcnn.nms.type": "model.selection.method",
    "model.test_cfg.rcnn.nms.iou_threshold": "model.selection.iou",
    "model.test_cfg.rcnn.max_per_img": "model.selection.total",
    # training
    "optim_wrapper.optimizer.type": ("schedule.optimizer.name", str.lower),
    "optim_wrapper.optimizer.lr": "schedule.base_lr",
    "optim_wrapper.optimizer.momentum": "schedule.optimizer.momentum",
    "optim_wrapper.optimizer.weight_decay": "schedule.optimizer.weight_decay",
    "optim_wrapper.paramwise_cfg.bias_lr_mult": "schedule.optimizer.bias_lr_factor",
    "optim_wrapper.paramwise_cfg.bias_decay_mult": lambda row: float(row["schedule.optimizer.decay_biases"]),
    "optim_wrapper.clip_grad": "schedule.optimizer.clip_norm",
    "optim_wrapper.clip_grad.max_norm": "schedule.optimizer.clip_norm",
    "param_scheduler.0.type": lambda row: "LinearLR",
    "param_scheduler.0.start_factor": "schedule.warmup.factor",
    "param_scheduler.0.factor": "schedule.warmup.factor",
    "param_scheduler.0.end": ("schedule.warmup.steps", one_before),
    "param_scheduler.1.type": ("schedule.decay.name", {"MultiStepLR": "steps"}.get),
    "param_scheduler.1.end": of_steps("schedule.steps"),
    "param_scheduler.1.milestones": of_steps("schedule.decay.at"),
    "param_scheduler.1.gamma": "schedule.decay.factor",
    "train_cfg.max_epochs": of_steps("schedule.steps"),
    "auto_scale_lr.base_batch_size": "data.batch_size",
    "train_resize.scale": scale,
    "test_resize.scale": scale_of_test,
    "flip.prob": flip_probability,
    "filter_cfg.filter_empty_gt": lambda row: not row["data.keep_empty"],
    "filter_cfg.min_size": lambda row: 0,
    "train_dataloader.dataset.filter_cfg.filter_empty_gt": lambda row: not row["data.keep_empty"],
    "train_dataloader.dataset.filter_cfg.min_size": lambda row: 0,
    "train_dataloader.dataset.pipeline.1.with_mask": "data.masks",
    "train_dataloader.dataset.pipeline.2.scale": scale,
    "train_dataloader.dataset.pipeline.3.prob": flip_probability,
    "test_pipeline.1.scale": scale_of_test,
    "test_pipeline.2.with_mask": "data.masks",
}
for stage in range(3):  # of a cascade
    MMDETECTION |= box_head_entries(
        f"model.roi_head.bbox_head.{stage}", f"box_heads.{stage}", f"coders.{stage}"
    )
    MMDETECTION |= sampling_entries(f"model.train_cfg.rcnn.{stage}", f"samplings.{stage}", stage_iou(stage))

# What mmdetection has further settings for and kgarden always does; patterns, as they recur in many parts.
MMDETECTION_FIXED = {
    r"model\.data_preprocessor\.(pad_size_divisor)": 32,
    r"model\.data_preprocessor\.pad_value": 0,
    r"model\.data_preprocessor\.(rgb_to_bgr|pad_seg)": False,
    r"model\.data_preprocessor\.batch_augments": None,
    r"model\.backbone\.type": "ResNet",
    r"model\.backbone\.in_channels": 3,
    r"model\.backbone\.(stem_channels|conv_cfg|dcn|plugins)": None,
    r"model\.backbone\.(deep_stem|avg_down)": False,
    r"model\.backbone\.stage_with_dcn": NO_DEFORMATION,
    r"model\.neck\.type": "FPN",
    r"model\.neck\.end_level": -1,
    r"model\.neck\.no_norm_on_lateral": False,
    r"model\.neck\.(conv_cfg|norm_cfg|act_cfg)": None,
    r"model\.neck\.upsample_cfg\.mode": "nearest",
    r"model\.bbox_head\.(conv_cfg|cls_predictor_cfg|train_cfg|test_cfg)": None,
    r"model\.bbox_head\.norm_cfg\.requires_grad": True,
    r"model\.bbox_head\.dcn_on_last_conv": False,
    r"model\.bbox_head\.pred_kernel_size": 3,
    r"model\.\w+\.bbox_coder\.target_means": [0.0] * 4,
    r"model\.\w+\.bbox_head(\.\d)?\.bbox_coder\.target_means": [0.0] * 4,
    r"model\.(rpn_head)\.bbox_coder\.target_stds": [1.0] * 4,
    r"model\.bbox_head\.bbox_coder\.add_ctr_clamp": False,
    r"model\.bbox_head\.anchor_generator\.scale_major": True,
    r"model\.bbox_head\.(loss_cls|loss_centerness)\.use_sigmoid": True,
    r"model\.rpn_head\.loss_cls\.use_sigmoid": True,
    r"model\.roi_head\.bbox_head(\.\d)?\.loss_cls\.use_sigmoid": False,
    r"model\.(rpn_head|roi_head\.bbox_head(\.\d)?)\.loss_(cls|bbox)\.loss_weight": 1.0,
    r"model\.bbox_head\.loss_bbox\.linear": False,
    r"model\.bbox_head\.loss_bbox\.mode": "log",
    r"model\.bbox_head\.loss_centerness\.(class_weight|ignore_index)": None,
    r"model\.roi_head\.shared_head\.(stage)": 3,
    r"model\.roi_head\.shared_head\.(stride)": 2,
    r"model\.roi_head\.shared_head\.(dilation)": 1,
    r"model\.roi_head\.shared_head\.norm_cfg\.type": "BN",
    r"model\.roi_head\.(bbox|mask)_roi_extractor\.roi_layer\.type": "RoIAlign",
    r"model\.train_cfg\.(rpn\.|rcnn\.(\d\.)?)?assigner\.type": {"MaxIoUAssigner", "ATSSAssigner"},
    r"model\.train_cfg\.(rpn\.|rcnn\.(\d\.)?)?assigner\.ignore_iof_thr": -1,
    r"model\.train_cfg\.assigner\.gt_max_assign_all": True,
    r"model\.train_cfg\.rcnn\.\d\.assigner\.match_low_quality": False,
    r"model\.train_cfg\.(rpn\.|rcnn\.(\d\.)?)?sampler\.type": {"RandomSampler", "PseudoSampler"},
    r"model\.train_cfg\.(rpn\.|rcnn\.(\d\.)?)?sampler\.neg_pos_ub": -1,
    r"model\.train_cfg\.rpn\.sampler\.add_gt_as_proposals": False,
    r"model\.train_cfg\.rcnn\.(\d\.)?sampler\.add_gt_as_proposals": True,
    r"model\.train_cfg\.(rpn\.|rcnn\.(\d\.)?)?pos_weight": -1,
    r"model\.train_cfg\.allowed_border": -1,
    r"model\.(train_cfg\.rpn_proposal|test_cfg|test_cfg\.rpn)\.min_bbox_size": 0,
    r"model\.test_cfg\.rcnn\.mask_thr_binary": 0.5,
    r"optim_wrapper\.clip_grad\.norm_type": 2,
    r"param_scheduler\.\d\.begin": 0,
    r"(train_|test_)resize\.keep_ratio": True,
    r".*pipeline\.\d\.keep_ratio": True,
}
MMDETECTION_IDLE = (
    (r"model\.neck\..*", lambda c: "model.roi_head.shared_head.type" in c, "no pyramid"),
    (r".*\.roi_feat_size", lambda c: "model.roi_head.shared_head.type" in c, "res5 is the head"),
    (
        r"model\.bbox_head\.center_sample_radius",
        lambda c: not c["model.bbox_head.center_sampling"],
        "no sampling",
    ),
    (r"model\.bbox_head\.loss_cls\.(alpha|gamma)", lambda c: c["model.type"] == "GFL", "another loss"),
    (r"model\.bbox_head\.anchor_generator\.(scales|base_sizes|centers)", lambda c: True, "from octaves"),
    (r"model\.bbox_head\.bbox_coder\.ctr_clamp", lambda c: True, "off"),
    (r"model\.bbox_head\.bbox_coder\.target_stds", lambda c: c["model.type"] == "GFL", "distances"),
    (r"model\.train_cfg\.sampler\.add_gt_as_proposals", lambda c: True, "a sampler that takes all"),
    (r"model\.train_cfg\.assigner\.alpha", lambda c: True, "of dynamic ATSS"),
    (r"model\.backbone\.(strides|dilations)", lambda c: True, "one for each stage, those of every ResNet"),
)
PROGRAM, CLASS, INITIAL = (
    "of the program",
    "name of a class",
    "initial values have files and a test of their own",
)
MMDETECTION_IMPLEMENTATION = {
    r"model\.data_preprocessor\.(type|boxtype2tensor|non_blocking|(mask|seg)_pad_value)": PROGRAM,
    r".*init_cfg(\.(type|layer|distribution|std|override\.(type|name|std)|checkpoint))?": INITIAL,
    r".*\.(pretrained|zero_init_residual)": INITIAL,
    r".*\.(reduction|activated|avg_non_ignore|use_mask|eps|debug|with_cp)": PROGRAM,
    r".*\.(gpu_assign_thr|perm_repeat_gt_cfg|use_box_type|reg_decoded_bbox|ignore_wrt_candidates)": PROGRAM,
    r".*iou_calculator\..*": PROGRAM,
    r".*\.(loss_cls|loss_centerness|loss_dfl|loss_mask|bbox_coder|anchor_generator)\.type": CLASS,
    r"model\.roi_head\.(bbox_head(\.\d)?|mask_head|shared_head|\w+_roi_extractor)\.type": CLASS,
    r"model\.(train_cfg|init_cfg)|optim_wrapper\.type|auto_scale_lr\.enable": PROGRAM,
    r"train_cfg\.(type|val_interval)": PROGRAM,
    r"train_dataloader\.(batch_size|sampler.*|batch_sampler.*)": PROGRAM,
    r".*(pipeline\.\d|_resize|flip|dataset)\.(type|with_bbox|meta_keys)": PROGRAM,
    r"param_scheduler\.\d\.by_epoch": PROGRAM,
}


# --- which table ------------------------------------------------------------------------------------------

OF_DETECTRON2 = Table(DETECTRON2, DETECTRON2_FIXED, DETECTRON2_IDLE, DETECTRON2_IMPLEMENTATION)
TABLES = {
    "detectron2": OF_DETECTRON2,
    "AdelaiDet": Table(
        DETECTRON2 | ADELAIDET,
        DETECTRON2_FIXED | ADELAIDET_FIXED,
        DETECTRON2_IDLE + ADELAIDET_IDLE,
        DETECTRON2_IMPLEMENTATION | ADELAIDET_IMPLEMENTATION,
    ),
    "CenterNet2": Table(
        DETECTRON2 | CENTERNET2,
        DETECTRON2_FIXED | CENTERNET2_FIXED,
        DETECTRON2_IDLE + CENTERNET2_IDLE,
        DETECTRON2_IMPLEMENTATION,
    ),
    "DeFCN": Table(DEFCN, DEFCN_FIXED, DEFCN_IDLE, DEFCN_IMPLEMENTATION),
    "mmdetection": Table(MMDETECTION, MMDETECTION_FIXED, MMDETECTION_IDLE, MMDETECTION_IMPLEMENTATION),
    "maskrcnn-benchmark": Table(BENCHMARK, BENCHMARK_FIXED, BENCHMARK_IDLE, BENCHMARK_IMPLEMENTATION),
}
TABLES["doubleheadsrcnn"] = TABLES["maskrcnn-benchmark"]
TRAINING = r"SOLVER\..*|INPUT\..*|DATASETS\..*|TEST\.DETECTIONS_PER_IMG|optimizer_rules.*|learning rate.*"

# Rows that the files name in words: (recipe, row, pattern of the keys that are compared).
NAMED = {
    "adelaidet/fcos.r50_1x": [("fcos", "adelaidet.1x", ".*")],
    "cascade_rcnn detectron2.r50_1x (without masks)": [
        ("cascade_rcnn", "detectron2.r50_1x", r"(?!.*MASK).*")
    ],
    "double_head table5.fpn_r101, as that codebase publishes it": [("double_head", "table5.fpn_r101", ".*")],
    "faster_rcnn_c4 maskrcnn_benchmark.r50_1x, as that codebase publishes it": [
        ("faster_rcnn_c4", "maskrcnn_benchmark.r50_1x", ".*")
    ],
    "double_head, all rows with ResNet-50": [
        ("double_head", "table3.complementary", ".*"),
        ("double_head", "table2.non_local_k5", r"(?!.*MASK_LOSS).*"),
    ],
    "double_head, all rows with ResNet-101": [
        ("double_head", "table5.ext_r101", ".*"),
        ("double_head", "table5.double_head_r101", r"(?!.*MASK_LOSS).*"),
    ],
    "double_head_voc07 schedule": [("double_head_voc07", "table4.ext", TRAINING)],
}
EXTRA = {  # what executing a project's builders gave, beside the settings
    "frozen": (lambda row: sorted(frozen_parts(row)), stage_of),
    "norms_that_learn": (learned_norms, norm_parts),
    "anchors": lambda row: row.anchors(),
    "frozen_norm_epsilon": "model.backbone.stem.norm.epsilon",
    "steps_of_an_epoch": lambda row: EPOCH,
    "norms_use_stored_statistics": lambda row: row["model.backbone.norm"] == "frozen_bn",
}


# --- the files, and the comparison ------------------------------------------------------------------------


class Configuration(NamedTuple):
    """A published configuration: its values by the project's keys, and the rows that it belongs to."""

    name: str
    project: str
    rows: list
    values: dict

    def __str__(self):
        return self.name


def configurations(directory):
    """All configurations of official_settings_*.json in a directory."""
    found = []
    for path in sorted(directory.glob("official_settings_*.json")):
        content = json.loads(path.read_text())
        found += [one_stage(name, one) for name, one in content.get("configurations", {}).items()]
        found += [two_stage(name, one) for name, one in content.get("systems", {}).items()]
    return found


def one_stage(name, one):
    """Of the file's `configurations`."""
    values = dict(one["values"])
    values |= {f"common: {key}": value for key, value in one["common"].items()}
    for kind, rules in (one["optimizer"] or {}).items():
        values[f"optimizer: {kind}"] = [[rule["lr"], rule["weight_decay"]] for rule in rules]
    return Configuration(
        f"{one['reference'].split()[0]}/{one['config']}", one["reference"].split()[0], rows_of(name), values
    )


def two_stage(name, one):
    """Of the file's `systems`."""
    values = dict(one["settings"])
    for kind, rules in one["optimizer_rules"].items():
        values[f"optimizer_rules: {kind}"] = rules
    for step, rate in one["learning_rate_at_step"].items():
        values[f"learning rate at step {step}"] = rate
    others = {
        "rows",
        "settings",
        "optimizer_rules",
        "learning_rate_at_step",
        "norms",
    }  # norms: named in settings
    values |= {key: value for key, value in one.items() if key not in others and value is not None}
    rows = [row for named in one["rows"] for row in rows_of(named)]
    return Configuration(name, name.split("/")[0].split()[0], rows, values)


def rows_of(name):
    """[(recipe, row, pattern of the keys that are compared)] from "recipe/row" or "recipe row"."""
    return NAMED[name] if name in NAMED else [(*re.split("[/ ]", name, maxsplit=1), ".*")]


class Pair(NamedTuple):
    """A key's value in a configuration, translated where units differ, and in a recipe row."""

    key: str
    theirs: object
    ours: object


row_of = functools.cache(Row)


def compared_pairs(configuration, stem, row, pattern=".*"):
    """Pairs of all keys that can be compared, and {key: why not} of the others.

    Raises:
        LookupError: a key that no table has.
    """
    table, ours = TABLES[configuration.project], row_of(stem, row)
    pairs, others = [], {}
    for key, theirs in configuration.values.items():
        why_not = reason(key, configuration, table)
        if why_not or not re.fullmatch(pattern, key):
            others[key] = why_not or "of other rows"
        else:
            pairs.append(pair(key, theirs, configuration.project, ours))
    return pairs, others


def reason(key, configuration, table):
    """Why a key cannot be compared, or None."""
    values = configuration.values
    for matching, condition, why in table.idle:
        if re.fullmatch(matching, key) and condition(values):
            return why
    if key in table.keys:
        return None
    return next((why for matching, why in table.implementation.items() if re.fullmatch(matching, key)), None)


def pair(key, theirs, project, row):
    """The two values of a key."""
    table, kind, _, name = TABLES[project], *key.partition(": ")
    if key.startswith("learning rate at step "):
        return Pair(key, theirs, float(row.rate(int(key.split()[-1]))))
    if kind == "optimizer":
        factor, decay = row.rules[name]
        return Pair(key, theirs, [[factor * row["schedule.base_lr"], decay]])
    if kind == "optimizer_rules":
        [(of_parameters, rules)] = rules_of({name: theirs}).items()
        return Pair(key, rules, [list(row.rules[of_parameters])])
    if kind == "common":
        found = COMMON[name]
        if project == "mmdetection" and name == "warmup_steps":
            found = (found, one_before)
        if name == "trunk_norm":
            theirs = {word: value for word, value in theirs.items() if word != "type"}
    elif key in table.keys or key in EXTRA:
        found = table.keys.get(key, EXTRA.get(key))
    else:
        return Pair(key, theirs, always(key, theirs, table))
    value, translated = found if isinstance(found, tuple) else (found, lambda same: same)
    return Pair(key, translated(theirs), value(row) if callable(value) else row[value])


def always(key, theirs, table):
    """What kgarden does always."""
    for matching, value in table.fixed.items():
        if key == matching or re.fullmatch(matching, key):
            return theirs if isinstance(value, set) and theirs in value else value
    raise LookupError(f"{key}: no table of tests/support/official_settings.py has this key")


def equal(one, other):
    """Numbers to 1e-6, those of lists to 1e-4 px: anchors are printed with six digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, bool) or isinstance(other, bool) or not is_number(one) or not is_number(other):
        return one == other and isinstance(one, bool) == isinstance(other, bool)
    return math.isclose(one, other, rel_tol=5e-6, abs_tol=1e-12)


def is_number(value):
    return isinstance(value, int | float)

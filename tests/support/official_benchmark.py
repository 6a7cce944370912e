"""Keys of maskrcnn-benchmark and of Double-Head R-CNN on it; see official_settings.py."""

from support.official_detectron2 import ARCHITECTURES, DETECTRON2, architecture, coco_or_voc
from support.official_rows import (
    decay_of,
    delta_weights,
    flip_probability,
    has,
    long_side_at_test,
    lr_factor_of,
    of_both,
    short_side_at_test,
    short_sides,
)


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
    "MODEL.META_ARCHITECTURE": (architecture, ARCHITECTURES.__getitem__),
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
    "MODEL.RPN.FPN_POST_NMS_PER_BATCH": lambda row: row["model.proposer.train.shared_by"] > 1,
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
    "MODEL.RESNETS.TRANS_FUNC": (
        "model.backbone.norm",
        {"BottleneckWithFixedBatchNorm": "frozen_bn"}.__getitem__,
    ),
    "MODEL.RESNETS.STEM_FUNC": ("model.backbone.norm", {"StemWithFixedBatchNorm": "frozen_bn"}.__getitem__),
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": "model.neck.channels",
    "MODEL.BACKBONE.OUT_CHANNELS": "model.neck.channels",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": DETECTRON2["MODEL.RESNETS.RES2_OUT_CHANNELS"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": DETECTRON2["MODEL.RESNETS.STEM_OUT_CHANNELS"],
    "INPUT.MIN_SIZE_TRAIN": short_sides,
    "INPUT.MAX_SIZE_TRAIN": "data.long_side_px",
    "INPUT.MIN_SIZE_TEST": short_side_at_test,
    "INPUT.MAX_SIZE_TEST": long_side_at_test,
    "INPUT.PIXEL_MEAN": "model.pixels.mean",
    "INPUT.PIXEL_STD": "model.pixels.std",
    "INPUT.TO_BGR255": lambda row: row["model.pixels.order"] == "bgr",
    "INPUT.HORIZONTAL_FLIP_PROB_TRAIN": flip_probability,
    "DATASETS.TRAIN": (coco_or_voc("train"), the_same_images),
    "DATASETS.TEST": (coco_or_voc("val"), the_same_images),
    "SOLVER.MAX_ITER": "schedule.steps",
    "SOLVER.BASE_LR": "schedule.base_lr",
    "SOLVER.BIAS_LR_FACTOR": lr_factor_of("bias"),
    "SOLVER.MOMENTUM": "schedule.optimizer.momentum",
    "SOLVER.WEIGHT_DECAY": "schedule.optimizer.weight_decay",
    "SOLVER.WEIGHT_DECAY_BIAS": decay_of("bias"),
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
}

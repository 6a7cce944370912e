"""Keys of cvpods as DeFCN uses it; see official_settings.py."""

from support.official_detectron2 import DETECTRON2, DETECTRON2_FIXED, DETECTRON2_IDLE
from support.official_rows import (
    anchor_levels,
    clips,
    decay_of,
    flips,
    has,
    long_side_at_test,
    lr_factor_of,
    short_side_at_test,
    short_sides,
)


def resized(row):
    """cvpods' pipelines of a row."""
    sides = {"max_size": row["data.long_side_px"], "sample_style": "choice"}
    train = ["ResizeShortestEdge", {"short_edge_length": short_sides(row), **sides}]
    return [train, *(["RandomFlip", {}] for _ in flips(row))]


def resized_for_test(row):
    sides = {"max_size": long_side_at_test(row), "sample_style": "choice"}
    return [["ResizeShortestEdge", {"short_edge_length": short_side_at_test(row), **sides}]]


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
    "SOLVER.LR_SCHEDULER.NAME": ("schedule.decay.name", {"WarmupMultiStepLR": "steps"}.__getitem__),
    "SOLVER.LR_SCHEDULER.MAX_ITER": "schedule.steps",
    "SOLVER.LR_SCHEDULER.STEPS": "schedule.decay.at",
    "SOLVER.LR_SCHEDULER.WARMUP_FACTOR": "schedule.warmup.factor",
    "SOLVER.LR_SCHEDULER.WARMUP_ITERS": "schedule.warmup.steps",
    "SOLVER.LR_SCHEDULER.GAMMA": "schedule.decay.factor",
    "SOLVER.OPTIMIZER.NAME": ("schedule.optimizer.name", {"D2SGD": "sgd"}.__getitem__),
    "SOLVER.OPTIMIZER.BASE_LR": "schedule.base_lr",
    "SOLVER.OPTIMIZER.BIAS_LR_FACTOR": lr_factor_of("bias"),
    "SOLVER.OPTIMIZER.WEIGHT_DECAY": "schedule.optimizer.weight_decay",
    "SOLVER.OPTIMIZER.WEIGHT_DECAY_NORM": decay_of("norm_scale"),
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

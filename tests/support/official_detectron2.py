"""Keys of detectron2, and of AdelaiDet and CenterNet2 on it; see official_settings.py."""

import re

from support.official_rows import (
    anchor_levels,
    boxes,
    clips,
    decay_of,
    delta_weights,
    flips,
    has,
    head,
    levels_of,
    long_side_at_test,
    lr_factor_of,
    of_both,
    roi_levels,
    short_side_at_test,
    short_sides,
    stages,
    thresholds,
    upper,
)

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
    "MODEL.META_ARCHITECTURE": (architecture, ARCHITECTURES.__getitem__),
    "MODEL.MASK_ON": has("model.mask_head.class"),
    "MODEL.BACKBONE.NAME": (lambda row: row.get("model.neck.top"), TOPS.__getitem__),
    "MODEL.BACKBONE.FREEZE_AT": "model.backbone.freeze_at",
    "MODEL.RESNETS.DEPTH": "model.backbone.depth",
    "MODEL.RESNETS.OUT_FEATURES": stages,
    "MODEL.RESNETS.NUM_GROUPS": "model.backbone.groups",
    "MODEL.RESNETS.NORM": ("model.backbone.norm", NORMS.__getitem__),
    "MODEL.RESNETS.WIDTH_PER_GROUP": "model.backbone.width_per_group",
    "MODEL.RESNETS.STRIDE_IN_1X1": "model.backbone.stride_in_1x1",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": lambda row: row["model.backbone.widths"][1],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": lambda row: row["model.backbone.widths"][0],
    "MODEL.FPN.IN_FEATURES": lambda row: [] if row.is_c4 else stages(row),
    "MODEL.FPN.OUT_CHANNELS": "model.neck.channels",
    "MODEL.PIXEL_MEAN": "model.pixels.mean",
    "MODEL.PIXEL_STD": "model.pixels.std",
    "INPUT.FORMAT": ("model.pixels.order", str.lower),
    "MODEL.PROPOSAL_GENERATOR.NAME": (
        head("class"),
        {"RPN": "RPNHead", "CenterNet": "CenterNetHead"}.__getitem__,
    ),
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
    "MODEL.ROI_HEADS.NAME": ("model.roi_head.class", ROI_HEADS.__getitem__),
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
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": (
        "model.roi_head.pool.settings.aligned",
        {"ROIAlignV2": True}.__getitem__,
    ),
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
    "MODEL.ROI_MASK_HEAD.NORM": ("model.mask_head.norm", NORMS.__getitem__),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": "model.mask_head.class_agnostic",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": (
        "model.mask_head.pool.settings.aligned",
        {"ROIAlignV2": True}.__getitem__,
    ),
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
    "MODEL.RETINANET.NORM": ("model.dense_head.norm", NORMS.__getitem__),
    "SOLVER.LR_SCHEDULER_NAME": ("schedule.decay.name", {"WarmupMultiStepLR": "steps"}.__getitem__),
    "SOLVER.MAX_ITER": "schedule.steps",
    "SOLVER.BASE_LR": "schedule.base_lr",
    "SOLVER.MOMENTUM": "schedule.optimizer.momentum",
    "SOLVER.WEIGHT_DECAY": "schedule.optimizer.weight_decay",
    "SOLVER.WEIGHT_DECAY_NORM": decay_of("norm_scale"),
    "SOLVER.WEIGHT_DECAY_BIAS": ("schedule.optimizer.decay_biases", lambda decay: decay is None),
    "SOLVER.BIAS_LR_FACTOR": lr_factor_of("bias"),
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
    "INPUT.MIN_SIZE_TEST": short_side_at_test,
    "INPUT.MAX_SIZE_TEST": long_side_at_test,
    "INPUT.RANDOM_FLIP": lambda row: "horizontal" if flips(row) else "none",
    "INPUT.HFLIP_TRAIN": lambda row: bool(flips(row)),
    "INPUT.MASK_FORMAT": lambda row: "bitmap",
    "DATASETS.TRAIN": coco_or_voc("train"),
    "DATASETS.TEST": coco_or_voc("val"),
    "DATALOADER.SAMPLER_TRAIN": ("data.sampling.name", {"TrainingSampler": "natural"}.__getitem__),
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
    "MODEL.FCOS.NORM": ("model.dense_head.norm", NORMS.__getitem__),
    "MODEL.FCOS.USE_SCALE": "model.dense_head.scaled",
    "MODEL.FCOS.BOX_QUALITY": (
        "model.dense_head.quality",
        {"ctrness": "centerness", "iou": "iou"}.__getitem__,
    ),
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
    "MODEL.CONDINST.MASK_BRANCH.NORM": ("model.mask_head.branch.norm", NORMS.__getitem__),
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

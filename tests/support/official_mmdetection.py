"""Keys of mmdetection; see official_settings.py."""

from support.official_rows import (
    EPOCH,
    flip_probability,
    head,
    long_side_at_test,
    lr_factor_of,
    short_side_at_test,
    short_sides,
    upper,
)

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
    return [long_side_at_test(row), short_side_at_test(row)]


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
        "loss_bbox.type": (head("box_loss"), BOX_LOSSES.__getitem__),
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
            "loss_bbox.type": ("model.roi_head.box_loss", BOX_LOSSES.__getitem__),
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
    "model.type": (main_part, TYPES.__getitem__),
    "model.data_preprocessor.mean": "model.pixels.mean",
    "model.data_preprocessor.std": "model.pixels.std",
    "model.data_preprocessor.bgr_to_rgb": lambda row: row["model.pixels.order"] == "rgb",
    "model.data_preprocessor.pad_mask": "data.masks",
    **prefixed("model.backbone", backbone_entries()),
    "model.neck.in_channels": "model.backbone.channels",
    "model.neck.out_channels": "model.neck.channels",
    "model.neck.start_level": lambda row: row["model.neck.levels"][0] - 2,
    "model.neck.add_extra_convs": ("model.neck.top", EXTRA_CONVS.__getitem__),
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
    "model.rpn_head.loss_bbox.type": (box_loss, BOX_LOSSES.__getitem__),
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
        {"StandardRoIHead": "FasterHead", "CascadeRoIHead": "CascadeHead"}.__getitem__,
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
    "optim_wrapper.paramwise_cfg.bias_lr_mult": lr_factor_of("bias"),
    "optim_wrapper.paramwise_cfg.bias_decay_mult": lambda row: row.rules["bias"][1] / row.rules["kernel"][1],
    "optim_wrapper.clip_grad": "schedule.optimizer.clip_norm",
    "optim_wrapper.clip_grad.max_norm": "schedule.optimizer.clip_norm",
    "param_scheduler.0.type": lambda row: "ConstantLR" if row["schedule.warmup.constant"] else "LinearLR",
    "param_scheduler.0.start_factor": "schedule.warmup.factor",
    "param_scheduler.0.factor": "schedule.warmup.factor",
    "param_scheduler.0.end": ("schedule.warmup.steps", one_before),
    "param_scheduler.1.type": ("schedule.decay.name", {"MultiStepLR": "steps"}.__getitem__),
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

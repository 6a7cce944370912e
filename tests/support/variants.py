"""Every model of the garden at its smallest, and a batch for it."""

import numpy as np
from support.small_backbone import RESNET10

from kgarden.structures import MASK_SIDE

TINY = {
    "backbone": RESNET10,
    "neck": {"channels": 32},
}
PROPOSER = {"num_convs": 1, "train": 50, "test": 20, "train_per_level": 60}
VARIANTS = {
    "centernet": {"name": "centernet", **TINY, "dense_head": {"num_convs": 1}},
    "centernet2": {
        "name": "centernet2",
        **TINY,
        "proposer": PROPOSER,
        "roi_head": {"width": 16, "num_samples": 32},
    },
    "centernet2_faster": {
        "name": "centernet2",
        **TINY,
        "proposer": PROPOSER,
        "roi_head": {"name": "faster", "width": 16, "num_samples": 32},
    },
    "centernet2_alone": {"name": "centernet2", **TINY, "proposer": PROPOSER, "roi_head": "none"},
    "one_stage": {
        "name": "one_stage",
        **TINY,
        "dense_head": {"name": "centernet", "width": 32, "num_convs": 1},
    },
    "fcos": {"name": "fcos", **TINY, "dense_head": {"num_convs": 1}},
    "atss": {"name": "atss", **TINY, "dense_head": {"num_convs": 1}},
    "gfl": {"name": "gfl", **TINY, "dense_head": {"num_convs": 1, "reg_max": 8}},
    "retinanet": {"name": "retinanet", **TINY, "dense_head": {"num_convs": 1, "normalizer": "ema"}},
    **{
        f"{base}_pss": {
            "name": "pss",
            **TINY,
            "base": {"name": base, "num_convs": 1, "norm": "gn"},  # RetinaNet's boxes stay near the picture
            "selector": {"num_convs": 1},
        }
        for base in ("fcos", "atss", "gfl", "retinanet")
    },
    "fcos_pss_dropped": {
        "name": "pss",
        **TINY,
        "base": {"name": "fcos", "num_convs": 1},
        "selector": {"num_convs": 1},
        "prediction": "one_to_many",
    },
    **{
        f"condinst{suffix}": {
            "name": "condinst",
            **TINY,
            "base": {"name": "fcos", "num_convs": 1},
            "mask_head": {
                "branch": {"width": 32, "num_convs": 1, "norm": "gn"},
                "semantic": True,
                "topk_proposals": 8,
                "side": 28,
            },
            **settings,
        }
        for suffix, settings in {"": {}, "_pss": {"pss": {"selector": {"num_convs": 1}}}}.items()
    },
    "defcn": {"name": "defcn", **TINY, "dense_head": {"num_convs": 1}},
    "faster_rcnn": {
        "name": "faster_rcnn",
        **TINY,
        "neck": {"channels": 32},
        "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
        "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
        "roi_head": {"width": 16, "num_samples": 32},
    },
    "cascade_rcnn": {
        "name": "cascade_rcnn",
        **TINY,
        "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
        "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
        "roi_head": {"width": 16, "num_samples": 32},
    },
    "faster_rcnn_c4": {
        "name": "faster_rcnn_c4",
        "backbone": TINY["backbone"],
        "rpn": {"sizes": [[8, 16, 32, 64]], "num_samples": 64},
        "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
        "roi_head": {"num_samples": 32},
    },
    "double_head": {
        "name": "double_head",
        **TINY,
        "configuration": "double_head_ext",
        "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
        # each image its own, so that micro-batches and replicas of one image see the same
        "proposals": {"train": {"total": 50, "per_level": 60, "shared_by": 1}, "test": {"total": 20}},
        "roi_head": {
            "fc_head": {"width": 16},
            "conv_head": {"blocks": 3, "width": 32, "middle": 8},
            "num_samples": 32,
        },
    },
    "mask_rcnn": {
        "name": "mask_rcnn",
        **TINY,
        "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
        "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
        "roi_head": {"width": 16, "num_samples": 32},
        "mask_head": {"width": 16, "num_convs": 1, "pool_size": 7},
    },
    "tsd": {
        "name": "tsd",
        **TINY,
        "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
        "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
        "roi_head": {"width": 16, "offset_width": 8, "num_samples": 32},
    },
    "fscascade": {
        "name": "fscascade",
        **TINY,
        "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
        "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
        # 1568 random features of a box, not 16: smaller deltas keep boxes in the picture.
        "roi_head": {"width": 16, "num_samples": 32, "delta_weights": [[100.0, 100.0, 50.0, 50.0]] * 3},
    },
    "tsd_cascade": {
        "name": "tsd_cascade",
        **TINY,
        "rpn": {"sizes": [[8], [16], [32], [64], [128]], "num_samples": 64},
        "proposals": {"train": {"total": 50, "per_level": 60}, "test": {"total": 20}},
        "roi_head": {"width": 16, "offset_width": 8, "num_samples": 32},
    },
    "two_stage": {
        "name": "two_stage",
        **TINY,
        "proposer": {
            "head": {"name": "centernet", "width": 32, "num_convs": 1},
            "train": {"total": 50, "per_level": 60},
            "test": {"total": 20, "method": "peaks"},
        },
        "roi_head": {"name": "faster", "width": 16, "num_samples": 32, "class_agnostic": False},
    },
    "pss_two_stages": {  # proposals without NMS
        "name": "two_stage",
        **TINY,
        "proposer": {
            "head": {
                "name": "pss",
                "base": {"name": "fcos", "num_convs": 1, "width": 32},
                "selector": {"num_convs": 1},
            },
            "train": {"total": 50, "per_level": 60, "method": "none"},
            "test": {"total": 20, "method": "none"},
        },
        "roi_head": {"name": "cascade", "width": 16, "num_samples": 32, "fuse": "released"},
    },
    "two_stage_fcos": {
        "name": "two_stage",
        **TINY,
        "proposer": {
            "head": {"name": "fcos", "width": 32, "num_convs": 1, "shared_tower": True},
            "train": {"total": 50, "per_level": 60},
            "test": {"total": 20},
        },
        "roi_head": {"name": "faster", "width": 16, "num_samples": 32, "fuse": "product"},
    },
    **{
        f"centernet2_{name}": {
            "name": "centernet2",
            **TINY,
            "proposer": {"name": name, **PROPOSER},
            "roi_head": {"name": "faster", "width": 16, "num_samples": 32},
        }
        for name in ("atss", "gfl", "retinanet")
    },
}
# Each part of these is a part of others too, and joined to parts of the same kinds there.
COMPOSED = {
    "centernet2_alone",
    "centernet2_atss",
    "centernet2_gfl",
    "centernet2_retinanet",
    "fcos_pss_dropped",
    "one_stage",
    "two_stage",
    "two_stage_fcos",
}
CLASSES = 3
PART = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE * 2 - 1
DISC = np.hypot(PART[:, None], PART[None]) < 1  # every object fills its box as a disc does


def batch(seed=0, images=2, objects=3, height=64, width=96):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (images, 6, 2)) * [width, height]
    boxes = np.concatenate([corner, corner + rng.uniform(12, 40, (images, 6, 2))], axis=-1)
    labels = np.where(np.arange(6) < objects, rng.integers(0, CLASSES, (images, 6)), -1)
    x = {
        "images": rng.integers(0, 256, (images, height, width, 3), dtype="uint8"),
        "size_hw": np.tile(np.int32([height - 8, width - 4]), (images, 1)),
    }
    y = {
        "boxes": np.minimum(boxes, [width - 4, height - 8] * 2).astype("float32"),
        "labels": labels.astype("int32"),
        "crowd": np.zeros((images, 6), bool),
        "image_id": np.arange(images, dtype="int32"),
        "masks": np.broadcast_to(DISC, (images, 6, *DISC.shape)) & (labels >= 0)[..., None, None],
    }
    return x, y

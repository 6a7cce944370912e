"""Blob names of Caffe2, in detectron2's ImageNet files: R-50.pkl, R-101.pkl, X-101-32x8d.pkl."""

import re

import numpy as np

from kgarden.errors import UserError
from kgarden.layers.norm import EPSILON

NORM = {  # the first name of each is written
    "s": "gamma",
    "b": "beta",
    "rm": "moving_mean",
    "riv": "moving_variance",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
RESNEXT = {"mean": (103.530, 116.280, 123.675), "std": (57.375, 57.120, 58.395), "order": "bgr"}

TABLE = (
    ("conv1_w", "backbone/stem.kernel"),
    *[(f"res_conv1_bn_{theirs}", f"backbone/stem/norm.{ours}") for theirs, ours in NORM.items()],
    *[
        entry
        for branch, layer in (("1", "shortcut"), ("2a", "conv1"), ("2b", "conv2"), ("2c", "conv3"))
        for entry in (
            (rf"(res\d)_(\d+)_branch{branch}_w", rf"backbone/\1_\2/{layer}.kernel"),
            *[
                (rf"(res\d)_(\d+)_branch{branch}_bn_{theirs}", rf"backbone/\1_\2/{layer}/norm.{ours}")
                for theirs, ours in NORM.items()
            ],
        )
    ],
)

IGNORE = (r"(fc1000|pred|last_out.*)_[wb]", r"(lr|.*_momentum)")


def with_statistics(weights):
    """The weights and, where norms are a scale and a shift alone, statistics that change nothing.

    Args:
        weights: {name: array} of a file.
    """
    added = {}
    for name, scale in weights.items():
        has_them = any(f"{name[:-1]}{mean}" in weights for mean in ("rm", "running_mean"))
        if re.fullmatch(r"res.*_bn_s", name) and not has_them:
            added[f"{name[:-1]}rm"] = np.zeros_like(scale)
            added[f"{name[:-1]}riv"] = np.full_like(scale, 1 - EPSILON)
    return {**weights, **added}


def pixels_of(weights):
    """`model.pixels` of a file: MSRA's, for ResNeXt with standard deviations."""
    kernel = weights.get("res2_0_branch2b_w")
    return RESNEXT if kernel is not None and kernel.shape[0] != kernel.shape[1] else "msra"


def table_of(detector):
    """The table, for a backbone that has the stride of a stage where these weights have it.

    Raises:
        UserError: the backbone has it in the other convolution.
    """
    backbone = detector.backbone
    in_1x1 = getattr(backbone, "groups", 1) == 1
    if getattr(backbone, "kind", None) == "bottleneck" and backbone.stride_in_1x1 != in_1x1:
        where = ("3x3", "false") if not in_1x1 else ("first 1x1", "true")
        raise UserError(
            f"these weights have the stride of a stage in the {where[0]} convolution: set "
            f"model.backbone.stride_in_1x1: {where[1]}"
        )
    return TABLE

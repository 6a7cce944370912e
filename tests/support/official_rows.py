"""A recipe row as the tables of published configurations see it, and the words that several of them share."""

import functools
import math
import re

import keras
import numpy as np
from support.effective_settings import effective

from kgarden.build import build_optimizer, learning_rate_of
from kgarden.config.loading import load_recipe
from kgarden.ops.anchors import anchor_grid

EPOCH = 7330  # steps of an epoch of COCO train2017, images with objects, 16 a batch
KINDS = {"kernel": "kernel", "bias": "bias", "norm_scale": "gamma", "norm_shift": "beta", "scalar": "scales"}


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


def short_side_at_test(row):
    return row["data.test_short_side_px"] or max(short_sides(row))


def long_side_at_test(row):
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


def lr_factor_of(kind):
    return lambda row: row.rules[kind][0]


def decay_of(kind):
    return lambda row: row.rules[kind][1]


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

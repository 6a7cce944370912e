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

from support.official_benchmark import BENCHMARK, BENCHMARK_FIXED, BENCHMARK_IDLE, BENCHMARK_IMPLEMENTATION
from support.official_cvpods import DEFCN, DEFCN_FIXED, DEFCN_IDLE, DEFCN_IMPLEMENTATION
from support.official_detectron2 import (
    ADELAIDET,
    ADELAIDET_FIXED,
    ADELAIDET_IDLE,
    ADELAIDET_IMPLEMENTATION,
    CENTERNET2,
    CENTERNET2_FIXED,
    CENTERNET2_IDLE,
    DETECTRON2,
    DETECTRON2_FIXED,
    DETECTRON2_IDLE,
    DETECTRON2_IMPLEMENTATION,
)
from support.official_mmdetection import (
    MMDETECTION,
    MMDETECTION_FIXED,
    MMDETECTION_IDLE,
    MMDETECTION_IMPLEMENTATION,
    one_before,
)
from support.official_rows import (
    EPOCH,
    Row,
    clips,
    decay_of,
    flip_probability,
    frozen_parts,
    learned_norms,
    long_side_at_test,
    method_is,
    norm_parts,
    rules_of,
    short_side_at_test,
    short_sides,
    stage_of,
)


class Table(NamedTuple):
    """See the head of this file; keys of `idle` and `implementation` are patterns."""

    keys: dict
    fixed: dict
    idle: tuple
    implementation: dict


# --- the words of the files themselves --------------------------------------------------------------------

COMMON = {
    "base_lr": "schedule.base_lr",
    "momentum": "schedule.optimizer.momentum",
    "batch_size": "data.batch_size",
    "warmup_steps": "schedule.warmup.steps",
    "warmup_factor": "schedule.warmup.factor",
    "warmup_kind": (
        lambda row: "constant" if row["schedule.warmup.constant"] else "linear",
        lambda kind: {"LinearLR": "linear", "ConstantLR": "constant"}.get(kind, kind),
    ),
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
    "test_short_side": short_side_at_test,
    "test_long_side": long_side_at_test,
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
    "weight_decay_norm": decay_of("norm_scale"),
    "proposals": lambda row: {
        "score_threshold": row["model.proposer.test.score_threshold"],
        **{
            f"{word}_{when}": row[f"model.proposer.{when}.{key}"]
            for word, key in (("per_level", "per_level"), ("nms_iou", "iou"), ("total", "total"))
            for when in ("train", "test")
        },
    },
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
    others = {"rows", "settings", "optimizer_rules", "learning_rate_at_step"}
    values |= {key: value for key, value in one.items() if key not in others}
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
    if key == "norms":
        return "names of classes: settings say the kinds, `norms_that_learn` the places"
    values = configuration.values
    if key == "anchors" and values[key] is None:
        return "no anchors"
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
            theirs = {word: value for word, value in theirs.items() if word != "type"}  # a class
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
    """Whether two values are the same; numbers to 5e-6: anchors are printed with six digits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, bool) or isinstance(other, bool) or not is_number(one) or not is_number(other):
        return one == other and isinstance(one, bool) == isinstance(other, bool)
    return math.isclose(one, other, rel_tol=5e-6, abs_tol=1e-12)


def is_number(value):
    return isinstance(value, int | float)

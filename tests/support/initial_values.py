"""Distributions of initial values: what the files `official_init_*` hold, and what our models draw.

A file has the statistics of every tensor of freshly built published models: name, shape, count (`elements`),
mean, std, min and max. A weight table finds our variable of each name. What differs on purpose stands in
docs/initialisation_audit.md.
"""

import fnmatch
import functools
import json
import math
import pathlib
import re
import types
from typing import NamedTuple

import keras
import numpy as np
from support.golden import DIRECTORY, HERE

from kgarden.backbones import make_backbone
from kgarden.config.loading import load_recipe
from kgarden.models import build_detector
from kgarden.weights import adelaidet, cvpods, detectron2, maskrcnn_benchmark, mmdetection
from kgarden.weights.state_dict import load_state_dict

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "initialisation_audit.md"
RECIPES = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}

# --- statistics ---------------------------------------------------------------------------------------------

LARGE = 4000  # elements from which on the largest value tells the law, see `shape_of_law`


class Stats(NamedTuple):
    """Distribution of one tensor.

    Attributes:
        shape:  of the tensor, in its own layout.
        count:  elements.
        mean, std, min, max: of them.
    """

    shape: tuple
    count: int
    mean: float
    std: float
    min: float
    max: float

    @property
    def farthest(self):
        """Largest distance from the mean, in standard deviations."""
        return max(self.max - self.mean, self.mean - self.min) / self.std


def stats_of(values):
    """Stats of an array; float64 sums, since float32 ones of 10^7 values are off by more than a draw is."""
    values = np.asarray(values)
    mean, std = float(values.mean(dtype="float64")), float(values.std(dtype="float64"))
    if values.min() == values.max():
        mean, std = float(values.flat[0]), 0.0
    return Stats(values.shape, values.size, mean, std, float(values.min()), float(values.max()))


def shape_of_law(stats):
    """The law by the farthest value: "uniform", "truncated" or "normal".

    In standard deviations a uniform law ends at 1.73, a normal one truncated at two of its own at 2.27; the
    farthest of 4000 normal values lies beyond 2.4 but for a probability of 0.984^4000 < 1e-28. A sample's
    standard deviation is off by less than 5.6 % (6 sigma, truncated): 2 and 2.4 separate the three.
    """
    return "uniform" if stats.farthest < 2.0 else "truncated" if stats.farthest < 2.4 else "normal"


def difference(ours, theirs):
    """How two draws differ beyond what draws of one law do; None where they do not.

    The means of two draws differ by less than 6 sqrt(2) std / sqrt(n). The deviation of a sample is off by
    std sqrt((kurtosis - 1) / 4 n), at most std / sqrt(2 n) for uniform, truncated and normal laws: two differ
    by less than 6 std / sqrt(n). A deviation of 0 is a constant, which must be equal to the four digits that
    the files give.
    """
    if ours.std == 0 or theirs.std == 0:
        same = ours.std == theirs.std and math.isclose(ours.mean, theirs.mean, rel_tol=5e-4, abs_tol=1e-6)
        return None if same else "a constant"
    std, root = max(ours.std, theirs.std), math.sqrt(theirs.count)
    if abs(ours.mean - theirs.mean) > 6 * math.sqrt(2) * std / root:
        return "the mean"
    if abs(ours.std - theirs.std) > 6 * std / root:
        return "the deviation"
    if theirs.count >= LARGE and shape_of_law(ours) != shape_of_law(theirs):
        return f"the law: {shape_of_law(ours)}, not {shape_of_law(theirs)}"
    return None


def law(text, shape):
    """What a law named in the table gives a tensor.   Stats

    Args:
        text:  a number, or a key of LAWS.
        shape: (out, in, height, width) or (out, in).
    """
    count = math.prod(shape)
    if text not in LAWS:
        return Stats(shape, count, float(text), 0.0, float(text), float(text))
    kind, variance = LAWS[text]
    of_kernel = math.prod(shape[2:])
    std = math.sqrt(variance(shape[1] * of_kernel, shape[0] * of_kernel))
    return Stats(shape, count, 0.0, std, -FARTHEST[kind] * std, FARTHEST[kind] * std)


FARTHEST = {"uniform": 1.73, "truncated": 2.27, "normal": 4.0}
LAWS = {  # as in kgarden/layers/initializers.py
    "c2_msra": ("normal", lambda fan_in, fan_out: 2 / fan_out),
    "c2_xavier": ("uniform", lambda fan_in, fan_out: 1 / fan_in),
    "he_normal": ("truncated", lambda fan_in, fan_out: 2 / fan_in),
    "torch": ("uniform", lambda fan_in, fan_out: 1 / (3 * fan_in)),
    "xavier": ("uniform", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
}

# --- the page -----------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of the table of differences.

    Attributes:
        systems, tensors: patterns of names (`fnmatch`), in which * stands for anything.
        theirs, ours:     see `law`.
        reason:           text.
    """

    systems: str
    tensors: str
    theirs: str
    ours: str
    reason: str

    def is_of(self, system):
        """Whether the line speaks of a system."""
        return fnmatch.fnmatchcase(system.name, self.systems)

    def explains(self, name, theirs, ours):
        """Whether the line names a tensor and says what both sides draw."""
        return fnmatch.fnmatchcase(name, self.tensors) and not (
            difference(theirs, law(self.theirs, theirs.shape))
            or difference(ours, law(self.ours, theirs.shape))
        )


def lines(heading, width):
    """Cells of the table below a heading of the page, without backticks."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)[2:]
    cells = [[cell.strip().strip("`") for cell in row.split("|")] for row in rows]
    assert all(len(row) == width for row in cells), f"{PAGE.name}: {heading}: a table of {width} columns"
    return cells


def differences_on_purpose():
    """[Line, ...]"""
    return [Line(*cells) for cells in lines("Differences on purpose", 5)]


def not_compared():
    """{pattern of systems: reason}; the table may be empty."""
    return dict(lines("Not compared", 2))


# --- the files ----------------------------------------------------------------------------------------------


class System(NamedTuple):
    """One published model of a file.

    Attributes:
        name:    its key in the file.
        project: first word of its reference, in lower case.
        row:     (recipe, row) here; None where there is no such model.
        tensors: {reference's name: Stats}.
    """

    name: str
    project: str
    row: tuple | None
    tensors: dict

    def __str__(self):
        return self.name


ROWS = {  # of models that their file names by the configuration of their project
    "adelaidet/fcos.r50_1x": "fcos/adelaidet.1x",
    "detectron2 mask_rcnn_R_50_FPN_1x": "mask_rcnn/detectron2.r50_1x",
    "detectron2 cascade_mask_rcnn_R_50_FPN_1x": "mask_rcnn/detectron2.cascade_r50_1x",
    "detectron2 faster_rcnn_R_50_C4_1x": "faster_rcnn_c4/detectron2.r50_1x",
    # the release trains both tasks in both heads
    "doubleheadsrcnn e2e_faster_rcnn_R_50_FPN_1x_neighbor_bs8": "double_head/table3.complementary",
    "mmdetection faster-rcnn_r50_fpn_1x_coco": "faster_rcnn/mmdetection.r50_1x",
    "mmdetection cascade-rcnn_r50_fpn_1x_coco": "cascade_rcnn/mmdetection.r50_1x",
    "TSD faster_rcnn_r50_fpn_TSD_1x": "tsd/release.r50",
    "CenterNet2 CenterNet2_R50_1x": "centernet2/table1.c_centernet",
}


def systems():
    """All models of all files, those of the directory of goldens and, in their absence, the repository's."""
    paths = sorted(DIRECTORY.glob("official_init_*.json")) or sorted(HERE.glob("official_init_*.json"))
    return [
        System(name, _project(name, model), _row(name, model), _tensors(model["parameters"]))
        for path in paths
        for name, model in json.loads(path.read_text())["models"].items()
    ]


def _project(name, model):
    return re.split("[ /]", model.get("reference", name))[0].lower()


def _row(name, model):
    """(recipe, row) by `rows` of the file, by ROWS, or by a key of the form recipe/row."""
    given = [*model.get("rows", ()), ROWS.get(name), name]
    for one in filter(None, given):
        match = re.match(r"(\w+)[/ ]([\w.]+)", one)
        if match and match[1] in RECIPES and match[2] in load_recipe(match[1]).rows:
            return match.groups()
    return None


def _tensors(parameters):
    """{name: Stats} of a list of entries or of a dictionary by name."""
    if isinstance(parameters, list):
        parameters = {entry["name"]: entry for entry in parameters}
    return {
        name: Stats(
            tuple(entry["shape"]),
            entry["count"] if "count" in entry else entry["elements"],
            *(entry[key] for key in ("mean", "std", "min", "max")),
        )
        for name, entry in parameters.items()
    }


# --- our values ---------------------------------------------------------------------------------------------

TABLES = {  # by project: table, names without a counterpart, conversions
    "adelaidet": (adelaidet.TABLE, adelaidet.IGNORE),
    "centernet2": (detectron2.TABLE, detectron2.IGNORE),
    "defcn": (cvpods.TABLE, cvpods.IGNORE),
    "detectron2": (detectron2.TABLE, detectron2.IGNORE),
    "doubleheadsrcnn": (
        maskrcnn_benchmark.DOUBLE_HEAD,
        maskrcnn_benchmark.IGNORE,
        maskrcnn_benchmark.CONVERSIONS,
    ),
    "maskrcnn-benchmark": (
        maskrcnn_benchmark.TABLE,
        maskrcnn_benchmark.IGNORE,
        maskrcnn_benchmark.CONVERSIONS,
    ),
    "mmdetection": (mmdetection.TABLE, mmdetection.IGNORE),
    "mmdetection of two stages": (mmdetection.TWO_STAGE, mmdetection.IGNORE),
    "tsd": (mmdetection.TSD, mmdetection.IGNORE, mmdetection.TSD_CONVERSIONS),
}


def table_of(system):
    """Table, patterns of ignored names, and conversions for the names of a system."""
    of_two_stages = system.project == "mmdetection" and any("roi_head" in name for name in system.tensors)
    table, ignored, *conversions = TABLES[system.project + of_two_stages * " of two stages"]
    return table, ignored, conversions[0] if conversions else ()


class BuiltBefore(keras.layers.Layer):
    """Stands for a ResNet-50, whose values are drawn once for all models (`backbone_of`)."""

    strides, channels = (4, 8, 16, 32), (256, 512, 1024, 2048)


@functools.cache
def backbone_of(settings):
    """{path: Stats} of a backbone; `settings` is JSON."""
    backbone = make_backbone(json.loads(settings))
    backbone.build((None, None, None, 3))
    return drawn(backbone)


def drawn(layer):
    """{path: Stats}"""
    return {variable.path: stats_of(variable) for variable in layer.weights}


def model_of(system):
    """{path: Stats} of the full-size model of a system, with 80 classes."""
    recipe, row = system.row
    settings = load_recipe(recipe, row=row).model.model_dump(exclude={"num_classes"})
    keras.utils.set_random_seed(0)
    if recipe == "faster_rcnn_c4":  # whose second stage is a part of the backbone
        return drawn(build_detector(settings, 80))
    values = backbone_of(json.dumps(settings["backbone"] | {"stride_in_1x1": False}))
    return values | drawn(build_detector(settings | {"backbone": BuiltBefore(name="backbone")}, 80))


# --- which variable is which tensor -------------------------------------------------------------------------


OF_NO_TENSOR = re.compile(r"(.*/)?(step|average(_before|_step)?|moving_mean|moving_variance)")


class Target:
    """A variable for `load_state_dict` that remembers the number it is given, one for each tensor."""

    def __init__(self, path, stats):
        self.path, self.shape, self.stats = path, stats.shape, stats
        self.number = np.full(stats.shape if len(stats.shape) == 1 else (), -1.0, "float32")

    def numpy(self):
        """The numbers so far, where single elements are assigned."""
        return self.number

    def assign(self, array):
        """Takes the first element, or all of a short vector, which may hold several tensors."""
        self.number = np.array(array if array.ndim == 1 else array.flat[0])


def pairs(system):
    """(reference's name, its Stats, our Stats) of every tensor, found by the weight table.

    Raises:
        UserError: a name without a counterpart, or another shape.
    """
    table, ignored, conversions = table_of(system)
    names = [name for name in system.tensors if not any(re.fullmatch(one, name) for one in ignored)]
    targets = [Target(path, stats) for path, stats in model_of(system).items()]
    numbers = {
        name: np.broadcast_to(np.float32(number), system.tensors[name].shape)
        for number, name in enumerate(names)
    }
    model = types.SimpleNamespace(weights=targets)
    load_state_dict(model, numbers, table, partial=True, conversions=conversions)
    found = {}
    for target in targets:
        assigned = {round(number) for number in target.number.flat} - {-1}
        own = assigned or target.path.startswith("backbone/") or OF_NO_TENSOR.fullmatch(target.path)
        assert own, f"{system}: no tensor is our {target.path}"
        found |= {names[number]: target for number in assigned}
    assert found.keys() == set(names), f"{system}: lost {set(names) - found.keys()}"
    return [(name, system.tensors[name], found[name].stats) for name in names]

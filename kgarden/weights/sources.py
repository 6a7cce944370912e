"""The projects whose weights can be read and written, each with its table of names."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kgarden.errors import UserError
from kgarden.weights import adelaidet, cvpods, detectron2, maskrcnn_benchmark, mmdetection, torchvision
from kgarden.weights.reverse import state_dict_of
from kgarden.weights.state_dict import Matched, match_state_dict

Table = tuple[tuple[str, str], ...]
NUM_BATCHES = r".*\.num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Source:
    """A project's names and layouts.

    Attributes:
        about:       what it covers, for lists.
        known_by:    regular expression of names that only this project has, or projects further down in SOURCES.
        table:       of `kgarden.weights.state_dict.our_name`, or a function of the detector that returns it.
        ignore:      regular expressions of names without a counterpart here.
        conversions: triples (regular expression of a name, function of its array, the inverse function), where
                     an array means something else here.
        is_backbone: the file is a classifier: a detector's backbone alone.
    """

    about: str
    known_by: str
    table: Table | Callable[[Any], Table]
    ignore: tuple[str, ...] = ()
    conversions: tuple[tuple[str, Callable, Callable], ...] = ()
    is_backbone: bool = False

    def table_of(self, detector: keras.Model) -> Table:
        """The table of names for this detector."""
        return self.table(detector) if callable(self.table) else self.table


def _mmdetection(detector):
    """The pyramid's convolutions are numbered from its first level on: P2 below RoI heads, else P3."""
    return mmdetection.TWO_STAGE if "roi_head" in detector.parts() else mmdetection.TABLE


def _maskrcnn_benchmark(detector):
    has_two_heads = any("/roi_head/conv/features/" in variable.path for variable in detector.weights)
    return maskrcnn_benchmark.DOUBLE_HEAD if has_two_heads else maskrcnn_benchmark.TABLE


# In the order in which a file is tried.
SOURCES = {
    "adelaidet": Source(
        "AdelaiDet: FCOS, CondInst",
        r"proposal_generator\.fcos_head\..*",
        adelaidet.TABLE,
        adelaidet.IGNORE,
    ),
    "cvpods": Source(
        "cvpods and the DeFCN release",
        r"head\.(max3d|filter|centerness|scales)\..*",
        cvpods.TABLE,
        (*cvpods.IGNORE, NUM_BATCHES),
    ),
    "detectron2": Source(
        "detectron2's model zoo and the CenterNet2 release",
        r"backbone\.(bottom_up|stem|res2|base)\..*|proposal_generator\..*",
        detectron2.TABLE,
        (*detectron2.IGNORE, NUM_BATCHES),
    ),
    "maskrcnn-benchmark": Source(
        "maskrcnn-benchmark and the Double-Head release",
        r"backbone\.body\.stem\..*",
        _maskrcnn_benchmark,
        maskrcnn_benchmark.IGNORE,
        maskrcnn_benchmark.CONVERSIONS,
    ),
    "mmdetection": Source(
        "mmdetection 2 and 3: Faster, Mask and Cascade R-CNN, RetinaNet, FCOS, ATSS, GFL",
        r"(bbox_head|rpn_head|roi_head)\..*",
        _mmdetection,
        mmdetection.IGNORE,
    ),
    "torchvision": Source(
        "ResNet and ResNeXt classifiers of torchvision and timm",
        r"layer1\.0\.conv1\.weight",
        torchvision.resnet_names(""),
        (NUM_BATCHES, r"fc\.(weight|bias)"),
        is_backbone=True,
    ),
}


def source_of(weights: dict[str, np.ndarray], path: Any = "weights") -> str:
    """Returns the name of the project that wrote a state dict, one of SOURCES.

    Args:
        weights: {name: array}.
        path:    of its file, for the message.
    Raises:
        UserError: none that is known.
    """
    for name, source in SOURCES.items():
        if any(re.fullmatch(source.known_by, key) for key in weights):
            return name
    raise UserError(
        f"{path}: the names of its weights (first {next(iter(weights))!r}) belong to no known project: "
        f"{', '.join(SOURCES)}"
    )


def match_weights(detector: keras.Model, weights: dict[str, np.ndarray], name: str) -> Matched:
    """Finds the variable of each array of a project's state dict; assigns nothing.

    Args:
        detector: built.
        weights:  {name: array}, of `kgarden.weights.files.read_weights`.
        name:     of the project, one of SOURCES.
    Returns:
        Matched.
    """
    source = SOURCES[name]
    return match_state_dict(
        detector.backbone if source.is_backbone else detector,
        weights,
        source.table_of(detector),
        ignore=source.ignore,
        pool_size=_pool_size(detector),
        conversions=source.conversions,
    )


def weights_as(detector: keras.Model, name: str) -> dict[str, np.ndarray]:
    """Returns a detector's weights as a project's state dict, {name: array}.

    Args:
        detector: built.
        name:     of the project, one of SOURCES.
    Raises:
        UserError: the project has no such model.
    """
    source = SOURCES[name]
    try:
        return state_dict_of(
            detector.backbone if source.is_backbone else detector,
            source.table_of(detector),
            pool_size=_pool_size(detector),
            conversions=source.conversions,
        )
    except UserError as error:
        raise UserError(f"{name} has no counterpart of this model: {error}") from error


def _pool_size(detector):
    """Side of the RoI features that the first dense layer of a RoI head reads; 7 where there is none."""
    for variable in detector.weights:
        if variable.path.endswith("/fc1/kernel"):
            return math.isqrt(variable.shape[0] // detector.neck.channels)
    return 7

"""The projects whose weights can be read and written, each with its table of names."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kgarden.backbones.dla import DLA
from kgarden.backbones.efficientnet_lite import EfficientNetLite0
from kgarden.backbones.mobilenet_v2 import MobileNetV2
from kgarden.backbones.res2net import Res2Net
from kgarden.backbones.senet import SENet154, SEResNet
from kgarden.errors import UserError
from kgarden.weights import (
    adelaidet,
    caffe2,
    cvpods,
    detectron2,
    efficientnet_lite_pytorch,
    keras_applications,
    maskrcnn_benchmark,
    mmdetection,
    timm,
    torchvision,
    torchvision_detectors,
)
from kgarden.weights.reverse import state_dict_of
from kgarden.weights.state_dict import Matched, match_state_dict

Table = tuple[tuple[str, str], ...]
NUM_BATCHES = r".*\.num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Project:
    """A project's names and layouts.

    Attributes:
        about:       what it covers, for lists.
        known_by:    regular expression of names that no project before this one in PROJECTS has.
        table:       of `kgarden.weights.state_dict.our_name`, or a function of the detector that returns it.
        ignore:      regular expressions of names without a counterpart here, or a function of the detector
                     that returns them.
        conversions: of `match_state_dict`: where an array means something else here.
        is_backbone: the file is a classifier: a detector's backbone alone.
        pixels:      what its models expect, as `model.pixels`, or a function of a file's weights that returns
                     it; None: not known.
        prepare:     function of a file's weights that returns what the names are looked up in.
        restore:     the inverse of `prepare`, function of a state dict.
        check:       function of a detector that raises UserError if it computes something else with these
                     weights, which their shapes cannot tell.
    """

    about: str
    known_by: str
    table: Table | Callable[[Any], Table]
    ignore: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    conversions: tuple[tuple[str, Callable, Callable], ...] = ()
    is_backbone: bool = False
    pixels: Any = None
    prepare: Callable[[dict], dict] = dict
    restore: Callable[[dict], dict] = dict
    check: Callable[[Any], None] | None = None

    def table_of(self, detector: keras.Model) -> Table:
        """The table of names for this detector."""
        return self.table(detector) if callable(self.table) else self.table

    def ignored_by(self, detector: keras.Model) -> tuple[str, ...]:
        """The names that this detector has no counterpart of."""
        return self.ignore(detector) if callable(self.ignore) else self.ignore


def _mmdetection(detector):
    return mmdetection.table_for(detector.backbone, has_roi_head="roi_head" in detector.parts())


def _maskrcnn_benchmark(detector):
    has_two_heads = any("/roi_head/conv/features/" in variable.path for variable in detector.weights)
    return maskrcnn_benchmark.DOUBLE_HEAD if has_two_heads else maskrcnn_benchmark.TABLE


def _torchvision_detectors(detector):
    _check_stride(detector.backbone)
    has_fcos = any("/fcos/" in variable.path for variable in detector.weights)
    return torchvision_detectors.table_for(detector.neck.levels[0], has_fcos)


def _timm(detector):
    """Names go by the family; what shapes cannot tell is checked."""
    backbone = detector.backbone
    families = {
        SENet154: timm.senet_names,
        SEResNet: timm.seresnext_names,
        Res2Net: timm.res2net_names,
        DLA: timm.dla_names,
        MobileNetV2: functools.partial(timm.inverted_residual_names, repeats=timm.MOBILENET_V2),
        EfficientNetLite0: functools.partial(timm.inverted_residual_names, repeats=timm.EFFICIENTNET_LITE0),
    }
    for family, names in families.items():
        if isinstance(backbone, family):
            if family is EfficientNetLite0 and backbone.padding != "same":
                raise UserError("weights of timm's EfficientNet-Lite0: set model.backbone.padding: same")
            if family is Res2Net and not backbone.pool_at_stride_1:
                raise UserError("weights of timm's Res2Net: set model.backbone.pool_at_stride_1: true")
            return names("")
    return _torchvision(detector)


def _torchvision(detector):
    backbone = detector.backbone
    if isinstance(backbone, MobileNetV2):
        return torchvision.mobilenet_v2_names("")
    _check_stride(backbone)
    return torchvision.resnet_names("")


def _check_stride(backbone):
    if getattr(backbone, "stride_in_1x1", False) and backbone.kind == "bottleneck":
        raise UserError(
            "these weights have the stride of a stage in the 3x3 convolution: set "
            "model.backbone.stride_in_1x1: false"
        )


def _last_conv(detector):
    """Names of a mobile network's 1x1 before its classifier, where the backbone ends without it."""
    mobile = isinstance(detector.backbone, (MobileNetV2, EfficientNetLite0))
    without = mobile and not detector.backbone.last_conv
    return (r"(features\.18|conv_head|bn2|Conv_1|Conv_1_bn)\..*",) if without else ()


# In the order in which a file is tried.
PROJECTS = {
    "adelaidet": Project(
        "AdelaiDet: FCOS, CondInst",
        r"proposal_generator\.fcos_head\..*",
        table=adelaidet.TABLE,
        ignore=adelaidet.IGNORE,
    ),
    "cvpods": Project(
        "cvpods and the DeFCN release",
        r"head\.(max3d|filter|centerness|scales)\..*",
        table=cvpods.TABLE,
        ignore=(*cvpods.IGNORE, NUM_BATCHES),
    ),
    "detectron2": Project(
        "detectron2's model zoo and the CenterNet2 release",
        r"backbone\.(bottom_up|stem\.conv1|res2|base)\..*|proposal_generator\..*",
        table=lambda detector: detectron2.table_for(detector.backbone, detector.neck),
        ignore=(*detectron2.IGNORE, NUM_BATCHES),
    ),
    "maskrcnn-benchmark": Project(
        "maskrcnn-benchmark and the Double-Head release",
        r"backbone\.body\.stem\..*",
        table=_maskrcnn_benchmark,
        ignore=maskrcnn_benchmark.IGNORE,
        conversions=maskrcnn_benchmark.CONVERSIONS,
    ),
    "torchvision-detectors": Project(
        "torchvision: Faster and Mask R-CNN, RetinaNet, FCOS",
        r"backbone\.fpn\.inner_blocks\..*",
        table=_torchvision_detectors,
        ignore=torchvision_detectors.IGNORE,
        conversions=torchvision_detectors.CONVERSIONS,
        pixels="torchvision",
        prepare=torchvision_detectors.with_epsilon,
        check=torchvision_detectors.check,
    ),
    "tsd": Project(
        "the TSD release, on mmdetection 1: Faster, Mask and Cascade R-CNN with TSD",
        r"bbox_head\.(\d\.)?TSD_.*",
        table=mmdetection.TSD,
        ignore=mmdetection.IGNORE,
        conversions=mmdetection.TSD_CONVERSIONS,
    ),
    "mmdetection": Project(
        "mmdetection 2 and 3: Faster, Mask and Cascade R-CNN, RetinaNet, FCOS, ATSS, GFL",
        r"(bbox_head|rpn_head|roi_head)\..*",
        table=_mmdetection,
        ignore=lambda detector: mmdetection.left_out_of(detector.backbone),
    ),
    "caffe2": Project(
        "ImageNet classifiers of Caffe2, as detectron2 has them: ResNet, ResNeXt",
        r"res2_0_branch2a_w",
        table=caffe2.table_of,
        ignore=caffe2.IGNORE,
        is_backbone=True,
        pixels=caffe2.pixels_of,
        prepare=caffe2.with_statistics,
    ),
    "keras-applications": Project(
        "classifiers of keras.applications: ResNet-50, 101 and 152, MobileNetV2",
        r"(conv1_conv|Conv1|layers/conv2d)/.*",
        table=keras_applications.table_of,
        ignore=lambda detector: (*keras_applications.IGNORE, *_last_conv(detector)),
        is_backbone=True,
        pixels=keras_applications.pixels_of,
        prepare=keras_applications.to_state_dict,
        restore=keras_applications.from_state_dict,
    ),
    "timm": Project(
        "classifiers of timm: Res2Net v1b, SENet-154, SE-ResNeXt, DLA-34, MobileNetV2, EfficientNet-Lite0",
        r"(layer1\.0\.convs\.0|layer0\.conv1|level0\.0|conv_stem)\.weight",
        table=_timm,
        ignore=lambda detector: (*timm.IGNORE, *_last_conv(detector)),
        is_backbone=True,
        pixels=timm.pixels_of,
    ),
    "efficientnet-lite-pytorch": Project(
        "classifiers of efficientnet-lite-pytorch: EfficientNet-Lite0",
        r"_conv_stem\.weight",
        table=efficientnet_lite_pytorch.table_of,
        ignore=efficientnet_lite_pytorch.left_out_of,
        is_backbone=True,
        pixels=efficientnet_lite_pytorch.PIXELS,
    ),
    "torchvision": Project(
        "classifiers of torchvision: ResNet, ResNeXt (also timm's), MobileNetV2",
        r"(layer1\.0\.conv1|features\.0\.0)\.weight",
        table=_torchvision,
        ignore=lambda detector: (
            NUM_BATCHES,
            r"(fc|classifier\.1)\.(weight|bias)",
            *_last_conv(detector),
        ),
        is_backbone=True,
        pixels="torchvision",
    ),
}


def project_of(weights: dict[str, np.ndarray], path: Any = "weights") -> str:
    """Returns the name of the project that wrote a state dict, one of PROJECTS.

    Args:
        weights: {name: array}.
        path:    of its file, for the message.
    Raises:
        UserError: none that is known.
    """
    for name, project in PROJECTS.items():
        if any(re.fullmatch(project.known_by, key) for key in weights):
            return name
    raise UserError(
        f"{path}: the names of its weights (first {next(iter(weights))!r}) belong to no known project: "
        f"{', '.join(PROJECTS)}"
    )


def match_weights(detector: keras.Model, weights: dict[str, np.ndarray], name: str) -> Matched:
    """Finds the variable of each array of a project's state dict; assigns nothing.

    Args:
        detector: built.
        weights:  {name: array}, of `kgarden.weights.files.read_weights`.
        name:     of the project, one of PROJECTS.
    Returns:
        Matched.
    """
    project = PROJECTS[name]
    return match_state_dict(
        detector.backbone if project.is_backbone else detector,
        project.prepare(weights),
        project.table_of(detector),
        ignore=project.ignored_by(detector),
        pool_size=_pool_size(detector),
        conversions=project.conversions,
    )


def weights_as(detector: keras.Model, name: str) -> dict[str, np.ndarray]:
    """Returns a detector's weights as a project's state dict, {name: array}.

    Args:
        detector: built.
        name:     of the project, one of PROJECTS.
    Raises:
        UserError: the project has no such model.
    """
    project = PROJECTS[name]
    try:
        state = state_dict_of(
            detector.backbone if project.is_backbone else detector,
            project.table_of(detector),
            pool_size=_pool_size(detector),
            conversions=project.conversions,
            with_optional=bool(detector.neck.weights),  # below a pyramid detectron2's backbone is `bottom_up`
        )
        return project.restore(state)
    except UserError as error:
        raise UserError(f"{name} has no counterpart of this model: {error}") from error


def _pool_size(detector):
    """Side of the RoI features that the first dense layer of a RoI head reads; 7 where there is none."""
    for variable in detector.weights:
        if variable.path.endswith("/fc1/kernel"):
            return math.isqrt(variable.shape[0] // detector.neck.channels)
    return 7

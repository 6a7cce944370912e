"""Layer names of keras.applications: ResNet-50, 101 and 152 (version 1) and MobileNetV2.

Convolutions of ResNet have biases before a batch norm, which are taken from the norm's mean; the epsilons of
the norms, 1.001e-5 and 1e-3, are taken into the variance.
"""

import re

import keras
import numpy as np

from kgarden.backbones.mobilenet_v2 import MobileNetV2
from kgarden.errors import UserError
from kgarden.layers.norm import EPSILON

RESNET_EPSILON, MOBILENET_EPSILON = 1.001e-5, 1e-3
RESNET_PIXELS = {"mean": (103.939, 116.779, 123.68), "std": (1.0, 1.0, 1.0), "order": "bgr"}
MOBILENET_PIXELS = {"mean": (127.5,) * 3, "std": (127.5,) * 3, "order": "rgb"}
RESNETS = {53: "ResNet50", 104: "ResNet101", 155: "ResNet152"}  # by the number of convolutions
ANONYMOUS = r"layers/([a-z_0-9]+)/vars/(\d)"  # Keras 3 writes no layer's name
# Variables of a layer, as PyTorch and as Keras calls them.
OF_CONVOLUTION = {"weight": "kernel"}
OF_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
VARIABLES = {
    ours: theirs for variables in (OF_CONVOLUTION, OF_NORM) for theirs, ours in variables.items()
} | {"depthwise_kernel": "weight"}  # Keras 2
KINDS = {  # of layers, as Keras 3 counts them
    "Conv2D": "conv2d",
    "DepthwiseConv2D": "depthwise_conv2d",
    "BatchNormalization": "batch_normalization",
}
IGNORE = (r"predictions\..*",)


def resnet_names(counts):
    """Entries of a table for a ResNet.

    Args:
        counts: of the blocks of each stage.
    """
    layers = [
        (f"conv{stage}_block{block + 1}_{number}", f"backbone/res{stage}_{block}/{ours}")
        for stage, blocks in enumerate(counts, start=2)
        for block in range(blocks)
        for number, ours in enumerate(("shortcut", "conv1", "conv2", "conv3"))
    ]
    return tuple(
        entry
        for theirs, ours in [("conv1", "backbone/stem"), *layers]
        for entry in ((f"{theirs}_conv", ours), (f"{theirs}_bn", f"{ours}/norm"))
    )


def mobilenet_v2_names():
    """Entries of a table for MobileNetV2."""
    entries = [
        ("Conv1", "backbone/stem"),
        ("bn_Conv1", "backbone/stem/norm"),
        ("Conv_1", "backbone/last_conv"),
        ("Conv_1_bn", "backbone/last_conv/norm"),
    ]
    for number in range(17):
        theirs = f"block_{number}" if number else "expanded_conv"
        for part in ("expand", "depthwise", "project"):
            ours = f"backbone/block{number + 1}/{part}"
            entries += [(f"{theirs}_{part}", ours), (f"{theirs}_{part}_BN", f"{ours}/norm")]
    return tuple(entries)


def table_of(detector):
    """The table for a detector's backbone.

    Raises:
        UserError: it is none of these, or pads its strided convolutions or places strides differently.
    """
    backbone = detector.backbone
    if isinstance(backbone, MobileNetV2):
        if backbone.padding != "same":
            raise UserError("these weights are padded as TensorFlow does: set model.backbone.padding: same")
        return mobilenet_v2_names()
    if getattr(backbone, "kind", None) != "bottleneck" or not hasattr(backbone, "stride_in_1x1"):
        raise UserError("keras.applications has ResNet-50, 101 and 152 and MobileNetV2: set model.backbone")
    if not backbone.stride_in_1x1:
        raise UserError(
            "these weights have the stride of a stage in the first 1x1 convolution: set "
            "model.backbone.stride_in_1x1: true"
        )
    return resnet_names(backbone.counts)


def pixels_of(weights):
    """`model.pixels` of a file."""
    return MOBILENET_PIXELS if _is_mobilenet(weights) else RESNET_PIXELS


def to_state_dict(weights):
    """Arrays of a Keras file as PyTorch would have them, biases and epsilons in the statistics.

    Args:
        weights: {"layer/variable": array}, or names of Keras 3 such as "layers/conv2d/vars/0".
    Returns:
        {"layer.weight": OIHW array, "layer.running_mean", ...}.
    """
    difference = (MOBILENET_EPSILON if _is_mobilenet(weights) else RESNET_EPSILON) - EPSILON
    state = {}
    for name, array in _with_layer_names(weights).items():
        layer, variable = name.rsplit("/", 1)
        state[f"{layer}.{VARIABLES.get(variable, variable)}"] = _to_oihw(array, layer)
    for name in [name for name in state if name.endswith(".running_var")]:
        state[name] = np.float32(np.float64(state[name]) + difference)
        mean, bias = name.replace("_var", "_mean"), re.sub(r"_bn\.running_var$", "_conv.bias", name)
        if bias != name and bias in state:
            state[mean] = state[mean] - state.pop(bias)
    return state


def from_state_dict(state):
    """The inverse of `to_state_dict`, with the layers' names and biases of 0."""
    difference = (RESNET_EPSILON if "conv1_conv.weight" in state else MOBILENET_EPSILON) - EPSILON
    weights = {}
    for name, array in state.items():
        layer, suffix = name.rsplit(".", 1)
        if suffix == "running_var":
            array = np.float32(np.float64(array) - difference)
        if array.ndim == 4:
            array = array.transpose((2, 3, 0, 1) if _is_depthwise(layer) else (2, 3, 1, 0))
            if layer.endswith("_conv"):
                weights[f"{layer}/bias"] = np.zeros(array.shape[-1], "float32")
        variables = OF_CONVOLUTION if array.ndim == 4 else OF_NORM
        weights[f"{layer}/{variables[suffix]}"] = array
    return weights


def _to_oihw(array, layer):
    if array.ndim != 4:
        return array
    return array.transpose((2, 3, 0, 1) if _is_depthwise(layer) else (3, 2, 0, 1))


def _is_depthwise(layer):
    """Depthwise kernels are (H, W, channels, 1) in Keras, and (channels, 1, H, W) in PyTorch."""
    return layer.endswith("_depthwise")


def _is_mobilenet(weights):
    return any("depthwise" in name for name in weights)


def _with_layer_names(weights):
    """The names of a file of Keras 2, {"conv1_conv/kernel": array}, for those of Keras 3.

    Keras 3 counts the layers of a kind in the model's order instead of naming them, so that the model tells.
    """
    if not any(re.fullmatch(ANONYMOUS, name) for name in weights):
        return weights
    numbers, named = {"kernel": 0, "bias": 1}, {}
    for variable, number in numbers.items():
        if (key := f"layers/dense/vars/{number}") in weights:
            named[f"predictions/{variable}"] = weights[key]
    counts = dict.fromkeys(KINDS.values(), 0)
    for layer in _model_of(weights).layers:
        kind = KINDS.get(type(layer).__name__)
        if kind is None:
            continue
        path = f"layers/{kind}_{counts[kind]}" if counts[kind] else f"layers/{kind}"
        counts[kind] += 1
        for number, variable in enumerate(layer.weights):
            named[f"{layer.name}/{variable.name}"] = weights[f"{path}/vars/{number}"]
    return named


def _model_of(weights):
    """The model of keras.applications that wrote a file, without values."""
    convolutions = len([name for name in weights if re.fullmatch(r"layers/conv2d(_\d+)?/vars/0", name)])
    name = "MobileNetV2" if _is_mobilenet(weights) else RESNETS.get(convolutions)
    if name is None:
        raise UserError(
            f"{convolutions} convolutions are none of keras.applications' ResNet-50, 101, 152 and MobileNetV2"
        )
    with keras.StatelessScope(initialize_variables=False):
        return getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(64, 64, 3))

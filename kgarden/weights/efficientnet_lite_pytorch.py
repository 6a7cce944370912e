"""Weight names of efficientnet-lite-pytorch, whose weights are those of TensorFlow's TPU models."""

from kgarden.backbones.efficientnet_lite import EfficientNetLite0
from kgarden.errors import UserError

PIXELS = {"mean": (127.0,) * 3, "std": (128.0,) * 3, "order": "rgb"}
LAST_CONV = r"(_conv_head|_bn1)\..*"
IGNORE = (r".*\.num_batches_tracked", r"_fc\.(weight|bias)")
BLOCKS = 16


def table_of(detector):
    """The table for a detector's backbone.

    Raises:
        UserError: it is another network, or pads its strided convolutions differently.
    """
    backbone = detector.backbone
    if not isinstance(backbone, EfficientNetLite0):
        raise UserError(
            "efficientnet-lite-pytorch has EfficientNet-Lite0: set model.backbone: efficientnet_lite0"
        )
    if backbone.padding != "same":
        raise UserError("these weights are padded as TensorFlow does: set model.backbone.padding: same")
    return names()


def left_out_of(detector):
    """Names without a counterpart: the classifier, and the 1x1 before it where C5 is the last block."""
    return IGNORE if getattr(detector.backbone, "last_conv", False) else (*IGNORE, LAST_CONV)


def names():
    """Entries of a table, see `kgarden.weights.state_dict.our_name`."""
    entries = [
        ("_conv_stem", "backbone/stem"),
        ("_bn0", "backbone/stem/norm"),
        ("_conv_head", "backbone/last_conv"),
        ("_bn1", "backbone/last_conv/norm"),
    ]
    for number in range(BLOCKS):
        for norm, part in enumerate(("expand", "depthwise", "project")):
            theirs, ours = rf"_blocks\.{number}\._", f"backbone/block{number + 1}/{part}"
            entries += [(f"{theirs}{part}_conv", ours), (f"{theirs}bn{norm}", f"{ours}/norm")]
    return tuple(entries)

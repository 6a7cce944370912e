"""Weight names of timm: SENet, Res2Net, DLA, MobileNetV2, EfficientNet-Lite0.

Its ResNet and ResNeXt have torchvision's names.
"""

import itertools

from kgarden.weights.torchvision import resnet_names


def deep_stem_names(prefix, last_norm):
    """Entries for a stem of three convolutions that is one sequence but for its last norm.

    Args:
        prefix:    of the sequence, such as r"conv1\\.".
        last_norm: of the norm behind it.
    """
    sequence = [
        (f"{prefix}{position}", f"backbone/stem/{ours}")
        for position, ours in ((0, "conv1"), (1, "conv1/norm"), (3, "conv2"), (4, "conv2/norm"), (6, "conv3"))
    ]
    return (*sequence, (last_norm, "backbone/stem/conv3/norm"))


def senet_names(prefix):
    """Entries for SENet-154 and SE-ResNeXt ("legacy_senet154"); `prefix`: of the backbone's modules."""
    of_stem = [
        (rf"{prefix}layer0\.{theirs}{number}", f"backbone/stem/conv{number}{ours}")
        for number in (1, 2, 3)
        for theirs, ours in (("conv", ""), ("bn", "/norm"))
    ]
    excite = [
        (rf"{prefix}layer{number}\.(\d+)\.se_module\.{theirs}", rf"backbone/res{number + 1}_\1/excite/{ours}")
        for number in range(1, 5)
        for theirs, ours in (("fc1", "down"), ("fc2", "up"))
    ]
    return (*of_stem, *excite, *resnet_names(prefix))


def seresnext_names(prefix):
    """Entries for SE-ResNeXt, whose stem is one convolution ("legacy_seresnext50_32x4d")."""
    of_stem = ((rf"{prefix}layer0\.conv1", "backbone/stem"), (rf"{prefix}layer0\.bn1", "backbone/stem/norm"))
    return (*of_stem, *senet_names(prefix))


def res2net_names(prefix):
    """Entries for Res2Net v1b ("res2net50d") and mmdetection's "v1d"; `prefix`: of the backbone's modules."""
    blocks = [
        (rf"{prefix}layer{number}\.(\d+)\.{theirs}", rf"backbone/res{number + 1}_\1/{ours}")
        for number in range(1, 5)
        for theirs, ours in (
            (r"convs\.(\d)", r"split\2"),
            (r"bns\.(\d)", r"split\2/norm"),
            (r"downsample\.1", "shortcut"),
            (r"downsample\.2", "shortcut/norm"),
        )
    ]
    stem = deep_stem_names(prefix + r"conv1\.", prefix + "bn1")
    return (*stem, *blocks, *resnet_names(prefix))


def dla_names(prefix):
    """Entries for DLA-34, with the authors' names; `prefix`: of the backbone's modules."""
    stem = [
        (rf"{prefix}{theirs}\.{offset}", f"backbone/stem/{ours}{part}")
        for theirs, ours in (("base_layer", "base"), ("level0", "level0"), ("level1", "level1"))
        for offset, part in ((0, ""), (1, "/norm"))
    ]
    halves = ("tree1.", "tree2.")
    trees = ["".join(path) for depth in range(3) for path in itertools.product(halves, repeat=depth)]
    return (
        *stem,
        *[
            (
                prefix + r"level([2-5])\." + tree.replace(".", r"\.") + theirs,
                r"backbone/level\1/" + tree.replace(".", "/") + ours,
            )
            for tree in trees
            for theirs, ours in (
                (r"conv(\d)", r"conv\2"),
                (r"bn(\d)", r"conv\2/norm"),
                (r"root\.conv", "root"),
                (r"root\.bn", "root/norm"),
                (r"project\.0", "project"),
                (r"project\.1", "project/norm"),
            )
        ],
    )


MOBILENET_V2 = (1, 2, 3, 4, 3, 3, 1)  # blocks of each stage
EFFICIENTNET_LITE0 = (1, 2, 2, 3, 3, 4, 1)


def inverted_residual_names(prefix, repeats):
    """Entries for MobileNetV2 ("mobilenetv2_100") and EfficientNet-Lite0 ("tf_efficientnet_lite0").

    Args:
        prefix:  of the backbone's modules.
        repeats: blocks of each stage: MOBILENET_V2 or EFFICIENTNET_LITE0.
    """
    entries = [
        (prefix + "conv_stem", "backbone/stem"),
        (prefix + "bn1", "backbone/stem/norm"),
        (prefix + "conv_head", "backbone/last_conv"),
        (prefix + "bn2", "backbone/last_conv/norm"),
    ]
    names = (("conv_pw", "expand"), ("conv_dw", "depthwise"), ("conv_pwl", "project"))
    number = 0
    for stage, blocks in enumerate(repeats):
        for block in range(blocks):
            number += 1
            # the first block does not expand: its last 1x1 has the name of the others' first
            of_block = names if stage else (("conv_dw", "depthwise"), ("conv_pw", "project"))
            for norm, (theirs, ours) in enumerate(of_block, start=1):
                where = rf"{prefix}blocks\.{stage}\.{block}\."
                entries += [
                    (where + theirs, f"backbone/block{number}/{ours}"),
                    (f"{where}bn{norm}", f"backbone/block{number}/{ours}/norm"),
                ]
    return tuple(entries)


LITE_PIXELS = {"mean": (127.5,) * 3, "std": (127.5,) * 3, "order": "rgb"}
ONLY_IN_LITE = "blocks.5.3.conv_pw.weight"  # MobileNetV2 has three blocks in this stage


def pixels_of(weights):
    """`model.pixels` of a file."""
    return LITE_PIXELS if ONLY_IN_LITE in weights else "torchvision"


IGNORE = (
    r".*\.num_batches_tracked",
    r"level[34]\.project\..*",  # of DLA's outer trees: nothing reads it
    r"(fc|classifier|last_linear|head\.fc)\.(weight|bias)",
)

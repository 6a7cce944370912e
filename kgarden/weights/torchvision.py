"""Names of torchvision's ResNet, which many projects carry under a prefix of their own, and MobileNetV2."""


def resnet_names(prefix, stem=""):
    """Entries of a table for a ResNet: stem, four stages, and batch norms beside their convolutions.

    Args:
        prefix: of the backbone's modules, a regular expression such as r"backbone\\.".
        stem:   what stands before the stem's modules as well.
    Returns:
        pairs (regular expression of a module's name, replacement), see `our_name`.
    """
    of_stages = [
        (rf"{prefix}layer{number}\.(\d+)\.{theirs}", rf"backbone/res{number + 1}_\1/{ours}")
        for number in range(1, 5)
        for theirs, ours in (
            (r"conv(\d)", r"conv\2"),
            (r"conv(\d)\.conv_offset", r"conv\2/offset"),  # mmdetection's deformable convolution
            (r"bn(\d)", r"conv\2/norm"),
            (r"downsample\.0", "shortcut"),
            (r"downsample\.1", "shortcut/norm"),
        )
    ]
    return (
        (prefix + stem + "conv1", "backbone/stem"),
        (prefix + stem + "bn1", "backbone/stem/norm"),
        *of_stages,
    )


def mobilenet_v2_names(prefix):
    """Entries of a table for MobileNetV2, whose blocks and the convolutions around them are one sequence.

    Args:
        prefix: of the backbone's modules, a regular expression.
    Returns:
        pairs (regular expression of a module's name, replacement), see `our_name`.
    """
    block, ours = prefix + r"features\.(\d+)\.conv\.", r"backbone/block\1/"
    return (
        (prefix + r"features\.0\.0", "backbone/stem"),
        (prefix + r"features\.0\.1", "backbone/stem/norm"),
        (prefix + r"features\.1\.conv\.0\.0", "backbone/block1/depthwise"),  # it does not expand
        (prefix + r"features\.1\.conv\.0\.1", "backbone/block1/depthwise/norm"),
        (prefix + r"features\.1\.conv\.1", "backbone/block1/project"),
        (prefix + r"features\.1\.conv\.2", "backbone/block1/project/norm"),
        (block + r"0\.0", ours + "expand"),
        (block + r"0\.1", ours + "expand/norm"),
        (block + r"1\.0", ours + "depthwise"),
        (block + r"1\.1", ours + "depthwise/norm"),
        (block + "2", ours + "project"),
        (block + "3", ours + "project/norm"),
        (prefix + r"features\.18\.0", "backbone/last_conv"),
        (prefix + r"features\.18\.1", "backbone/last_conv/norm"),
    )

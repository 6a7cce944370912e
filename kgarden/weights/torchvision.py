"""Names of torchvision's ResNet, which many projects carry under a prefix of their own."""


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

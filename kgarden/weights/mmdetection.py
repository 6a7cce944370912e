"""Weight names of mmdetection 3: ResNet, FPN and dense heads."""


def fpn(first_level):
    """Entries of an FPN, whose convolutions are numbered from its first level on.

    Args:
        first_level: 3 for dense detectors, 2 for Faster R-CNN.
    """
    return tuple(
        (rf"neck\.{theirs}_convs\.{level - first_level}\.conv", f"neck/{ours}{level}")
        for theirs, ours, levels in (
            ("lateral", "lateral", range(first_level, 6)),
            ("fpn", "output", range(first_level, 6)),
            ("fpn", "p", range(6, 8)),
        )
        for level in levels
    )


RESNET = (
    (r"backbone\.conv1", "backbone/stem"),
    (r"backbone\.bn1", "backbone/stem/norm"),
    *[
        (rf"backbone\.layer{number}\.(\d+)\.{theirs}", rf"backbone/res{number + 1}_\1/{ours}")
        for number in range(1, 5)
        for theirs, ours in (
            (r"conv(\d)", r"conv\2"),
            (r"bn(\d)", r"conv\2/norm"),
            (r"downsample\.0", "shortcut"),
            (r"downsample\.1", "shortcut/norm"),
        )
    ],
)

DENSE_HEADS = (
    # towers have one name in all heads
    *[
        entry
        for theirs, ours in (("cls", "class"), ("reg", "box"))
        for entry in (
            (rf"bbox_head\.{theirs}_convs\.(\d)\.conv", rf"{ours}_tower/conv\1"),
            (rf"bbox_head\.{theirs}_convs\.(\d)\.gn", rf"{ours}_tower/conv\1/norm"),
        )
    ],
    *[
        (rf"bbox_head\.{theirs}_{output}", f"{head}/{ours}")
        for head, theirs in (("retinanet", "retina"), ("fcos", "conv"), ("atss", "atss"), ("gfl", "gfl"))
        for output, ours in (("cls", "classes"), ("reg", "code"), ("centerness", "centerness"))
    ],
    (r"bbox_head\.scales\.(\d+)", r"scales[\1]"),
)

TABLE = (*RESNET, *fpn(3), *DENSE_HEADS)

IGNORE = (
    r".*\.num_batches_tracked",
    r"data_preprocessor\.(mean|std)",
    r"bbox_head\.integral\.project",  # GFL's distances 0..n
)

"""Weight names of mmdetection 3: ResNet, FPN and dense heads."""


def fpn(first_level):
    """Entries of an FPN, whose convolutions are numbered from its first level on.

    Args:
        first_level: 3 for dense detectors, 2 for Faster R-CNN.
    """
    extra = {number: f"neck/p{first_level + number}" for number in range(6 - first_level, 8 - first_level)}
    return (
        *[
            (rf"neck\.lateral_convs\.{number}\.conv", f"neck/lateral{first_level + number}")
            for number in range(6 - first_level)
        ],
        *[
            (rf"neck\.fpn_convs\.{number}\.conv", f"neck/output{first_level + number}")
            for number in range(6 - first_level)
        ],
        *[(rf"neck\.fpn_convs\.{number}\.conv", ours) for number, ours in extra.items()],
    )


RESNET = (
    (r"backbone\.conv1", "backbone/stem"),
    (r"backbone\.bn1", "backbone/stem/norm"),
    *[
        entry
        for number in range(1, 5)
        for entry in (
            (rf"backbone\.layer{number}\.(\d+)\.conv(\d)", rf"backbone/res{number + 1}_\1/conv\2"),
            (rf"backbone\.layer{number}\.(\d+)\.bn(\d)", rf"backbone/res{number + 1}_\1/conv\2/norm"),
            (rf"backbone\.layer{number}\.(\d+)\.downsample\.0", rf"backbone/res{number + 1}_\1/shortcut"),
            (rf"backbone\.layer{number}\.(\d+)\.downsample\.1", rf"backbone/res{number + 1}_\1/shortcut/norm"),
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

"""Weight names of mmdetection 3: ResNet, FPN, dense heads, RPN and RoI heads."""

from kgarden.weights.torchvision import resnet_names


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


RESNET = resnet_names(r"backbone\.")

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


def _fully_connected(theirs, ours):
    """Entries for a box head whose layers count from 0 there and from 1 here."""
    return [
        *[(rf"{theirs}\.shared_fcs\.{number}", f"{ours}/features/fc{number + 1}") for number in range(2)],
        (theirs + r"\.fc_cls", f"{ours}/classes"),
        (theirs + r"\.fc_reg", f"{ours}/boxes"),
    ]


RPN = (
    (r"rpn_head\.rpn_conv", "rpn/box_tower/conv0"),
    (r"rpn_head\.rpn_cls", "rpn/classes"),
    (r"rpn_head\.rpn_reg", "rpn/code"),
)

# Faster R-CNN, Cascade R-CNN and Mask R-CNN on P2..P6.
TWO_STAGE = (
    *RESNET,
    *fpn(2),
    *RPN,
    *_fully_connected(r"roi_head\.bbox_head", "roi_head/box_head"),
    *[
        entry
        for stage in range(3)
        for entry in _fully_connected(rf"roi_head\.bbox_head\.{stage}", f"roi_head/box_head{stage}")
    ],
    *[(rf"roi_head\.mask_head\.convs\.{number}\.conv", f"mask_head/conv{number + 1}") for number in range(4)],
    (r"roi_head\.mask_head\.upsample", "mask_head/deconv"),
    (r"roi_head\.mask_head\.conv_logits", "mask_head/classes"),
)

IGNORE = (r".*\.num_batches_tracked",)

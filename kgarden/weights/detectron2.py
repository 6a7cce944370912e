"""Weight names of detectron2 and of the CenterNet2 release."""

HEAD = r"proposal_generator\.centernet_head\."


def tower_names(theirs, ours, layers=3):
    """Entries of a table for a tower that is one sequence of convolutions, norms and ReLUs.

    Args:
        theirs: what stands before the numbers of the sequence, such as r"head\\.bbox_subnet\\.".
        ours:   our tower, such as "retinanet/box_tower".
        layers: of the sequence for each convolution: 3, or 2 without norms.
    Returns:
        pairs (regular expression of a module's name, replacement), see `our_name`; also for a deformable
        convolution, a module of two.
    """
    convolutions = [
        (rf"{theirs}{layers * number}{part}", f"{ours}/conv{number}{offset}")
        for number in range(8)
        for part, offset in (("", ""), (r"\.conv", ""), (r"\.offset", "/offset"))
    ]
    norms = [(rf"{theirs}{layers * number + 1}", f"{ours}/conv{number}/norm") for number in range(8)]
    return (*convolutions, *(norms if layers == 3 else ()))


TRUNK = (
    # backbone, below a pyramid or alone
    (r"backbone\.(?:bottom_up\.)?stem\.conv1", "backbone/stem"),
    (r"backbone\.(?:bottom_up\.)?(res\d)\.(\d+)\.(conv\d|shortcut)", r"backbone/\1_\2/\3"),
    (r"backbone\.(?:bottom_up\.)?(res\d)\.(\d+)\.conv2_offset", r"backbone/\1_\2/conv2/offset"),
    # neck
    (r"backbone\.fpn_(lateral|output)(\d)", r"neck/\1\2"),
    (r"backbone\.top_block\.(p\d)", r"neck/\1"),
)

TABLE = (
    *TRUNK,
    # RPN
    (r"proposal_generator\.rpn_head\.conv", "rpn/box_tower/conv0"),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn/classes"),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn/code"),
    # RetinaNet, whose towers have no norms
    *tower_names(r"head\.bbox_subnet\.", "retinanet/box_tower", layers=2),
    *tower_names(r"head\.cls_subnet\.", "retinanet/class_tower", layers=2),
    (r"head\.cls_score", "retinanet/classes"),
    (r"head\.bbox_pred", "retinanet/code"),
    # CenterNet2's first stage
    *tower_names(HEAD + r"bbox_tower\.", "centernet/box_tower"),
    *tower_names(HEAD + r"cls_tower\.", "centernet/class_tower"),
    (HEAD + "bbox_pred", "centernet/ltrb"),
    (HEAD + "agn_hm", "centernet/objectness"),
    (HEAD + "cls_logits", "centernet/classes"),
    (HEAD + r"scales\.(\d+)", r"centernet/scales[\1]"),
    # second stage: cascade heads are numbered, a single one is not
    (r"roi_heads\.box_head\.(\d)\.(fc\d)", r"roi_head/box_head\1/features/\2"),
    (r"roi_heads\.box_predictor\.(\d)\.cls_score", r"roi_head/box_head\1/classes"),
    (r"roi_heads\.box_predictor\.(\d)\.bbox_pred", r"roi_head/box_head\1/boxes"),
    (r"roi_heads\.res5\.(\d+)\.(conv\d|shortcut)", r"roi_head/box_head/features/res5_\1/\2"),
    (r"roi_heads\.box_head\.(fc\d)", r"roi_head/box_head/features/\1"),
    (r"roi_heads\.box_predictor\.cls_score", "roi_head/box_head/classes"),
    (r"roi_heads\.box_predictor\.bbox_pred", "roi_head/box_head/boxes"),
    # masks
    (r"roi_heads\.mask_head\.mask_fcn(\d)", r"mask_head/conv\1"),
    (r"roi_heads\.mask_head\.deconv", "mask_head/deconv"),
    (r"roi_heads\.mask_head\.predictor", "mask_head/classes"),
)

IGNORE = (
    r"pixel_(mean|std)",
    r"(proposal_generator\.)?anchor_generator\.cell_anchors\.\d",
    r"roi_heads\.box_predictor\.\d\.freq_weight",
)

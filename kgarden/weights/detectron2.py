"""Weight names of detectron2 and of the CenterNet2 release."""

from kgarden.backbones.dla import DLA
from kgarden.backbones.res2net import Res2Net
from kgarden.necks.bifpn import BiFPN, node_graph
from kgarden.necks.dla_up import DLAUp
from kgarden.weights.timm import deep_stem_names, dla_names

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


def bifpn_names(separable):
    """Entries for a BiFPN in the style of EfficientDet on five levels."""
    cell, ours = r"backbone\.cell\.(\d+)\.fnode\.", r"neck/cell\1/"
    entries = [(r"backbone\.resample\.3\.conv\.conv", "neck/p6")]
    entries += [(r"backbone\.resample\.3\.conv\.bn", "neck/p6/norm")]
    for number, node in enumerate(range(5, 13)):
        edge = rf"{cell}{number}\.combine\.resample\.(\d)\.conv\."
        after = rf"{cell}{number}\.after_combine\.conv\."
        entries += [
            (rf"{cell}{number}\.combine", f"{ours}node{node}"),
            (edge + "conv", rf"{ours}edge\2_{node}"),
            (edge + "bn", rf"{ours}edge\2_{node}/norm"),
            (after + "conv_dw", f"{ours}node{node}/depthwise"),
            (after + ("conv_pw" if separable else "conv"), f"{ours}node{node}/conv"),
            (after + "bn", f"{ours}node{node}/conv/norm"),
        ]
    return entries


def fcos_bifpn_names(levels):
    """Entries for a BiFPN in the style of FCOS; names hold the level and the inputs of a node."""
    layer, ours = r"backbone\.repeated_bifpn\.(\d+)\.", r"neck/cell\1/"
    entries = [
        (r"backbone\.bottom_up\.dla6\.reduction", "neck/p6"),
        (layer + r"lateral_(\d)_f(\d)", ours + r"lateral\2_\3"),
    ]
    for node, (level, inputs) in enumerate(node_graph(levels), start=levels):
        name = "_".join(map(str, (level, *inputs)))
        entries += [
            (f"{layer}weights_f{name}", f"{ours}node{node}.edge_weights"),
            (f"{layer}outputs_f{name}", f"{ours}node{node}/conv"),
        ]
    return entries


def dla_up_names(deformable):
    """Entries for iterative aggregation to stride 4, with deformable or plain convolutions."""
    conv, norm = (r"\.conv", r"\.actf\.0") if deformable else (r"\.conv\.0", r"\.conv\.1")
    entries = []
    for theirs, ours, number in (
        (r"backbone\.dla_up\.ida_(\d)\.", r"neck/join\1/", r"\2"),
        (r"backbone\.ida_up\.", "neck/last/", r"\1"),
    ):
        entries.append((theirs + r"up_(\d)", f"{ours}up{number}"))
        for their_part, our_part in (("proj", "project"), ("node", "node")):
            module, layer = theirs + their_part + r"_(\d)", ours + our_part + number
            entries += [
                (module + conv, layer),
                (module + r"\.offset", f"{layer}/offset"),
                (module + norm, f"{layer}/norm"),
            ]
    return entries


RES2NET = (
    *deep_stem_names(r"backbone\.(?:bottom_up\.)?stem\.conv1\.", r"backbone\.(?:bottom_up\.)?stem\.bn1"),
    *[
        (rf"backbone\.(?:bottom_up\.)?(res\d)\.(\d+)\.{theirs}", rf"backbone/\1_\2/{ours}")
        for theirs, ours in (
            (r"convs\.(\d)", r"split\3"),
            (r"bns\.(\d)", r"split\3/norm"),
            (r"conv2_offsets\.(\d)", r"split\3/offset"),
            (r"shortcut\.1", "shortcut"),
        )
    ],
)

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
    r".*\.num_batches_tracked",
    r"backbone\.(bottom_up\.(backbone\.)?|base\.)level[34]\.project\..*",  # of outer trees: nothing reads it
    r"backbone\.base\.fc\..*",
    r"pixel_(mean|std)",
    r"(proposal_generator\.)?anchor_generator\.cell_anchors\.\d",
    r"roi_heads\.box_predictor\.\d\.(freq_weight|fed_loss_cls_weights)",
)


def table_for(backbone, neck):
    """The table of a model with this backbone and neck: modules of one name here have several there.

    Args:
        backbone, neck: layers of kgarden/backbones and kgarden/necks.
    """
    entries = []
    if isinstance(backbone, Res2Net):
        entries += RES2NET
    if isinstance(backbone, DLA):
        inside = "base" if isinstance(neck, DLAUp) else "bottom_up"
        is_of_fcos = isinstance(neck, BiFPN) and neck.style == "fcos"
        entries += dla_names(rf"backbone\.{inside}\." + (r"backbone\." if is_of_fcos else ""))
    if isinstance(neck, DLAUp):
        entries += dla_up_names(neck.settings["deformable"])
    if isinstance(neck, BiFPN) and neck.style == "fcos":
        entries += fcos_bifpn_names(len(neck.levels))
    elif isinstance(neck, BiFPN):
        entries += bifpn_names(neck.separable)
    return (*entries, *TABLE)

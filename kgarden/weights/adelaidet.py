"""Weight names of AdelaiDet: FCOS and CondInst on detectron2's backbone and pyramid."""

from kgarden.weights.detectron2 import TRUNK, tower_names

HEAD = r"proposal_generator\.fcos_head\."

FCOS = (
    *tower_names(HEAD + r"bbox_tower\.", "fcos/box_tower"),
    *tower_names(HEAD + r"cls_tower\.", "fcos/class_tower"),
    (HEAD + "cls_logits", "fcos/classes"),
    (HEAD + "bbox_pred", "fcos/code"),
    (HEAD + "ctrness", "fcos/centerness"),
    (HEAD + r"scales\.(\d+)", r"fcos/scales[\1]"),
)

CONDINST = (
    ("controller", "condinst/controller"),
    # the branch's tower ends with a bare convolution, all others have a norm
    *[
        entry
        for theirs, ours in (
            ("refine", "branch/refine"),
            ("tower", "branch/conv"),
            ("seg_head", "semantic/conv"),
        )
        for entry in (
            (rf"mask_branch\.{theirs}\.(\d+)\.0", rf"condinst/{ours}\1"),
            (rf"mask_branch\.{theirs}\.(\d+)\.1", rf"condinst/{ours}\1/norm"),
        )
    ],
    (r"mask_branch\.tower\.\d+", "condinst/branch/maps"),
    (r"mask_branch\.logits", "condinst/semantic/classes"),
)

TABLE = (*TRUNK, *FCOS, *CONDINST)

IGNORE = (
    r"pixel_(mean|std)",
    r"mask_head\.(sizes_of_interest|_iter)",
    r".*\.num_batches_tracked",
)

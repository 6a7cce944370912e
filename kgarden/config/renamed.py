"""Renamed settings: replacements that the error for an old name suggests."""

RENAMED = {
    "count": "topk_proposals or max_proposals (CondInst: points of an image that learn masks)",
    "answer": "classify_with, a list of branches, and regress_with, a branch, "
    "as in classify_with: [fc, conv], regress_with: conv",
    "rescue": "low_quality_matches, with own for keep and all for overwrite",
    "rescue_above": "low_quality_above",
    "truth": "gt_rois, with refine for kept, drop for removed and readd for added_again",
}

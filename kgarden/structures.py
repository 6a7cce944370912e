"""The shared words of kgarden: what batches, candidates, proposals and detections hold.

Letters: B images, H and W pixels of the canvas, M objects (padded), A anchors or points over
all levels, P proposals (padded), S samples, K detections (padded), C classes, L levels, D channels.

Boxes are xyxy corners in px of the network input, continuous (no "+1"), float32. Labels are
0..C-1 with -1 on padding. Everything of variable length is padded and carries a mask.

    x           {"images": (B, H, W, 3) uint8 RGB, "size_hw": (B, 2) int32 height and width
                 of the picture inside the canvas; the rest of the canvas is padding}; with several views
                 "views": tuple of further {"images", "size_hw", "mirrored": (B,) bool}, which show the same
                 pictures at other sizes or in a mirror
    y           {"boxes": (B, M, 4) float32, "labels": (B, M) int32, "crowd": (B, M) bool,
                 "image_id": (B,) int64}, with `data.masks` "masks": (B, M, 112, 112) bool, bitmaps over the
                 boxes, sampled at the centres of their cells; none set: no mask is known
    meta        {"image_id": (B,) int64, "original_hw": (B, 2) int32}
    pyramid     list of (B, H_l, W_l, D), finest level first
    candidates  {"boxes": (B, A, 4), "scores": (B, A, C), "valid": (B, A, C) bool}
    proposals   {"boxes": (B, P, 4), "scores": (B, P), "valid": (B, P) bool}
    detections  {"boxes": (B, K, 4), "scores": (B, K), "labels": (B, K) int32, "valid": (B, K) bool,
                 "source": (B, K) int32 row of the candidates it came from,
                 "masks": (B, K, S, S) float32 probabilities over the boxes, from a model with a mask head}

All of these are plain dictionaries, so that Keras, tf.data, SavedModel and JAX agree on them.
"""

IMAGES = "images"
SIZE_HW = "size_hw"
BOXES = "boxes"
LABELS = "labels"
CROWD = "crowd"
SCORES = "scores"
VALID = "valid"
SOURCE = "source"
IMAGE_ID = "image_id"
MASKS = "masks"
ORIGINAL_HW = "original_hw"
VIEWS = "views"
MIRRORED = "mirrored"

PAD_LABEL = -1
MASK_SIDE = 112  # cells of a mask along each side of its box


def truth_is_valid(y):
    """Which rows of the padded ground truth are objects to learn: no padding, no crowd.   (B, M) bool."""
    return (y[LABELS] >= 0) & ~y[CROWD]

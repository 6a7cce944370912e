"""Keys, shapes and types of batches, candidates, proposals and detections.

Letters: B images, H and W pixels of the canvas, M objects (padded), A anchors or points over
all levels, P proposals (padded), S samples, K detections (padded), C classes, L levels, D channels.

Boxes are xyxy corners in px of the network input, continuous (no "+1"), float32. Labels are
0..C-1 with -1 on padding. Everything of variable length is padded and has a mask.

    x           {"images": (B, H, W, 3) uint8 RGB, "size_hw": (B, 2) int32 height and width
                 of the image inside the canvas; the rest of the canvas is padding}; with several views
                 "views": tuple of further {"images", "size_hw", "mirrored": (B,) bool}, which show the same
                 images at other sizes or mirrored
    y           {"boxes": (B, M, 4) float32, "labels": (B, M) int32, "crowd": (B, M) bool,
                 "image_id": (B,) int64}, with `data.masks` "masks": (B, M, 112, 112) bool, bitmaps over the
                 boxes, sampled at the centres of their cells; all False: no mask; detectors
                 hand x's "size_hw" to their heads' losses in it
    meta        {"image_id": (B,) int64, "original_hw": (B, 2) int32}; from build_datasets also what y holds
    pyramid     list of (B, H_l, W_l, D), finest level first
    candidates  {"boxes": (B, A, 4), "scores": (B, A, C), "valid": (B, A, C) bool}
    proposals   {"boxes": (B, P, 4), "scores": (B, P), "valid": (B, P) bool}
    detections  {"boxes": (B, K, 4), "scores": (B, K), "labels": (B, K) int32, "valid": (B, K) bool,
                 "source": (B, K) int32 row in the candidates,
                 "masks": (B, K, S, S) float32 probabilities over the boxes, from a model with a mask head}

All of these are plain dictionaries, which Keras, tf.data, SavedModel and JAX all support.
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
MASK_SIDE = 112  # bitmap cells along each side of a box


def truth_is_valid(y):
    """Returns which rows of the padded ground truth are neither padding nor crowds.   (B, M) bool."""
    return (y[LABELS] >= 0) & ~y[CROWD]

"""Drawn images of discs and squares with masks, and how well a detector finds them."""

import numpy as np
from keras import ops
from support.reference_loops import masks_on_grid


def scenes(images=4, height=96, width=128):
    """Discs and squares, each with its mask, on grey; a disc may cover a square's corner."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(90, 110, (images, height, width, 3)).astype("uint8")
    boxes, labels = np.zeros((images, 4, 4), "float32"), np.full((images, 4), -1, "int32")
    masks, whole = np.zeros((images, 4, 112, 112), bool), np.zeros((images, 4, height, width), bool)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    part = (np.arange(112) + 0.5) / 112 * 2 - 1
    disc = np.hypot(part[:, None], part[None]) < 1
    for image in range(images):
        for one, center in enumerate([(24, 26), (66, 34), (100, 62), (36, 70)][: 3 + image % 2]):
            center = np.add(center, rng.uniform(-4, 4, 2))
            radius, round_ = rng.uniform(12, 22), (one + image) % 2
            there = np.hypot(x - center[0], y - center[1]) < radius
            if not round_:
                there = np.maximum(abs(x - center[0]), abs(y - center[1])) < radius
            whole[image, :one] &= ~there
            whole[image, one] = there
            pictures[image][there] = [(200, 60, 60), (60, 60, 200)][round_] + rng.integers(-20, 20, 3)
            boxes[image, one] = [*center - radius, *center + radius]
            masks[image, one] = disc if round_ else True
            labels[image, one] = round_
    hidden = {"boxes": boxes, "labels": labels, "crowd": np.zeros((images, 4), bool)}
    size = np.tile(np.int32([height, width]), (images, 1))
    y = {**hidden, "masks": masks, "image_id": np.arange(images, dtype="int32")}
    return {"images": pictures, "size_hw": size}, y


def mask_overlap(detector, x, y):
    """Mask IoU of every object with the detection of its class that overlaps it most, in its own frame."""
    found = {key: ops.convert_to_numpy(value) for key, value in detector.inference_model()(x).items()}
    overlaps, answers = [], int((found["scores"] > 0.3).sum())
    for image, one in zip(*np.nonzero(y["labels"] >= 0), strict=True):
        grid = x["images"].shape[1:3]
        truth_here = masks_on_grid(y["masks"][image, None, [one]], y["boxes"][image, None, [one]], grid, 1)[
            0, 0
        ]
        best = 0.0
        for row in np.flatnonzero(
            (found["scores"][image] > 0.3) & (found["labels"][image] == y["labels"][image, one])
        ):
            mask = found["masks"][image, row][None, None] > 0.5
            mask = masks_on_grid(mask, found["boxes"][image, row][None, None], grid, 1)[0, 0]
            best = max(best, (mask & truth_here).sum() / max((mask | truth_here).sum(), 1))
        overlaps.append(best)
    return np.array(overlaps), answers

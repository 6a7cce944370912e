"""NMS-free detection benchmark: run times of PSS relative to its base with NMS, interleaved in one run.

Zhou et al. 2021, arXiv:2101.11782, Table 1, reports 38.76 -> 42.37 ms for the network and 2.91 -> 1.49 ms for
postprocessing, for FCOS and FCOS_PSS with ResNet-50 on a V100.
"""

import keras
import numpy as np

from kgarden.bench.steps import num_classes_of, synthetic_batch
from kgarden.bench.timing import compiled, peak_memory, quartiles, rounds
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.ops.points import flatten
from kgarden.structures import BOXES, CROWD, IMAGE_ID, IMAGES, LABELS, SIZE_HW, VALID

OBJECTS = 20
MAPS = ("classes", "code", "centerness", "pss")  # outputs of the network, without features
ROUNDS = 3  # per repeat, because differences are a few percent
ROUNDS_OF_POST = 10  # per round, because postprocessing takes milliseconds
SURE, LIKELY, UNLIKELY = (0.1, 0.9), (0.02, 0.4), (0.001, 0.02)  # class scores, see `synthetic_maps`


def without_nms(recipe: Recipe, repeats: int, data) -> dict:
    """Times the network with and without the PSS branch, and postprocessing with and without NMS.

    With random weights no score exceeds the threshold and NMS would have nothing to do. Postprocessing
    therefore runs on the maps of `synthetic_maps`. The selections are those of the recipe with `prediction`
    "end_to_end" and "one_to_many".

    Returns:
        {"canvas", "picture": image size, "places": number of points, "objects", "pairs_above_threshold":
        upper bound of the candidates of NMS, "kept_by_nms", "network_base_s", "network_s", "nms_s",
        "no_nms_s": medians,
        "network_over_base", "no_nms_over_nms": quartiles of the rounds' ratios, "whole_base_s", "whole_s",
        "peak_memory_gib"}.
    Raises:
        UserError: the recipe's model is not PSS.
    """
    from kgarden.build import build_model

    if recipe.model.name != "pss":
        raise UserError(f"bench --what nms: {recipe.name} is not a PSS recipe; use fcos_pss")
    num_classes = num_classes_of(recipe, data)
    with_branch, with_nms = (
        build_model(_with_prediction(recipe, prediction), num_classes)
        for prediction in ("end_to_end", "one_to_many")
    )
    x = _image(recipe, num_classes)
    base = with_branch.dense_head.base

    def network(x):
        return _maps(with_branch(x))

    def network_of_base(x):
        return _maps(base(with_branch.pyramid(x)))

    calls = {"network_base": compiled(network_of_base, x), "network": compiled(network, x)}
    seconds = rounds(calls, repeats * ROUNDS)
    empty = {name: [keras.ops.convert_to_numpy(level) for level in maps] for name, maps in network(x).items()}
    raw, boxes = synthetic_maps(base, empty, keras.ops.convert_to_numpy(x[SIZE_HW])[0])
    raw, boxes = keras.tree.map_structure(keras.ops.convert_to_tensor, (raw, boxes))
    nothing = keras.ops.zeros(())
    calls = {"nms": with_nms, "no_nms": with_branch}
    calls = {name: (_selection_of(detector), x, raw, boxes, nothing) for name, detector in calls.items()}
    kept = calls["nms"][0](*calls["nms"][1:])[VALID]
    calls = {name: compiled(*call) for name, call in calls.items()}
    seconds |= rounds(calls, repeats * ROUNDS * ROUNDS_OF_POST)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    gate = keras.ops.sigmoid(flatten(raw["classes"], num_classes)) > with_nms.selection.score_threshold
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "picture": keras.ops.convert_to_numpy(x[SIZE_HW])[0].tolist(),
        "places": int(boxes.shape[1]),
        "objects": OBJECTS,
        "pairs_above_threshold": int(keras.ops.convert_to_numpy(gate).sum()),
        "kept_by_nms": int(keras.ops.convert_to_numpy(kept).sum()),
        **{f"{name}_s": round(seconds, 5) for name, seconds in medians.items()},
        "network_over_base": quartiles(seconds["network"] / seconds["network_base"]),
        "no_nms_over_nms": quartiles(seconds["no_nms"] / seconds["nms"]),
        "whole_base_s": round(medians["network_base"] + medians["nms"], 5),
        "whole_s": round(medians["network"] + medians["no_nms"], 5),
        "peak_memory_gib": peak_memory(),
    }


def _with_prediction(recipe, prediction):
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"prediction": prediction})})


def _image(recipe, num_classes):
    """One image of the largest size that the recipe's test sizes allow on its first canvas."""
    from kgarden.build import test_sizes

    x, _ = synthetic_batch(recipe, num_classes, 1)
    sizes = test_sizes(recipe)
    limits = sizes["short_side_px"], sizes["long_side_px"]
    high, wide = x[IMAGES].shape[1:3]
    limits = limits if high <= wide else limits[::-1]
    x[SIZE_HW] = np.int32([[min(high, limits[0]), min(wide, limits[1])]])
    return {key: keras.ops.convert_to_tensor(value) for key, value in x.items()}


def _maps(raw):
    return {name: raw[name] for name in MAPS if name in raw}


def _selection_of(detector):
    """(x, raw, boxes, nothing) -> detections; boxes are decoded for timing, then replaced by `boxes`.

    Synthetic boxes fit every head, synthetic raw outputs do not. Decoded boxes are multiplied by `nothing`, a
    zero that the compiler cannot fold, and `boxes` are added.
    """
    head = getattr(detector.dense_head, "base", detector.dense_head)
    decode = head.boxes

    def select(x, raw, boxes, nothing):
        head.boxes = lambda raw: decode(raw) * nothing + boxes
        try:
            return detector.detect(x, raw)
        finally:
            head.boxes = decode

    return select


def synthetic_maps(head, raw: dict, size_hw, seed: int = 0) -> tuple[dict, np.ndarray]:
    """Creates maps like those of a trained detector, and the boxes of all points.

    There are OBJECTS objects of all sizes. At points that the head assigns to an object, the class score is
    drawn from SURE, and the box is the object's with sides moved by a few percent. At other points inside the
    object, on the same levels, scores are drawn from LIKELY and boxes are moved more. Two other classes have
    at most half the score there. At all other points, scores are drawn from UNLIKELY. The branch selects one
    point of each object (0.95) and gives the others 0.05.

    Args:
        head:    the base head, see kgarden/heads/dense.py.
        raw:     its maps for one image and the branch's, numpy; the raw box regression is kept.
        size_hw: (2,) of the image.
    Returns:
        raw, (1, A, 4) float32 px.
    """
    rng = np.random.default_rng(seed)
    levels, classes = head.levels(raw), head.num_scores
    points, stride, level = _points(levels, head.strides)
    y = _objects(rng, size_hw, classes)
    matched = keras.ops.convert_to_numpy(head.assign(raw, y))[0]
    score = rng.uniform(*UNLIKELY, (len(points), classes))
    quality = rng.uniform(0.05, 0.3, len(points))
    chosen = np.full(len(points), 0.05)
    boxes = np.concatenate([points - stride[:, None], points + stride[:, None]], axis=1)
    for number, (box, label) in enumerate(zip(y[BOXES][0], y[LABELS][0], strict=True)):
        sure = np.flatnonzero(matched == number)
        if not len(sure):
            continue
        inside = ((points > box[:2]) & (points < box[2:])).all(axis=1) & np.isin(level, level[sure])
        inside = np.setdiff1d(np.flatnonzero(inside & (matched < 0)), sure)
        side = np.tile(box[2:] - box[:2], 2)
        for rows, scores, moved in ((inside, LIKELY, 0.12), (sure, SURE, 0.04)):
            score[rows, label] = rng.uniform(*scores, len(rows))
            for other in rng.integers(0, classes, 2):
                score[rows, other] = np.maximum(score[rows, other], score[rows, label] * rng.uniform(0, 0.5))
            quality[rows] = rng.uniform(0.3, 0.95, len(rows))
            boxes[rows] = box + side * rng.normal(0, moved, (len(rows), 4))
        chosen[sure[score[sure, label].argmax()]] = 0.95
    rows = {"classes": score, "centerness": quality[:, None], "pss": chosen[:, None]}
    maps = {name: _as_maps(_logit(rows[name]), levels) for name in rows if name in raw}
    return {**raw, **maps}, boxes[None].astype("float32")


def _points(levels, strides):
    """Centre (A, 2), stride (A,) and level (A,) of every point."""
    of_levels = []
    for number, ((height, width, anchors), stride) in enumerate(zip(levels, strides, strict=True)):
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        points = np.repeat(np.stack([x, y], axis=-1).reshape(-1, 2) * stride, anchors, axis=0)
        of_levels.append((points, np.full(len(points), stride), np.full(len(points), number)))
    return (np.concatenate(one) for one in zip(*of_levels, strict=True))


def _objects(rng, size_hw, classes):
    """Ground truth of OBJECTS boxes with log-uniform sides, from 16 px to 80 % of the image."""
    limit = np.array([size_hw[1], size_hw[0]], "float64")
    side = np.exp(rng.uniform(np.log(16), np.log(0.8 * limit), (OBJECTS, 2)))
    corner = rng.uniform(0, 1, (OBJECTS, 2)) * (limit - side)
    return {
        BOXES: np.concatenate([corner, corner + side], axis=1)[None].astype("float32"),
        LABELS: rng.integers(0, classes, (1, OBJECTS)).astype("int32"),
        CROWD: np.zeros((1, OBJECTS), bool),
        IMAGE_ID: np.zeros(1, "int64"),
    }


def _logit(probability):
    return np.log(probability / (1 - probability)).astype("float32")


def _as_maps(rows, levels):
    """(A, D) -> list of (1, H, W, K * D)."""
    stops = np.cumsum([height * width * anchors for height, width, anchors in levels])
    parts = np.split(rows, stops[:-1])
    return [part.reshape(1, h, w, -1) for part, (h, w, _) in zip(parts, levels, strict=True)]

"""CondInst: its network, losses and masks against loops over objects, written from the formulas."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from support import reference_loops as loops
from support.gradients import value_and_gradients
from support.mask_scenes import mask_overlap, scenes
from support.small_backbone import RESNET10

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.models import build_detector
from kgarden.models.condinst import CondInst, dynamic_masks, relative_coordinates, widths_of
from kgarden.models.fcos import FCOSHead
from kgarden.models.pss import PSSHead
from kgarden.ops.bilinear import aligned_bilinear
from kgarden.ops.points import point_grid

STRIDES = [8, 16, 32, 64, 128]
SIZES = [64, 128, 256, 512, 1024]
LEVELS = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]  # of a canvas of 64 x 96
A = sum(height * width for height, width in LEVELS)


def numpy_of(x):
    return ops.convert_to_numpy(x)


# --- the network of one object ------------------------------------------------------------------------------


def slow_mask(maps, parameters, place, size, stride=8):
    """One object: a loop over cells.   169 = 80 + 64 + 8 weights, then 8 + 8 + 1 biases."""
    height, width, depth = maps.shape
    weights = [parameters[:80].reshape(8, 10), parameters[80:144].reshape(8, 8)]
    weights += [parameters[144:152].reshape(1, 8)]
    biases = [parameters[152:160], parameters[160:168], parameters[168:]]
    found = np.zeros((height, width))
    for row, column in np.ndindex(height, width):
        x = (place[0] - (column * stride + stride / 2)) / size
        y = (place[1] - (row * stride + stride / 2)) / size
        values = np.concatenate([[x, y], maps[row, column].astype("float64")])
        for number, (w, b) in enumerate(zip(weights, biases, strict=True)):
            values = np.array(
                [sum(w[o, i] * values[i] for i in range(len(values))) + b[o] for o in range(len(b))]
            )
            if number < 2:
                values = np.maximum(values, 0)
        found[row, column] = values[0]
    return found


def test_169_numbers_for_an_object():
    assert sum((inputs + 1) * outputs for inputs, outputs in widths_of(8, 8, 3, True)) == 169
    head = CondInst(STRIDES, 80)
    head.build([(None, None, None, 256)] * 5)
    assert head.controller.count_params() == (9 * 256 + 1) * 169
    # three 3x3 from 256 and four from 128, each with four rows of its norm; 1x1 to 8 with bias
    convs = 3 * 9 * 256 * 128 + 4 * 9 * 128 * 128 + 7 * 4 * 128
    assert head.branch.count_params() == convs + 128 * 8 + 8


def test_the_network_of_each_object_agrees_with_loops():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 4, 5, 8)).astype("float32")
    parameters = rng.normal(size=(2, 3, 169)).astype("float32")
    places = rng.uniform(0, 40, (2, 3, 2)).astype("float32")
    sizes = rng.choice(SIZES, (2, 3)).astype("float32")
    at = relative_coordinates(places, sizes, (4, 5), 8)
    got = numpy_of(dynamic_masks(maps, parameters, widths_of(8, 8, 3, True), at))
    for image, one in np.ndindex(2, 3):
        want = slow_mask(maps[image], parameters[image, one], places[image, one], sizes[image, one])
        np.testing.assert_allclose(got[image, one], want, atol=2e-5)


def test_without_coordinates_the_place_does_not_matter():
    rng = np.random.default_rng(0)
    head = CondInst(STRIDES, 3, width=8, coordinates=False, num_layers=2, channels=4)
    assert head.controller.filters == 8 * 4 + 4 + 4 + 1
    raw = raw_outputs(rng, head.controller.filters)
    same = [np.broadcast_to(p[:, :1, :1], p.shape) for p in raw["parameters"]]
    got = numpy_of(head.logits({**raw, "parameters": [same[0]] * 5}, np.int32([[0, 5, 40], [0, 5, 40]])))
    np.testing.assert_array_equal(got[:, 0], got[:, 1])


# --- targets and losses -------------------------------------------------------------------------------------


def raw_outputs(rng, depth=169):
    return {
        "parameters": [rng.normal(0, 0.4, (2, *size, depth)).astype("float32") for size in LEVELS],
        "maps": rng.normal(size=(2, *LEVELS[0], 8)).astype("float32"),
    }


def dense_outputs(rng, classes=3):
    def maps(depth):
        return [rng.normal(size=(2, *size, depth)).astype("float32") for size in LEVELS]

    return {"classes": maps(classes), "code": [np.abs(m) for m in maps(4)], "centerness": maps(1)}


def truth(seed=0):
    """Two pictures: four objects, one without a mask, a crowd region and an empty row; then nothing."""
    rng = np.random.default_rng(seed)
    boxes = np.float32(
        [[4, 5, 60, 50], [50, 20, 90, 60], [10, 30, 34, 62], [60, 2, 80, 18], [0, 0, 95, 63], [0] * 4]
    )
    masks = rng.random((6, 112, 112)) < 0.6
    masks[3] = masks[5] = False
    return {
        "boxes": np.stack([boxes, boxes]),
        "labels": np.int32([[0, 1, 2, 1, 0, -1], [-1] * 6]),
        "crowd": np.array([[False] * 4 + [True, False]] * 2),
        "image_id": np.arange(2),
        "masks": np.stack([masks, masks]),
    }


def slow_loss(raw, dense, matched, y, count, upsampling):
    """Sum of the dice losses of the chosen places, and how many there are."""
    places = [
        (level, (column + 0.5) * STRIDES[level], (row + 0.5) * STRIDES[level])
        for level, (height, width) in enumerate(LEVELS)
        for row in range(height)
        for column in range(width)
    ]
    logistic = [
        1
        / (
            1
            + np.exp(-np.concatenate([m.reshape(2, -1, m.shape[-1]) for m in dense[k]], 1).astype("float64"))
        )
        for k in ("classes", "centerness")
    ]
    score = (logistic[0] * logistic[1]).max(-1)
    parameters = np.concatenate([p.reshape(2, -1, 169) for p in raw["parameters"]], axis=1)
    total = number = 0
    for image in range(2):
        has_mask = [
            bool(y["masks"][image, m].any()) and y["labels"][image, m] >= 0 and not y["crowd"][image, m]
            for m in range(6)
        ]
        for place, m in sorted(loops.best_of_each(matched[image], score[image], np.array(has_mask), count)):
            level, *xy = places[place]
            small = slow_mask(raw["maps"][image], parameters[image, place], xy, SIZES[level])
            probability = 1 / (1 + np.exp(-loops.upsampled(small, upsampling)))
            one = (slice(image, image + 1), slice(m, m + 1))
            target = loops.masks_on_grid(y["masks"][one], y["boxes"][one], probability.shape, 8 / upsampling)[
                0, 0
            ]
            total, number = total + loops.dice_loss(probability, target), number + 1
    return total, number


@functools.cache
def heads(**settings):
    return CondInst(STRIDES, 3, width=8, **settings), FCOSHead(STRIDES, 3, width=8, norm_groups=1)


@pytest.mark.parametrize("upsampling, count", [(2, 64), (4, 9)])
def test_the_loss_agrees_with_loops(upsampling, count):
    rng = np.random.default_rng(upsampling)
    raw, dense, y = raw_outputs(rng), dense_outputs(rng), truth()
    head, fcos = heads(upsampling=upsampling, topk_proposals=count)
    matched = numpy_of(fcos.assign(dense, y))
    assert {0, 1, 2, 3} <= set(matched[0]) and 4 not in matched and (matched[1] < 0).all()
    got = numpy_of(head.losses(raw, y, fcos, dense)["condinst/mask"])
    total, number = slow_loss(raw, dense, matched, y=y, count=count, upsampling=upsampling)
    assert number == 9 if count == 9 else number > 9
    np.testing.assert_allclose(got, total / number, rtol=2e-5)


def test_points_that_learn_masks_are_drawn_anew_in_every_step():
    rng = np.random.default_rng(8)
    raw, dense, y = raw_outputs(rng), dense_outputs(rng), truth()
    fcos = heads(upsampling=2, topk_proposals=16)[1]
    matched = numpy_of(fcos.assign(dense, y))[0]
    having = [int(place) for place in np.flatnonzero((matched >= 0) & (matched < 3))]
    number = rng.random((2, A)).astype("float32")

    def loss(count):
        head = CondInst(STRIDES, 3, width=8, upsampling=2, max_proposals=count)
        return numpy_of(head.losses(raw, y, fcos, dense, random=lambda n: number[:, :n])["condinst/mask"])

    def slow(kept):
        chosen = np.full((2, A), -1)
        chosen[0, kept] = matched[kept]
        total, count = slow_loss(raw, dense, chosen, y=y, count=1000, upsampling=2)
        assert count == len(kept)
        return total / count

    assert len(having) > 6
    np.testing.assert_allclose(loss(250), slow(having), rtol=2e-5)
    drawn = sorted(having, key=lambda place: -number[0, place])[:6]
    np.testing.assert_allclose(loss(6), slow(drawn), rtol=2e-5)

    detector = built(mask_head={**TINY["mask_head"], "max_proposals": 4})
    raw, losses = detector(X), []
    for step in (0, 1, 1):
        detector.step.assign(step)
        losses.append(float(detector.loss_terms(X, truth(), raw, True)["condinst/mask"]))
    assert losses[0] != losses[1] == losses[2]


def test_an_object_with_a_mask_is_learned_around_its_centre_of_mass():
    y, dense = truth(), dense_outputs(np.random.default_rng(0))
    y["masks"][:] = False
    y["masks"][:, 0, :20, :20] = True  # top left of the first box
    fcos, plain = built().dense_head, FCOSHead(STRIDES, 3, width=8, norm_groups=1)
    by_mass, by_box = numpy_of(fcos.assign(dense, y))[0], numpy_of(plain.assign(dense, y))[0]
    points = point_grid(LEVELS, STRIDES).points()
    middle = np.float32([4 + 56 * 20 / 224 - 0.5, 5 + 45 * 20 / 224 - 0.5])
    assert (by_mass == 0).any() and (np.abs(points[by_mass == 0] - middle) < 1.5 * 8).all()
    assert not (np.abs(points[by_box == 0] - middle) < 1.5 * 8).all(axis=1).any()
    for other in (1, 2, 3):  # without a mask
        assert set(np.flatnonzero(by_mass == other)) >= set(np.flatnonzero(by_box == other))
    without = {key: value for key, value in y.items() if key != "masks"}
    np.testing.assert_array_equal(numpy_of(fcos.assign(dense, without))[0], by_box)


def test_gradients_by_finite_differences():
    rng = np.random.default_rng(5)
    raw, dense, y = raw_outputs(rng), dense_outputs(rng), truth()
    head, fcos = heads(upsampling=2, topk_proposals=4)
    matched = numpy_of(fcos.assign(dense, y))

    def loss(maps, fine):
        given = {"maps": maps, "parameters": [fine, *raw["parameters"][1:]]}
        return head.losses(given, y, fcos, dense)["condinst/mask"]

    def slow_at(arguments):
        given = {"maps": arguments[0], "parameters": [arguments[1], *raw["parameters"][1:]]}
        total, number = slow_loss(given, dense, matched, y=y, count=4, upsampling=2)
        return total / number

    arguments = [raw["maps"], raw["parameters"][0]]
    gradients = value_and_gradients(loss, arguments)[1]
    checked = 0
    for argument, gradient in enumerate(gradients):
        largest = np.argsort(-np.abs(gradient).ravel())[[0, 1, 7, 40]]
        for where in (np.unravel_index(n, gradient.shape) for n in largest):
            near = []
            for step in (1e-4, -1e-4):
                moved = [a.astype("float64") for a in arguments]
                moved[argument][where] += step
                near.append(slow_at(moved))
            want = (near[0] - near[1]) / 2e-4
            np.testing.assert_allclose(gradient[where], want, rtol=2e-2, atol=1e-5)
            checked += want != 0
    assert checked == 8
    assert all((g[1] == 0).all() for g in gradients)  # the picture without objects


def test_what_must_not_matter():
    rng = np.random.default_rng(2)
    raw, dense, y = raw_outputs(rng), dense_outputs(rng), truth()
    head, fcos = heads(upsampling=2, topk_proposals=16)

    def loss(y):
        return float(head.losses(raw, y, fcos, dense)["condinst/mask"])

    first = loss(y)
    order = [3, 5, 0, 4, 2, 1]
    assert loss({k: v if k == "image_id" else v[:, order] for k, v in y.items()}) == pytest.approx(
        first, rel=1e-6
    )
    more = {k: v if k == "image_id" else np.concatenate([v, v[:, :2]], axis=1) for k, v in y.items()}
    more["labels"][:, 6:] = -1  # padding, whatever else it holds
    assert loss(more) == pytest.approx(first, rel=1e-6)
    other = truth()
    other["masks"][:, 4:] = True  # of the crowd region and of padding
    assert loss(other) == pytest.approx(first, rel=1e-6)
    other["masks"][:, 0] ^= True
    assert loss(other) != pytest.approx(first, rel=1e-3)
    assert loss({**y, "masks": np.zeros_like(y["masks"])}) == 0.0
    assert loss({**y, "labels": np.full_like(y["labels"], -1)}) == 0.0


def test_the_semantic_loss_is_focal_over_cells_with_a_class():
    rng = np.random.default_rng(4)
    y = truth()
    y["masks"][:, 3] = True
    head = CondInst(STRIDES, 3, width=8, semantic=True, weights={"semantic": 0.5})
    assert head.loss_names == ["condinst/mask", "condinst/semantic"]
    logits = rng.normal(size=(2, *LEVELS[0], 3)).astype("float32")
    dense = dense_outputs(rng)
    terms = head.losses(
        {**raw_outputs(rng), "semantic": logits}, y, heads(upsampling=2, topk_proposals=16)[1], dense
    )
    laid = loops.masks_on_grid(y["masks"], y["boxes"], LEVELS[0], 8)
    area = (y["boxes"][..., 2] - y["boxes"][..., 0]) * (y["boxes"][..., 3] - y["boxes"][..., 1])
    area = area * y["masks"].mean((2, 3))
    total = count = 0
    for image, row, column in np.ndindex(2, *LEVELS[0]):
        there = [m for m in range(4) if laid[image, m, row, column] and y["labels"][image, m] >= 0]
        label = y["labels"][image, min(there, key=lambda m: area[image, m])] if there else -1
        count += bool(there)
        for c in range(3):
            p = 1 / (1 + np.exp(-float(logits[image, row, column, c])))
            total += -0.25 * (1 - p) ** 2 * np.log(p) if c == label else -0.75 * p**2 * np.log(1 - p)
    np.testing.assert_allclose(numpy_of(terms["condinst/semantic"]), 0.5 * total / count, rtol=1e-5)


# --- masks of detections ------------------------------------------------------------------------------------


def test_masks_of_detections_agree_with_loops():
    rng = np.random.default_rng(6)
    raw = raw_outputs(rng)
    head = CondInst(STRIDES, 3, width=8, upsampling=4, side=7)
    source = np.int32([[0, 100, A - 1], [125, 7, -1]])
    boxes = np.float32(
        [[[0, 0, 96, 64], [10, 12, 40.5, 33], [60, 5, 61, 6]], [[3, 3, 90, 9], [0, 0, 8, 64], [0] * 4]]
    )
    found = {"boxes": boxes, "source": source, "valid": source >= 0}
    got = numpy_of(head.masks(raw, found))
    assert got.shape == (2, 3, 7, 7) and got.dtype == np.float32 and (got[1, 2] == 0).all()
    ends = np.cumsum([height * width for height, width in LEVELS])
    parameters = np.concatenate([p.reshape(2, -1, 169) for p in raw["parameters"]], axis=1)
    for image, one in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        place = source[image, one]
        level = int(np.searchsorted(ends, place, side="right"))
        row, column = divmod(place - (ends[level] - LEVELS[level][0] * LEVELS[level][1]), LEVELS[level][1])
        xy = (column + 0.5) * STRIDES[level], (row + 0.5) * STRIDES[level]
        small = slow_mask(raw["maps"][image], parameters[image, place], xy, SIZES[level])
        want = loops.sigmoid_over_boxes(
            small[None, None], boxes[image : image + 1, one : one + 1], 8, factor=4, side=7
        )[0, 0]
        np.testing.assert_allclose(got[image, one], want, atol=5e-5)


TINY = {
    "name": "condinst",
    "backbone": RESNET10,
    "neck": {"channels": 32},
    "base": {"name": "fcos", "num_convs": 1},
    "mask_head": {"branch": {"width": 16, "num_convs": 1}, "side": 28},
}
X = {
    "images": np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype="uint8"),
    "size_hw": np.int32([[60, 90], [64, 96]]),
}


def built(**settings):
    keras.utils.set_random_seed(0)
    return build_detector({**TINY, **settings}, 3)


def test_the_selection_is_done_before_masks_are_drawn():
    """One mask for each kept place, by its own parameters and over its clipped box."""
    detector = built(pss={}, selection={"total": 5})
    raw = detector(X)
    found = detector.detect(X, raw)
    drawn = numpy_of(found["masks"])
    assert drawn.shape == (2, 5, 28, 28)
    np.testing.assert_array_equal(
        drawn.max((2, 3)) > 0, numpy_of(found["valid"])
    )  # some lie beside the picture
    boxes = numpy_of(found["boxes"])
    assert (boxes[0] <= [90, 60, 90, 60]).all()
    again = detector.mask_head.masks(raw["masks"], {**found, "boxes": boxes})
    np.testing.assert_array_equal(numpy_of(again), numpy_of(found["masks"]))
    source = set(numpy_of(found["source"])[0].tolist())
    other = [int(n) for n in range(A) if n not in source]
    flat = np.concatenate([numpy_of(p).reshape(2, -1, 169) for p in raw["masks"]["parameters"]], axis=1)
    flat[0, other] = np.nan  # of places that were not kept
    ends = np.cumsum([0] + [height * width for height, width in LEVELS])
    spoiled = [
        flat[:, begin:end].reshape(2, *size, 169)
        for begin, end, size in zip(ends, ends[1:], LEVELS, strict=False)
    ]
    spoiled = {**raw, "masks": {**raw["masks"], "parameters": spoiled}}
    np.testing.assert_array_equal(numpy_of(detector.detect(X, spoiled)["masks"]), numpy_of(found["masks"]))


def test_the_same_weights_without_the_branch_and_with_nms():
    end_to_end = built(pss={})
    dropped = built(pss={}, prediction="one_to_many")
    base = built()
    for one, other in zip(end_to_end.weights, dropped.weights, strict=True):
        other.assign(one)
    of_branch = {id(v) for v in end_to_end.dense_head.selector.weights}
    kept = [v for v in end_to_end.weights if id(v) not in of_branch]
    for one, other in zip(kept, base.weights, strict=True):
        other.assign(one)
    assert end_to_end.selection.method == "none" and dropped.selection == base.selection
    assert dropped.selection.method == "nms" and dropped.selection.iou == 0.6
    raw = [detector(X)["masks"] for detector in (end_to_end, dropped, base)]
    for other in raw[1:]:
        np.testing.assert_array_equal(numpy_of(raw[0]["maps"]), numpy_of(other["maps"]))
    threshold = {"selection": {"score_threshold": 0.0, "total": 20}}
    pair = [built(**threshold), built(pss={}, prediction="one_to_many", **threshold)]
    for one, other in zip(dropped.weights, pair[1].weights, strict=True):
        other.assign(one)
    for one, other in zip(base.weights, pair[0].weights, strict=True):
        other.assign(one)
    found = [detector.inference_model()(X) for detector in pair]
    for key in ("boxes", "scores", "masks"):
        np.testing.assert_array_equal(numpy_of(found[0][key]), numpy_of(found[1][key]))


HEADS = [
    {"name": "atss", "num_convs": 1},
    {"name": "gfl", "num_convs": 1, "reg_max": 8},
    {"name": "defcn", "num_convs": 1},
    {"name": "fcos", "num_convs": 0},
    {"name": "pss", "base": {"name": "gfl", "num_convs": 1, "width": 32}},
]
SLOW_HEADS = HEADS[:-1] if keras.backend.backend() == "jax" else []  # each compiles for half a minute there


@pytest.mark.parametrize(
    "head", [pytest.param(h, marks=[pytest.mark.slow] * (h in SLOW_HEADS)) for h in HEADS], ids=str
)
def test_it_lies_on_any_head_with_one_box_to_a_cell(head):
    if head["name"] != "pss":
        head = {**head, "width": 32}
    trunk = {key: TINY[key] for key in ("backbone", "neck")}
    mask_head = {"name": "condinst", **TINY["mask_head"]}
    settings = {"name": "one_stage", **trunk, "dense_head": head, "mask_head": mask_head}
    keras.utils.set_random_seed(0)
    detector = build_detector(settings, 3)
    raw, y = detector(X), truth()
    terms = detector.loss_terms(X, y, raw, True)
    assert terms.keys() == set(detector.loss_names) and 0 < float(terms["condinst/mask"]) <= 1
    assert numpy_of(detector.detect(X, raw)["masks"]).shape[2:] == (28, 28)


def test_what_does_not_fit_is_refused():
    trunk = {key: TINY[key] for key in ("backbone", "neck")}
    for head in ({"name": "centernet", "width": 32}, {"name": "retinanet", "width": 32}):
        with pytest.raises(UserError, match="one box for each cell .*not (CenterNet|RetinaNet)Head"):
            build_detector({"name": "one_stage", **trunk, "dense_head": head, "mask_head": "condinst"}, 3)
    for settings, message in (
        ({"mask_head": {"chanels": 4}}, r"model\.mask_head\.chanels.*'channels'"),
        ({"mask_head": {"branch": {"bases": 4}}}, r"mask_head\.branch\.bases"),
        ({"mask_head": {"upsampling": 3}}, "mask_head.upsampling 3: one of 1, 2, 4, 8"),
        ({"mask_head": {"sizes": [64]}}, "1 sizes for 5 levels"),
        ({"mask_head": {"branch": {"levels": 6}}}, "levels 6: there are 5"),
        ({"mask_head": {"weights": {"box": 1}}}, r"mask_head\.weights\.box"),
        ({"prediction": "end_to_end"}, "set model.pss"),
        ({"prediction": "both"}, "prediction 'both'"),
        ({"pss": {"base": "atss"}}, r"model\.pss\.base"),
        ({"base": "retinanet"}, "not RetinaNetHead"),
    ):
        with pytest.raises(UserError, match=message):
            build_detector({**TINY, **settings}, 3)
    with pytest.raises(UserError, match="mask_head.name 'mask_rcnn'"):
        build_detector({"name": "one_stage", **trunk, "dense_head": "fcos", "mask_head": "mask_rcnn"}, 3)


@pytest.mark.tensorflow  # what JAX adds to the line is its own
def test_truth_without_masks_is_refused_in_one_line():
    detector = built()
    detector.compile(optimizer="sgd")
    y = {key: value for key, value in truth().items() if key != "masks"}
    with pytest.raises(UserError, match="^condinst: .*no masks; set data.masks: true$"):
        detector.train_on_batch(X, y)


def test_coordinates_and_masks_stay_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        detector = built(pss={}, mask_head={**TINY["mask_head"], "semantic": True})
    finally:
        keras.config.set_dtype_policy(before)
    raw = detector(X)
    assert keras.backend.standardize_dtype(raw["reg_feature"][0].dtype) == "bfloat16"
    outputs = [*raw["masks"]["parameters"], raw["masks"]["maps"], raw["masks"]["semantic"]]
    outputs += [detector.detect(X, raw)["masks"], *detector.loss_terms(X, truth(), raw, True).values()]
    assert all(keras.backend.standardize_dtype(one.dtype) == "float32" for one in outputs)


def test_rows_of_the_recipes_build_what_they_say():
    small = {f"model.{key}": value for key, value in TINY.items() if key in ("neck", "backbone")}
    rows = [(stem, row) for stem in ("condinst", "condinst_pss") for row in (None, *load_recipe(stem).rows)]
    assert len(rows) == 14
    for stem, row in rows:
        recipe = load_recipe(stem, row=row, overrides=small)
        assert recipe.data.masks
        if row and load_recipe(stem).rows[row].recipe:
            continue
        detector = build_detector(recipe.model.model_dump(exclude={"num_classes"}), 3)
        wanted = ["condinst/mask", "condinst/semantic"] if row and row.endswith("_sem") else ["condinst/mask"]
        assert detector.mask_head.loss_names == wanted
        assert detector.mask_head.upsampling == (4 if row == "text.upsampling_4" else 2)
        assert isinstance(detector.dense_head, PSSHead if stem == "condinst_pss" else FCOSHead)
        fcos = getattr(detector.dense_head, "base", detector.dense_head)
        assert fcos.weights_of_terms["box"] == 1.0 and fcos.smoothing == 1.0 and fcos.sqrt_scores
        assert fcos.box_tower.convs[0].use_bias


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_few_pictures_by_heart():
    """Every object once, with its mask, without NMS."""
    keras.utils.set_random_seed(0)
    tower = {"num_convs": 2, "norm_groups": 8}
    settings = {
        "name": "condinst",
        "backbone": {"name": "resnet18", "norm": "bn", "stem_channels": 16, "res2_channels": 16},
        "neck": {"channels": 32},
        "base": {"name": "fcos", **tower},
        "pss": {"selector": tower},
        "mask_head": {"branch": {"width": 32, "num_convs": 2}},
        "selection": {"total": 20},
    }
    detector = build_detector(settings, 2)
    on_jax = keras.backend.backend() == "jax"
    detector.compile(optimizer=keras.optimizers.Adam(2e-3), jit_compile=on_jax)
    x, y = scenes()
    for _ in range(300):
        logs = detector.train_on_batch(x, y, return_dict=True)
    overlaps, answers = mask_overlap(detector, x, y)
    print(logs, overlaps, answers)
    assert overlaps.min() > 0.8 and overlaps.mean() > 0.9
    assert answers == len(overlaps)  # none twice


def test_what_reads_what():
    """Parameters come from the tower of boxes; maps are the sum of refined levels behind the tower."""
    keras.utils.set_random_seed(0)
    head, rng = CondInst(STRIDES, 3, width=8, branch={"width": 4}), np.random.default_rng(0)
    pyramid = [rng.normal(size=(2, *size, 8)).astype("float32") for size in LEVELS]
    features = [rng.normal(size=level.shape).astype("float32") for level in pyramid]
    head.build([level.shape for level in pyramid])
    branch = head.branch

    def call(training=False):
        return head(pyramid, {"reg_feature": features, "cls_feature": pyramid}, training=training)

    got = call()
    for level, feature in zip(got["parameters"], features, strict=True):
        np.testing.assert_allclose(numpy_of(level), numpy_of(head.controller(feature)), rtol=1e-5, atol=1e-6)
    refined = [numpy_of(conv(level)) for conv, level in zip(branch.refine, pyramid[:3], strict=True)]
    x = refined[0] + numpy_of(aligned_bilinear(refined[1], 2)) + numpy_of(aligned_bilinear(refined[2], 4))
    for conv in branch.tower:
        x = conv(x)
    np.testing.assert_allclose(numpy_of(got["maps"]), numpy_of(branch.maps(x)), rtol=1e-4, atol=1e-5)
    mean = branch.refine[0].norm.moving_mean
    assert not numpy_of(mean).any()
    call(training=True)
    assert numpy_of(mean).any()

import keras
import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.jit import fast
from support.marks import slow_on_jax

from kgarden.ops import roi_align as module
from kgarden.ops.boxes import enlarge
from kgarden.ops.roi_align import assign_levels, roi_align

ON_JAX = keras.backend.backend() == "jax"
WAYS = ["static"] if ON_JAX else ["static", "sparse"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Every test of values runs through both ways of carrying out the sum, where there are two."""
    monkeypatch.setattr(module, "_may_be_dynamic", lambda: request.param == "sparse")
    return request.param


def pooled_and_gradient(pyramid, upstream, strides, boxes, *args, **kwargs):
    """roi_align, and the gradient of sum(upstream * roi_align) with respect to each level."""
    pyramid = [np.float32(level) for level in pyramid]
    if ON_JAX:
        import jax

        @jax.jit
        def both(pyramid, boxes, upstream):
            out, back = jax.vjp(lambda p: roi_align(p, strides, boxes, *args, **kwargs), pyramid)
            return out, back(upstream)[0]

        out, gradients = both(pyramid, np.float32(boxes), np.float32(upstream))
    else:
        import tensorflow as tf

        pyramid = [tf.constant(level) for level in pyramid]
        with tf.GradientTape() as tape:
            tape.watch(pyramid)
            out = roi_align(pyramid, strides, boxes, *args, **kwargs)
        gradients = tape.gradient(out, pyramid, upstream)
    return ops.convert_to_numpy(out), [ops.convert_to_numpy(gradient) for gradient in gradients]


def by_image(boxes, image, images):
    """Boxes (R, 4) of several images as (B, P, 4), padded with zeros; and where each box stands now."""
    slot = np.array([(image[:i] == image[i]).sum() for i in range(len(image))], dtype=int)
    padded = np.zeros((images, max(slot, default=0) + 1, 4), "float32")
    padded[image, slot] = boxes
    return padded, (image, slot)


# --- against the references ---------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", goldens("d2_roi_align"), ids=str)
def test_single_level_agrees_with_the_reference(golden, way):
    settings = params(golden)
    image = golden["rois"][:, 0].astype(int)
    boxes, where = by_image(golden["rois"][:, 1:], image, len(golden["features"]))
    got = {}
    for name in golden.matching("out_r.*"):
        size, ratio = (int(part[1:]) for part in name.removeprefix("out_").split("_"))
        case = name.removeprefix("out_")
        upstream = np.zeros((*boxes.shape[:2], size, size, golden["features"].shape[-1]), "float32")
        upstream[where] = golden[f"grad_out_{case}"]
        out, gradient = pooled_and_gradient(
            [golden["features"]], upstream, [settings["stride"]], boxes, size, sampling_ratio=ratio
        )
        got[f"out_{case}"], got[f"grad_features_{case}"] = out[where], gradient[0]
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("d2_roi_pool"), ids=str)
def test_pyramid_agrees_with_the_reference(golden, way):
    settings = params(golden)
    numbers, strides = settings["levels"], settings["strides"]
    canonical = settings["canonical_level"], settings["canonical_box_size"]
    image = np.repeat(np.arange(len(golden["boxes_per_image"])), golden["boxes_per_image"])
    boxes, where = by_image(golden["boxes"], image, len(golden["boxes_per_image"]))
    level = ops.convert_to_numpy(assign_levels(boxes, strides, *canonical))[where]
    pyramid = [golden[f"feat_p{number}"] for number in numbers]
    upstream = np.zeros((*boxes.shape[:2], *golden["grad_out"].shape[1:]), "float32")
    upstream[where] = golden["grad_out"]
    out, gradients = pooled_and_gradient(
        pyramid, upstream, strides, boxes, settings["output_size"], settings["sampling_ratio"], *canonical
    )
    got = {"level": level + numbers[0], "out": out[where]}
    got |= {f"grad_p{number}": gradient for number, gradient in zip(numbers, gradients, strict=True)}
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("mmdet_roi_level_rescale"), ids=str)
def test_levels_and_larger_boxes_agree_with_every_convention(golden):
    s = params(golden)
    rois, strides = golden["rois"], [2**level for level in range(2, 2 + s["num_levels"])]
    boxes, finest = rois[:, 1:], s["finest_scale"]

    def level(**convention):
        return ops.convert_to_numpy(assign_levels(boxes, strides, **convention))

    of_finest = dict(canonical_level=2, canonical_size=finest, epsilon=1e-6)
    got = {
        "level_mmdet": level(**of_finest),
        "level_legacy": level(**of_finest, plus_one=True),
        "level_formula_224_eps1e8": level(),
        "level_formula_plus1_224": level(epsilon=1e-6, plus_one=True),
        "rescaled_plus1": ops.convert_to_numpy(enlarge(boxes, s["scale"], plus_one=True)),
        "rescaled_mmdet": np.concatenate([rois[:, :1], enlarge(boxes, s["scale"])], axis=1),
    }
    assert_agrees(golden, got)


# --- against the definition ---------------------------------------------------------------------------------


def bilinear(features, y, x):
    """One sample of (H, W, D), by the rules of the module's docstring."""
    height, width, _ = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(features.shape[-1])
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = (x0 + 1 - x) * features[y0, x0] + (x - x0) * features[y0, x1]
    bottom = (x0 + 1 - x) * features[y1, x0] + (x - x0) * features[y1, x1]
    return (y0 + 1 - y) * top + (y - y0) * bottom


def pool_by_definition(features, stride, box, size, ratio):
    """Sample by sample, for one box of one map, in float64."""
    left, top, right, bottom = (np.float64(side) / stride - 0.5 for side in box)
    down, across = (bottom - top) / size, (right - left) / size
    ny, nx = (ratio, ratio) if ratio else (max(int(np.ceil(down)), 0), max(int(np.ceil(across)), 0))
    out = np.zeros((size, size, features.shape[-1]))
    for i in range(size):
        for j in range(size):
            samples = [
                bilinear(features, top + (i + (a + 0.5) / ny) * down, left + (j + (b + 0.5) / nx) * across)
                for a in range(ny)
                for b in range(nx)
            ]
            out[i, j] = np.mean(samples, axis=0) if samples else 0
    return out


ODD_BOXES = [
    [-30, -20, 50, 44],  # over the border
    [-200, -200, -100, -90],  # outside
    [90, 100, 400, 300],  # beyond the far border
    [-500, 40, 900, 44],  # a strip far longer than the map
    [-2000, -3000, 4000, 2500],  # far larger than the map
    [20, 30, 20, 60],  # no width
    [0, 0, 0, 0],  # padding
    [60, 60, 40, 30],  # inverted
    [33, 17, 33.5, 17.25],  # within one cell
    [0, 0, 120, 88],  # exactly the map
    [3.25, 7.75, 61.5, 90.125],
]


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_to_the_definition(way, size, ratio):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 11, 15, 3)).astype("float32")
    boxes = np.float32([ODD_BOXES])
    pooled = fast(lambda features, boxes: roi_align([features], [8], boxes, size, sampling_ratio=ratio))
    got = ops.convert_to_numpy(pooled(features, boxes))[0]
    for box, one in zip(ODD_BOXES, got, strict=True):
        expected = pool_by_definition(features[0], 8, box, size=size, ratio=ratio)
        rounding = 1e-6 * np.abs(box).max() / 8  # of a position, in cells
        np.testing.assert_allclose(one, expected, atol=1e-5 + rounding, err_msg=str(box))


@slow_on_jax
def test_maps_of_a_single_cell(way):
    features = np.full((1, 1, 1, 2), 5.0, "float32")
    got = ops.convert_to_numpy(roi_align([features], [64], np.float32([[[10, 10, 50, 50]]]), 2))
    np.testing.assert_allclose(got, 5.0)


@slow_on_jax
def test_levels_and_images_are_independent(way):
    """Levels and images filled with their own number: each box must see exactly its own."""
    strides = [4, 8, 16, 32]
    pyramid = [
        np.broadcast_to(
            (10 * level + np.arange(3, dtype="float32"))[:, None, None, None],
            (3, 256 // stride, 320 // stride, 2),
        )
        for level, stride in enumerate(strides)
    ]
    side = np.float32([30, 111, 113, 223, 225, 250])
    boxes = np.stack([0 * side + 2, 0 * side + 2, side + 2, side + 2], axis=1)[None].repeat(3, axis=0)
    out = ops.convert_to_numpy(roi_align(pyramid, strides, boxes, 3))
    expected = np.float32([0, 0, 10, 10, 20, 20])[None] + np.float32([0, 1, 2])[:, None]
    np.testing.assert_allclose(out, np.broadcast_to(expected[..., None, None, None], out.shape), rtol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"aligned": False}, {"enlarged": 1.3}, {"enlarged": 1.3, "plus_one": True}]
)
@pytest.mark.parametrize("ratio", [0, 2])
@slow_on_jax
def test_other_conventions_equal_transformed_boxes(way, settings, ratio):
    """Half a cell further, or larger: what plain boxes see that lie there, on the level of the given ones."""
    rng = np.random.default_rng(0)
    stride, boxes = 8, np.float32([[[3, 5, 50, 40], [0, 0, 63, 63], [20, 8, 30, 55]]])
    features = [rng.normal(size=(1, 8, 8, 3)).astype("float32")]
    if "enlarged" in settings:
        moved = enlarge(boxes, settings["enlarged"], settings.get("plus_one", False))
    else:
        moved = boxes + stride / 2
    found = roi_align(features, [stride], boxes, 4, sampling_ratio=ratio, **settings)
    expected = roi_align(features, [stride], moved, 4, sampling_ratio=ratio)
    np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(expected), atol=1e-5)


@slow_on_jax
def test_unaligned_boxes_are_at_least_a_cell_wide(way):
    features = [np.arange(64, dtype="float32").reshape(1, 8, 8, 1)]
    small, cell = np.float32([[[16, 24, 17, 25]]]), np.float32([[[16, 24, 24, 32]]])
    for ratio in (0, 2):
        found = [
            roi_align(features, [8], boxes, output_size=2, sampling_ratio=ratio, aligned=False)
            for boxes in (small, cell)
        ]
        np.testing.assert_array_equal(*(ops.convert_to_numpy(one) for one in found))


@slow_on_jax
def test_dense_bound_holds_for_enlarged_boxes():
    """Squares just below a level's limit see 1.3 times as many cells along each side."""
    strides, side = [4, 8, 16, 32], 111.0
    pyramid = [
        np.random.default_rng(s).normal(size=(1, 512 // s, 512 // s, 2)).astype("float32") for s in strides
    ]
    boxes = np.float32([[[100, 100, 100 + side, 100 + side], [9, 300, 9 + 2 * side, 300 + 2 * side]]])
    grown = ops.convert_to_numpy(enlarge(boxes, 1.3))
    found = ops.convert_to_numpy(roi_align(pyramid, strides, boxes, 7, enlarged=1.3))
    for number, level in enumerate((0, 1)):
        alone = roi_align([pyramid[level]], [strides[level]], grown[:, number : number + 1], 7)
        np.testing.assert_allclose(found[:, number], ops.convert_to_numpy(alone)[:, 0], atol=1e-4)


@pytest.mark.parametrize("power", range(-2, 4))
def test_a_canonical_square_belongs_to_the_level_above_the_boundary(power):
    side = 224 * 2.0**power
    boxes = np.float32([[0, 0, side, side], [0, 0, side * 0.999, side], [5, 9, 5 + 4 * side, 9 + side / 4]])
    strides = [2**k for k in range(1, 9)]
    level = ops.convert_to_numpy(assign_levels(boxes, strides)) + 1
    assert level.tolist() == [4 + power, 3 + power, 4 + power]


def test_levels_are_clamped_and_degenerate_boxes_use_the_finest():
    boxes = np.float32([[0, 0, 1, 1], [0, 0, 5000, 5000], [0, 0, 0, 0], [9, 0, 5, 7]])
    assert ops.convert_to_numpy(assign_levels(boxes, [8, 16, 32])).tolist() == [0, 2, 0, 0]
    with pytest.raises(ValueError, match="consecutive"):
        assign_levels(boxes, [4, 16])


@slow_on_jax
def test_non_finite_boxes_give_finite_features(way):
    features = np.ones((1, 8, 8, 1), "float32")
    boxes = np.float32(
        [[[np.nan, 0, 20, 20], [0, 0, np.inf, 20], [-3e38, -3e38, 3e38, 3e38], [8, 8, 40, 40]]]
    )
    out = ops.convert_to_numpy(roi_align([features], [8], boxes, 2))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0, 3], 1.0, rtol=1e-6)


def random_boxes(rng, shape, size_hw):
    height, width = size_hw
    center = rng.uniform(0, 1, (*shape, 2)) * [width, height]
    side = np.exp(rng.uniform(np.log(8), np.log(max(size_hw)), (*shape, 2)))
    return np.concatenate([center - side / 2, center + side / 2], axis=-1).astype("float32")


@slow_on_jax
def test_several_chunks_equal_one(monkeypatch):
    monkeypatch.setattr(module, "_may_be_dynamic", lambda: False)
    rng = np.random.default_rng(1)
    pyramid = [rng.normal(size=(2, 256 // s, 320 // s, 4)).astype("float32") for s in (8, 16, 32)]
    boxes = random_boxes(rng, (2, 25), (256, 320))
    upstream = rng.normal(size=(2, 25, 7, 7, 4)).astype("float32")
    whole = pooled_and_gradient(pyramid, upstream, [8, 16, 32], boxes, 7)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1 << 21)
    chunked = pooled_and_gradient(pyramid, upstream, [8, 16, 32], boxes, 7)
    np.testing.assert_allclose(chunked[0], whole[0], atol=1e-5)
    for a, b in zip(chunked[1], whole[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@slow_on_jax
def test_dense_bound_holds_for_elongated_boxes(monkeypatch):
    """Strips across the whole map, at the largest area that a level takes."""
    monkeypatch.setattr(module, "_may_be_dynamic", lambda: False)
    rng = np.random.default_rng(2)
    pyramid = [rng.normal(size=(1, 256 // s, 320 // s, 1)).astype("float32") for s in (4, 8, 16)]
    width = np.float32([319.5, 200, 111.9, 60, 39])
    height = np.minimum(111.9**2 / width, 255)
    boxes = np.stack([0.3 + 0 * width, 0.7 + 0 * width, 0.3 + width, 0.7 + height], axis=1)[None]
    boxes = np.concatenate([boxes, boxes[..., [1, 0, 3, 2]]], axis=1).clip(0, [320, 256, 320, 256])
    got = ops.convert_to_numpy(roi_align(pyramid, [4, 8, 16], boxes.astype("float32"), 7))[0]
    level = ops.convert_to_numpy(assign_levels(boxes[0].astype("float32"), [4, 8, 16]))
    assert (level == 0).sum() >= 8
    for box, k, one in zip(boxes[0].astype("float32"), level, got, strict=True):
        expected = pool_by_definition(pyramid[k][0], [4, 8, 16][k], box, size=7, ratio=0)
        np.testing.assert_allclose(one, expected, atol=3e-5)


def test_the_dtype_of_the_features_is_kept(way):
    features = ops.cast(np.random.default_rng(3).normal(size=(1, 8, 8, 4)), "bfloat16")
    boxes = np.float32([[[3, 5, 40, 50]]])
    out = roi_align([features], [8], boxes, 2)
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    wide = roi_align([ops.cast(features, "float32")], [8], boxes, 2)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.cast(out, "float32")),
        ops.convert_to_numpy(ops.cast(ops.cast(wide, "bfloat16"), "float32")),
    )


def test_no_gradient_flows_to_the_boxes(way):
    features = np.random.default_rng(4).normal(size=(1, 8, 8, 2)).astype("float32")
    boxes = np.float32([[[3, 5, 40, 50]]])
    if ON_JAX:
        import jax

        gradient = jax.grad(lambda b: roi_align([features], [8], b, 2).sum())(boxes)
        assert not np.asarray(gradient).any()
    else:
        import tensorflow as tf

        boxes = tf.constant(boxes)
        with tf.GradientTape() as tape:
            tape.watch(boxes)
            out = tf.reduce_sum(roi_align([tf.constant(features)], [8], boxes, 2))
        assert tape.gradient(out, boxes) is None


# --- compiled -----------------------------------------------------------------------------------------------


def scene(rng):
    strides = [8, 16, 32]
    pyramid = [rng.normal(size=(2, 128 // s, 160 // s, 4)).astype("float32") for s in strides]
    return strides, pyramid, random_boxes(rng, (2, 9), (128, 160))


@pytest.mark.parametrize("jit", [False, True])
def test_compiled(jit):
    """With gradient; XLA takes the static way by itself."""
    strides, pyramid, boxes = scene(np.random.default_rng(5))
    upstream = np.random.default_rng(6).normal(size=(2, 9, 7, 7, 4)).astype("float32")
    plain = pooled_and_gradient(pyramid, upstream, strides, boxes, 7)
    if ON_JAX:
        import jax

        def call(pyramid, boxes):
            out, back = jax.vjp(lambda p: roi_align(p, strides, boxes, 7), pyramid)
            return out, back(upstream)[0]

        out, gradients = jax.jit(call)(pyramid, boxes)
    else:
        import tensorflow as tf

        @tf.function(jit_compile=jit)
        def call(pyramid, boxes):
            with tf.GradientTape() as tape:
                tape.watch(pyramid)
                out = roi_align(pyramid, strides, boxes, 7)
            return out, tape.gradient(out, pyramid, upstream)

        out, gradients = call([tf.constant(level) for level in pyramid], boxes)
    np.testing.assert_allclose(ops.convert_to_numpy(out), plain[0], atol=1e-5)
    for a, b in zip(gradients, plain[1], strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(a), b, atol=1e-4)


@slow_on_jax
def test_compiled_with_bins_of_whole_cells():
    """25 cells a bin take 25 samples, also where the compiler turns 175 / 7 into 175 * (1 / 7) > 25."""
    features = np.random.default_rng(8).normal(size=(1, 40, 200, 1)).astype("float32")
    sides = [7 * cells for cells in (1, 3, 5, 6, 11, 13, 21, 25, 27)]
    boxes = np.float32([[4.0, 4.0, 4.0 + 8 * side, 4.0 + 8 * 7] for side in sides])
    if ON_JAX:
        import jax

        compiled = jax.jit(lambda boxes: roi_align([features], [8], boxes, 7))
    else:
        import tensorflow as tf

        compiled = tf.function(lambda boxes: roi_align([features], [8], boxes, 7), jit_compile=True)
    got = ops.convert_to_numpy(compiled(boxes[None]))[0]
    for box, one in zip(boxes, got, strict=True):
        np.testing.assert_allclose(one, pool_by_definition(features[0], 8, box, size=7, ratio=0), atol=1e-4)


@pytest.mark.tensorflow
def test_saved_model_of_any_batch_size(tmp_path):
    import tensorflow as tf

    strides, pyramid, boxes = scene(np.random.default_rng(7))
    spec = [tf.TensorSpec((None, *level.shape[1:])) for level in pyramid]
    saved = tf.Module()
    saved.call = tf.function(
        lambda pyramid, boxes: roi_align(pyramid, strides, boxes, 7), [spec, tf.TensorSpec((None, None, 4))]
    )
    tf.saved_model.save(saved, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for images in (1, 2):
        few = [tf.constant(level[:images]) for level in pyramid]
        expected = ops.convert_to_numpy(roi_align(few, strides, boxes[:images], 7))
        np.testing.assert_allclose(loaded.call(few, tf.constant(boxes[:images])), expected, atol=1e-6)


@slow_on_jax
def test_the_level_is_that_of_the_box_before_it_is_enlarged():
    """A side of 100 px belongs to stride 4, one of 130 px to stride 8: the level says which is looked at."""
    pyramid = [np.full((1, 64 // n, 64 // n, 1), n, "float32") for n in (1, 2)]
    box = np.float32([[[60, 60, 160, 160]]])
    for enlarged in (1.0, 1.3):
        found = roi_align(pyramid, [4, 8], box, 2, enlarged=enlarged)
        np.testing.assert_allclose(ops.convert_to_numpy(found), 1, rtol=1e-5)

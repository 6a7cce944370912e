import keras
import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients
from support.jit import fast

from kgarden.ops import roi_align as two_ways
from kgarden.ops.deform_roi_pool import bin_centers, bins_of, deform_roi_pool
from kgarden.ops.roi_align import roi_align

ON_JAX = keras.backend.backend() == "jax"
WAYS = ["static"] if ON_JAX else ["static", "sparse"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Both ways of carrying out the sum, where there are two; the static one is slow here on TensorFlow."""
    monkeypatch.setattr(two_ways, "_may_be_dynamic", lambda: request.param == "sparse")
    return request.param


# --- against the release ------------------------------------------------------------------------------------


class File:
    """A file's RoIs as padded boxes of images, and its offsets as ours."""

    def __init__(self, golden):
        self.golden, self.settings = golden, params(golden)
        image = golden["rois"][:, 0].astype(int)
        slot = np.array([(image[:i] == image[i]).sum() for i in range(len(image))])
        self.where = (image, slot)
        self.boxes = self.padded(golden["rois"][:, 1:])

    def padded(self, rows):
        """Rows of all RoIs as (B, P, ...)."""
        image, slot = self.where
        padded = np.zeros((len(self.golden["features"]), slot.max() + 1, *rows.shape[1:]), "float32")
        padded[image, slot] = rows
        return padded

    def offsets(self, name):
        """By the array's name, (B, P, S, S, 2) or (B, P, 1, 1, 2)."""
        if name is None:
            return None
        raw = self.golden.raw(name.split()[0])
        return self.padded(raw[:, None, None] if raw.ndim == 2 else raw.transpose(0, 2, 3, 1))

    def settings_of(self, case):
        s = self.settings
        how = dict(output_size=s["pooled_size"], samples=s["samples_per_side"][case], gamma=s["gamma"])
        return [round(1 / s["spatial_scale"])], how | {"plus_one": True}


@pytest.mark.parametrize("golden", goldens("mmdet_deform_roi_pool"), ids=str)
def test_released_form_agrees_with_the_kernel(golden, way):
    file, got = File(golden), {}
    upstream = file.padded(golden["grad_out"])
    for case, name in file.settings["offsets"].items():
        strides, how = file.settings_of(case)
        offsets = file.offsets(name)

        def pooled(features, offsets, strides=strides, how=how):
            return deform_roi_pool([features], strides, file.boxes, offsets, **how)

        got[case] = ops.convert_to_numpy(fast(pooled)(golden["features"], offsets))[file.where]
        if case in ("out_c", "out_r"):
            letter = case[-1]
            _, (of_features, of_offsets) = value_and_gradients(
                lambda *inputs, pooled=pooled: ops.sum(pooled(*inputs) * upstream),
                [golden["features"], offsets],
            )
            of_offsets = of_offsets[file.where]
            got[f"grad_features_{letter}"] = of_features
            got[f"grad_delta_{letter}"] = of_offsets if letter == "c" else of_offsets[:, 0, 0]
    strides, how = file.settings_of("out_c")
    sizes = [golden["features"].shape[1:3]]
    bins = bins_of(sizes, strides, file.boxes, file.offsets("delta_c"), aligned=False, **how)
    count = ops.convert_to_numpy(bins.rows.counts() * bins.columns.counts())
    side = how["output_size"]
    got["count_c"] = count.reshape(*file.boxes.shape[:2], side, side)[file.where]
    assert_agrees(golden, got)


# --- against definitions ------------------------------------------------------------------------------------


def pool(pyramid, strides, boxes, offsets=None, **how):
    """`deform_roi_pool`, one program on JAX."""
    return fast(lambda *arrays: deform_roi_pool(arrays[0], strides, *arrays[1:], **how))(
        pyramid, boxes, offsets
    )


def scene():
    """Two levels, and boxes on both: one beyond the map, one much longer than high, one without area."""
    rng = np.random.default_rng(0)
    pyramid = [rng.normal(size=(2, h, w, 3)).astype("float32") for h, w in ((12, 14), (6, 7))]
    boxes = np.float32(
        [
            [[3, 2, 30, 25], [-9, 20, 21, 60], [1, 9.5, 55, 13.5]],
            [[2, 1, 52, 45], [17, 6, 17, 6], [40, 30, 70, 61]],
        ]
    )
    return pyramid, boxes, rng.normal(size=(2, 3, 3, 3, 2)).astype("float32")


SCENE = dict(strides=[4, 8], output_size=3)
LEVELS = np.int32([[0, 0, 0], [1, 0, 1]])


def test_without_offsets_the_aligned_form_is_roi_align():
    pyramid, boxes, _ = scene()
    for samples in (0, 2):
        aligned = roi_align(pyramid, SCENE["strides"], boxes, 3, samples)
        got = pool(pyramid, **SCENE, boxes=boxes, samples=samples, aligned=True)
        np.testing.assert_allclose(ops.convert_to_numpy(got), ops.convert_to_numpy(aligned), atol=1e-6)


def test_one_offset_moves_the_whole_box():
    """mmcv's operator moves the start of a box by gamma * offset * side."""
    pyramid, boxes, offsets = scene()
    offsets = offsets[:, :, :1, :1]
    side = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    moved = boxes + np.tile(0.3 * offsets[:, :, 0, 0] * side, 2)
    how = dict(**SCENE, samples=2, aligned=True, levels=LEVELS)
    got = pool(pyramid, boxes=boxes, offsets=offsets, gamma=0.3, **how)
    expected = pool(pyramid, boxes=moved, **how)
    np.testing.assert_allclose(ops.convert_to_numpy(got), ops.convert_to_numpy(expected), atol=1e-5)


def test_boxes_that_name_their_last_px_are_a_px_longer():
    pyramid, boxes, offsets = scene()
    edges = boxes + np.float32([0, 0, 1, 1])
    how = dict(**SCENE, offsets=offsets)
    got = pool(pyramid, boxes=edges, **how)
    expected = pool(pyramid, boxes=boxes, plus_one=True, **how)
    np.testing.assert_allclose(ops.convert_to_numpy(got), ops.convert_to_numpy(expected), atol=1e-6)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradients_are_finite_differences(aligned):
    pyramid, boxes, offsets = scene()
    samples = 0 if aligned else 3
    upstream = np.random.default_rng(1).normal(size=(2, 3, 3, 3, 3)).astype("float32")

    def value(fine, coarse, offsets):
        how = dict(**SCENE, samples=samples, aligned=aligned, levels=LEVELS)
        return ops.sum(deform_roi_pool([fine, coarse], boxes=boxes, offsets=offsets, **how) * upstream)

    inputs = [*pyramid, offsets]
    _, gradients = value_and_gradients(value, inputs)
    rng = np.random.default_rng(2)
    for which, gradient in enumerate(gradients):  # along one direction each; kinks are rarer than that
        direction = rng.normal(size=gradient.shape).astype("float32")
        step, ends = 1e-3 if which == 2 else 0.1, []
        for sign in (1, -1):
            changed = list(inputs)
            changed[which] = inputs[which] + sign * step * direction
            ends.append(float(fast(value)(*changed)))
        slope = float(np.sum(direction * gradient))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-2), which
        assert abs(slope) > 0.1


def test_halves_are_rounded_away_from_zero_and_thin_boxes_have_a_tenth_of_a_cell():
    """On the map f(x, y) = x, a bin without offset is the mean position of its samples."""
    ramp = np.broadcast_to(np.arange(16, dtype="float32"), (16, 16))[None, :, :, None]
    boxes = np.float32([[[2.5, 0, 5.5, 0], [3.5, 0, 9.49, 0], [6, 0, 5, 0]]])  # last px named
    got = pool([ramp], [1], boxes, output_size=1, samples=2, plus_one=True)
    begins, sides = np.array([2.5, 3.5, 5.5]), np.array([4.0, 6.0, 0.1])
    np.testing.assert_allclose(ops.convert_to_numpy(got).ravel(), begins + sides / 4, atol=1e-6)


def test_centres_of_bins_are_where_they_are_pooled():
    """On maps whose cells hold their own x and y in px, a bin of centred samples is its centre."""
    rng = np.random.default_rng(4)
    x, y = np.meshgrid(np.arange(40, dtype="float32"), np.arange(40, dtype="float32"))
    ramp = np.stack([x, y], axis=-1)[None]
    pyramid = [4 * ramp + 2, 8 * ramp + 4]  # centres of the cells
    boxes = np.float32([[[50, 60, 83, 97.5], [40, 30.5, 141, 120]]])
    how = dict(output_size=3, gamma=0.2, aligned=True, offsets=rng.uniform(-1, 1, (1, 2, 3, 3, 2)))
    how["offsets"] = how["offsets"].astype("float32")
    for offsets in (how["offsets"], how["offsets"][:, :, :1, :1], None):
        how["offsets"] = offsets
        got = bin_centers(boxes, **how)
        pooled = pool(pyramid, [4, 8], boxes, samples=2, levels=np.int32([[0, 1]]), **how)
        np.testing.assert_allclose(ops.convert_to_numpy(got), ops.convert_to_numpy(pooled), atol=1e-3)
    # released form: 2.5 and 5.5 are rounded to 3 and 6, the last px, so that the box ends at 7
    boxes = np.float32([[[2.5, 0, 5.5, 13]]])
    offsets = np.float32([0.5, -1])[None, None, None, None]
    got = ops.convert_to_numpy(bin_centers(boxes, offsets, output_size=2, plus_one=True))[0, 0]
    np.testing.assert_allclose(got[0], [[4.2, 2.1], [6.2, 2.1]], atol=1e-5)  # moved by 0.05 of 4, -0.1 of 14
    np.testing.assert_allclose(got[1, 0], [4.2, 9.1], atol=1e-5)
    assert bin_centers(boxes).shape == (1, 1, 7, 7, 2)


def test_settings_left_out():
    pyramid, boxes, offsets = scene()
    offsets = offsets[:, :, :1, :1]
    given = dict(output_size=7, samples=4, gamma=0.1, aligned=False, plus_one=False)
    got = pool(pyramid, SCENE["strides"], boxes, offsets)
    expected = pool(pyramid, SCENE["strides"], boxes, offsets, **given)
    np.testing.assert_array_equal(ops.convert_to_numpy(got), ops.convert_to_numpy(expected))
    del given["samples"]
    got, expected = bin_centers(boxes, offsets), bin_centers(boxes, offsets, **given)
    np.testing.assert_array_equal(ops.convert_to_numpy(got), ops.convert_to_numpy(expected))


def test_released_form_has_a_fixed_number_of_samples():
    pyramid, boxes, _ = scene()
    with pytest.raises(ValueError, match="fixed number"):
        pool(pyramid, **SCENE, boxes=boxes, samples=0)

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.ops import boxes

finite = ops.convert_to_numpy


def random_boxes(rng, *shape, size=100):
    corner = rng.uniform(0, size, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(1, size, (*shape, 2))], axis=-1).astype("float32")


@pytest.mark.parametrize("golden", goldens("d2_box_transform"), ids=str)
def test_deltas_agree_with_the_reference(golden):
    settings = params(golden)
    clamp = settings["scale_clamp"]
    assert boxes.SCALE_CLAMP == pytest.approx(clamp)
    src, tgt, deltas = golden["src"], golden["tgt"], golden["deltas"]
    several = golden["deltas_multi"].reshape(len(src), -1, 4)
    got = {}
    for tag, weights in settings["weights_of_tag"].items():
        got[f"encode_{tag}"] = finite(boxes.encode_deltas(src, tgt, weights))
        got[f"decode_{tag}"] = finite(boxes.decode_deltas(deltas, src, weights, clamp))
        decoded = boxes.decode_deltas(several, src[:, None], weights, clamp)  # (N, 3, 4)
        got[f"decode_multi_{tag}"] = finite(ops.reshape(decoded, (len(src), -1)))
    assert_agrees(golden, got)


def test_mirrored_by_hand():
    box = np.float32([[[10, 5, 30, 20]], [[0, 0, 50, 8]]])
    expected = [[[70, 5, 90, 20]], [[0, 0, 50, 8]]]
    np.testing.assert_array_equal(finite(boxes.mirror(box, np.int32([[40, 100], [10, 50]]))), expected)


def test_area_and_iou_by_hand():
    a = np.float32([[[0, 0, 4, 3], [0, 0, 2, 2]]])
    b = np.float32([[[2, 1, 6, 5], [4, 0, 8, 3], [3, 3, 1, 1]]])  # overlapping; touching; inverted
    np.testing.assert_allclose(finite(boxes.area(b)), [[16, 12, 0]])
    np.testing.assert_allclose(finite(boxes.intersection(a, b)), [[[4, 0, 0], [0, 0, 0]]])
    np.testing.assert_allclose(finite(boxes.iou(a, b)), [[[4 / 24, 0, 0], [0, 0, 0]]], rtol=1e-6)
    np.testing.assert_array_equal(finite(boxes.nonempty(b)), [[True, True, False]])


def test_iou_of_padding_is_zero_and_of_a_box_with_itself_one():
    some = random_boxes(np.random.default_rng(0), 2, 7)
    both = finite(boxes.iou(some, some))
    np.testing.assert_array_equal(np.diagonal(both, axis1=1, axis2=2), 1)
    np.testing.assert_allclose(both, both.transpose(0, 2, 1))
    padding = np.zeros((2, 3, 4), "float32")
    assert (finite(boxes.iou(padding, padding)) == 0).all()


def test_clip_uses_the_size_of_each_image():
    some = np.float32([[[-5, -6, 300, 200]], [[10, 20, 30, 40]]])
    clipped = finite(boxes.clip(some, np.int32([[100, 150], [25, 28]])))
    np.testing.assert_array_equal(clipped, [[[0, 0, 150, 100]], [[10, 20, 28, 25]]])


@pytest.mark.parametrize("golden", goldens("mmdet_delta_xywh_coder"), ids=str)
def test_deltas_agree_with_mmdetection(golden):
    settings = params(golden)
    src, tgt, size_hw = golden["proposals"], golden["gt"], golden["max_shape"][None]
    got = {}

    def decoded(deltas, stds, plus_one=False, clip=True):
        at = src if deltas.ndim == 2 else src[:, None]
        weights = [1 / std for std in stds]
        clamp = settings["wh_clamp"]
        found = boxes.decode_deltas(deltas, at, weights, clamp, clamp_below=True, plus_one=plus_one)
        found = ops.reshape(found, (1, -1, 4))
        found = boxes.clip(found, size_hw - plus_one) if clip else found
        return finite(ops.reshape(found, (len(src), -1)))

    def encoded(stds, plus_one=False):
        return finite(boxes.encode_deltas(src, tgt, [1 / std for std in stds], plus_one))

    for name, case in settings["cases"].items():
        stds = case["stds"]
        if name == "big":
            got["big/decoded_no_shape"] = decoded(golden["big/delta"], stds, clip=False)
        elif name == "multiclass":
            several = golden["multiclass/delta"].reshape(len(src), case["boxes_per_row"], 4)
            got["multiclass/decoded"] = decoded(several, stds)
        elif name == "legacy":
            got["legacy/encoded"] = encoded(stds, plus_one=True)
            got["legacy/decoded_clipped"] = decoded(golden["rcnn/delta"], stds, plus_one=True)
        else:
            got[f"{name}/encoded"] = encoded(stds)
            got[f"{name}/decoded"] = decoded(golden[f"{name}/encoded"], stds, clip=False)
            got[f"{name}/decoded_clipped"] = decoded(golden[f"{name}/delta"], stds)
    assert_agrees(golden, got)


def test_decode_inverts_encode():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 3, 50), random_boxes(rng, 3, 50)
    weights = (10.0, 10.0, 5.0, 5.0)
    back = boxes.decode_deltas(boxes.encode_deltas(a, b, weights), a, weights)
    np.testing.assert_allclose(finite(back), b, rtol=1e-4, atol=1e-3)


def test_plus_one_convention():
    # From 0 to 15 is 16 px wide, and from 0 to 31 twice as much.
    anchor = np.float32([0, 0, 15, 15])
    deltas = finite(boxes.encode_deltas(anchor, np.float32([0, 0, 31, 15]), plus_one=True))
    np.testing.assert_allclose(deltas, [0.5, 0, np.log(2), 0], atol=1e-6)
    back = boxes.decode_deltas(deltas, anchor, plus_one=True)
    np.testing.assert_allclose(finite(back), [0, 0, 31, 15], atol=1e-4)


def test_each_delta_has_its_own_weight():
    box, target = np.float32([0, 0, 10, 20]), np.float32([5, 10, 25, 20])  # centres (5, 10), (15, 15)
    weights = (2.0, 3.0, 5.0, 7.0)
    deltas = finite(boxes.encode_deltas(box, target, weights))
    np.testing.assert_allclose(deltas, [2 * 1, 3 * 0.25, 5 * np.log(2), 7 * np.log(0.5)], rtol=1e-6)
    np.testing.assert_allclose(finite(boxes.decode_deltas(deltas, box, weights)), target, rtol=1e-6)


def test_deltas_of_padding_are_finite():
    padding, real = np.zeros((1, 4), "float32"), np.float32([[1, 2, 3, 4]])
    for a, b in [(padding, real), (real, padding), (padding, padding)]:
        assert np.isfinite(finite(boxes.encode_deltas(a, b))).all()


def test_clamp_below_limits_small_sizes():
    anchor, deltas = np.float32([0, 0, 16, 16]), np.float32([0, 0, -9, -9])
    free = ops.convert_to_numpy(boxes.decode_deltas(deltas, anchor))
    cut = ops.convert_to_numpy(boxes.decode_deltas(deltas, anchor, clamp_below=True))
    np.testing.assert_allclose(free[2] - free[0], 16 * np.exp(-9), rtol=0.01)
    np.testing.assert_allclose(cut[2] - cut[0], 16 * 16 / 1000, rtol=1e-4)


def test_ltrb_round_trip():
    point, box = np.float32([5, 6]), np.float32([1, 2, 20, 9])
    ltrb = ops.convert_to_numpy(boxes.to_ltrb(point, box))
    assert ltrb.tolist() == [4, 4, 15, 3]
    np.testing.assert_array_equal(ops.convert_to_numpy(boxes.from_ltrb(point, ltrb)), box)
    assert boxes.centers(box).tolist() == [10.5, 5.5]

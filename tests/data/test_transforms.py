"""Paint a rectangle, change the picture, measure the rectangle again: the box must be where the paint is."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from kgarden.data import transforms  # noqa: E402

SEEDS = range(40)


def painted(seed, hw=None):
    """A black picture with one white rectangle, and its example."""
    rng = np.random.default_rng(seed)
    height, width = hw or rng.integers(40, 120, 2)
    x0, y0 = rng.integers(0, width - 12), rng.integers(0, height - 12)
    x1, y1 = rng.integers(x0 + 10, width + 1), rng.integers(y0 + 10, height + 1)
    image = np.zeros((height, width, 3), "uint8")
    image[y0:y1, x0:x1] = 255
    return {
        "image": tf.constant(image),
        "boxes": tf.constant([[x0, y0, x1, y1]], tf.float32),
        "labels": tf.constant([3]),
        "crowd": tf.constant([False]),
        "image_id": tf.constant(7),
    }


def measured(image):
    """xyxy of the painted part with fractions of pixels: an edge pixel counts as far as it is white."""
    white = image.numpy()[..., 0] / 255.0
    box = []
    for axis in (0, 1):  # along x, then along y
        profile = white.max(axis=axis)
        inner = np.flatnonzero(profile > 0.99)
        box.append((inner[0] - profile[: inner[0]].sum(), inner[-1] + 1 + profile[inner[-1] + 1 :].sum()))
    (x0, x1), (y0, y1) = box
    return np.array([x0, y0, x1, y1])


def apply(transform, example, seed):
    return transform(example, tf.constant([seed, 11]))


@pytest.mark.parametrize("make", [transforms.horizontal_flip, transforms.vertical_flip])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_flips_move_boxes_with_the_paint(make, probability):
    flipped = 0
    for seed in SEEDS:
        before = painted(seed)
        after = apply(make(probability), before, seed)
        np.testing.assert_array_equal(after["boxes"][0], measured(after["image"]))
        flipped += bool((after["image"].numpy() != before["image"].numpy()).any())
        assert after["labels"] == 3 and after["image_id"] == 7
    assert {0.0: flipped == 0, 0.5: 10 <= flipped <= 30, 1.0: flipped >= 38}[probability]


def test_flips_mirror_the_pixels():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype="uint8")
    example = {"image": tf.constant(image), "boxes": tf.zeros((0, 4))}
    np.testing.assert_array_equal(apply(transforms.horizontal_flip(1.0), example, 0)["image"], image[:, ::-1])
    np.testing.assert_array_equal(apply(transforms.vertical_flip(1.0), example, 0)["image"], image[::-1])


@pytest.mark.parametrize("antialias", [True, False])
def test_resizing_moves_boxes_with_the_paint(antialias):
    for seed in SEEDS:
        before = painted(seed)
        target_hw = np.random.default_rng(seed + 1000).integers(30, 200, 2)
        after = transforms.resize(antialias)({**before, "target_hw": tf.constant(target_hw, tf.int32)}, None)
        assert after["image"].shape == (*target_hw, 3) and after["image"].dtype == tf.uint8
        scale = max(1, *(np.array(before["image"].shape[:2]) / target_hw))
        np.testing.assert_allclose(after["boxes"][0], measured(after["image"]), atol=0.6 * scale)
        expected = before["boxes"][0].numpy() * np.tile(target_hw[::-1] / before["image"].shape[1::-1], 2)
        np.testing.assert_allclose(after["boxes"][0], expected, rtol=1e-5)


def test_a_transform_is_a_function_of_example_and_seed():
    chain = transforms.chain([transforms.horizontal_flip(), transforms.vertical_flip()])
    example = painted(0)
    results = {}
    for seed in SEEDS:
        eager, graph = apply(chain, example, seed), apply(tf.function(chain), example, seed)
        np.testing.assert_array_equal(eager["image"], graph["image"])
        np.testing.assert_array_equal(eager["boxes"], graph["boxes"])
        results.setdefault(tuple(eager["boxes"].numpy()[0]), []).append(seed)
    assert len(results) == 4 and min(map(len, results.values())) >= 3  # the two flips are independent


def test_no_objects():
    example = {**painted(0), "boxes": tf.zeros((0, 4)), "target_hw": tf.constant([50, 60])}
    flips = [transforms.horizontal_flip(1.0), transforms.vertical_flip(1.0)]
    chain = transforms.chain([transforms.resize(), *flips])
    assert apply(chain, example, 0)["boxes"].shape == (0, 4)

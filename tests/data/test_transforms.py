"""Paint objects, change the image, measure the paint again: boxes and masks must be where the paint is."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support import painted_images  # noqa: E402
from support.golden import assert_agrees, goldens  # noqa: E402

from kgarden.data import rng  # noqa: E402
from kgarden.data.transforms import TRANSFORMS, Augmentation, describe  # noqa: E402
from kgarden.data.transforms.sizes import placement  # noqa: E402
from kgarden.errors import UserError  # noqa: E402

SEEDS = range(60)
ALWAYS = {"probability": 1.0}
MEASURABLE = 8  # px; a smaller side is as wide as the blur of resizing


def check_boxes(result, exact=False):
    """IoU of boxes and paint of every object; labels are channels."""
    found = []
    image = result["image"]
    for box, label in zip(result["boxes"], result["labels"], strict=True):
        if label < 0 or (box[2:] - box[:2]).min() < MEASURABLE:
            continue
        extent = painted_images.measured(image[..., label])
        assert extent is not None, "a box where no paint is"
        found.append(painted_images.iou(box, extent))
        assert box.min() >= 0 and box[2] <= image.shape[1] and box[3] <= image.shape[0]
        if exact:
            np.testing.assert_allclose(box, extent, atol=1e-4)
    return found


def check_scores(ious, least=30):
    assert len(ious) >= least
    assert np.mean(ious) >= 0.95 and np.min(ious) >= 0.85, (np.mean(ious), np.min(ious))


def test_resizing():
    run, ious = painted_images.runner([]), []
    for seed in SEEDS:
        example = painted_images.painted(seed)
        result = run([example], seed)
        np.testing.assert_array_equal(result["image"].shape[:2], example["target_hw"])
        np.testing.assert_array_equal(result["labels"], [0, 1, 2])
        ious += check_boxes(result)
    check_scores(ious)


@pytest.mark.parametrize("name", ["horizontal_flip", "vertical_flip"])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_flips(name, probability):
    run, flipped = painted_images.runner([{name: {"probability": probability}}]), 0
    seeds = SEEDS if probability == 0.5 else range(12)
    for seed in seeds:
        example = painted_images.painted(seed, hw=painted_images.CANVAS)
        result = run([example], seed)
        assert len(check_boxes(result, exact=True)) == 3
        axis = {"horizontal_flip": 1, "vertical_flip": 0}[name]
        is_flipped = bool((result["image"] != example["image"].numpy()).any())
        if is_flipped:
            np.testing.assert_array_equal(result["image"], np.flip(example["image"], axis))
        flipped += is_flipped
    assert {0.0: flipped == 0, 0.5: 20 <= flipped <= 40, 1.0: flipped == len(seeds)}[probability]


@pytest.mark.parametrize("ellipses", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("name", ["random_crop", "random_iou_crop"])
def test_crops(name, ellipses):
    run, ious, sizes, gone = painted_images.runner([{name: ALWAYS}], with_masks=ellipses), [], set(), 0
    for seed in SEEDS:
        example = painted_images.painted(seed, ellipses=ellipses)
        result = run([example], seed)
        height, width = result["image"].shape[:2]
        sizes.add((height, width))
        assert height <= painted_images.CANVAS[0] and width <= painted_images.CANVAS[1]
        assert (
            min(height, width) == painted_images.SHORT
            or height == painted_images.CANVAS[0]
            or width == painted_images.CANVAS[1]
        )
        gone += (result["labels"] < 0).sum()
        ious += check_boxes(result)
        assert (result["labels"] >= 0).any()
        if ellipses:
            check_masks(result)
    check_scores(ious)
    assert len(sizes) > 20 and gone > 10


@pytest.mark.parametrize("ellipses", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("name", ["scale_and_crop", "large_scale_jitter"])
def test_scales(name, ellipses):
    run, ious, smaller, gone = (
        painted_images.runner([{name: {"scale": [0.3, 2.0]}}], with_masks=ellipses),
        [],
        0,
        0,
    )
    for seed in SEEDS:
        result = run([painted_images.painted(seed, ellipses=ellipses)], seed)
        hw = np.array(result["image"].shape[:2])
        assert (hw <= painted_images.CANVAS).all()
        smaller += (hw < painted_images.CANVAS).all()
        gone += (result["labels"] < 0).sum()
        ious += check_boxes(result)
        if ellipses:
            check_masks(result)
    check_scores(ious)
    assert smaller > 5 and gone > 5


@pytest.mark.parametrize("ellipses", [False, True], ids=["boxes", "masks"])
def test_mosaic(ellipses):
    """Four images, three of them with an object; the fourth has none."""
    settings = {"fill": 0, "min_visible": 0.5}
    run, ious, gone = painted_images.runner([{"mosaic": settings}], num_images=4, with_masks=ellipses), [], 0
    for seed in SEEDS:
        empty = seed % 4
        channels = [() if k == empty else ((k - (k > empty)),) for k in range(4)]
        images = [
            painted_images.painted(10 * seed + k, channel, side=(60, 120), ellipses=ellipses)
            for k, channel in enumerate(channels)
        ]
        result = run(images, seed)
        assert result["image"].shape == (*painted_images.CANVAS, 3)
        assert len(result["labels"]) == 3
        gone += (result["labels"] < 0).sum()
        ious += check_boxes(result)
        if ellipses:
            check_masks(result)
    check_scores(ious)
    assert gone > 0


def test_mosaic_fills_the_canvas_with_four_images_and_grey():
    run = painted_images.runner(["mosaic"], num_images=4)
    seen = np.zeros(4)
    for seed in SEEDS:
        images = [
            painted_images.example_of(np.full((90, 120, 3), 50 * k + 3, "uint8"), [], []) for k in range(4)
        ]
        image = run(images, seed)["image"].astype(int)
        values = np.array([3, 53, 103, 153, 114])
        near = np.abs(image[..., :1] - values).min(axis=-1)
        assert near.max() <= 1
        quarters = [image[0, 0, 0], image[0, -1, 0], image[-1, 0, 0], image[-1, -1, 0]]
        seen += [value == 114 for value in quarters]
        for k, corner in enumerate((np.s_[:57, :76], np.s_[:57, -76:], np.s_[-57:, :76], np.s_[-57:, -76:])):
            assert {*np.unique(image[corner])} <= {values[k], 114}
    assert (seen > 0).all() and (seen < 60).all()  # some corners are grey, some are image


def test_mixup():
    run, ious = painted_images.runner([{"mixup": ALWAYS}], num_images=2), []
    for seed in SEEDS:
        images = [painted_images.painted(2 * seed, (0,)), painted_images.painted(2 * seed + 1, (1, 2))]
        result = run(images, seed)
        hw = np.max([one["target_hw"].numpy() for one in images], axis=0)
        np.testing.assert_array_equal(result["image"].shape[:2], hw)
        np.testing.assert_array_equal(result["labels"], [0, 1, 2])
        light = [result["image"][..., channel].max() / 255 for channel in range(3)]
        np.testing.assert_allclose(light[0] + light[1], 1.0, atol=0.01)
        assert 0.1 < light[0] < 0.9
        ious += check_boxes(result)
    check_scores(ious)


def test_weights_of_mixup_are_beta_distributed():
    """Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))."""
    for alpha in (1, 3, 8):
        draws = rng.uniform(
            tf.stack([tf.zeros(20000, tf.int64), tf.range(20000, dtype=tf.int64)], 1), 2 * alpha
        )
        share = np.sort(draws[:, 1:], axis=1)[:, alpha - 1]
        assert abs(share.mean() - 0.5) < 0.01
        assert abs(share.var() * 4 * (2 * alpha + 1) - 1) < 0.05


def check_masks(result, least=0.85):
    """IoU of masks drawn over their boxes and the paint itself."""
    ious = []
    for bits, box, label in zip(result["masks"], result["boxes"], result["labels"], strict=True):
        if label < 0 or (box[2:] - box[:2]).min() < 2 * MEASURABLE:
            continue
        drawn = painted_images.mask_on_image(bits, box, result["image"].shape[:2])
        there = result["image"][..., label] > 127
        ious.append((drawn & there).sum() / (drawn | there).sum())
    assert not ious or min(ious) >= least, min(ious)
    return ious


def test_copy_paste():
    """Objects in red and green below, in blue from above; black around what is pasted is not pasted."""
    run = painted_images.runner(
        [{"copy_paste": {"probability": 1.0, "share": 0.7}}], num_images=2, with_masks=True
    )
    ious, masks, gone, pasted = [], [], 0, 0
    for seed in SEEDS:
        below = painted_images.painted(3 * seed, (0, 1), hw=(192, 256), ellipses=True)
        above = painted_images.painted(3 * seed + 1, (2,), hw=(150, 200), side=(60, 140), ellipses=True)
        result = run([below, above], seed)
        assert result["image"].shape == (192, 256, 3)
        pasted += len(result["labels"]) == 3
        before = [(below["image"].numpy()[..., k] > 127).sum() for k in (0, 1)]
        left = [(result["image"][..., k] > 127).sum() for k in (0, 1)]
        for k in (0, 1):
            share = left[k] / before[k]
            assert (result["labels"][k] == k) == (share >= 0.1) or abs(share - 0.1) < 0.02
            gone += result["labels"][k] < 0
        ious += check_boxes(result)
        masks += check_masks(result, least=0.8)
    check_scores(ious)
    assert np.mean(masks) > 0.95 and gone > 0 and 30 <= pasted <= 55


def test_color_jitter_changes_pixels_only():
    run = painted_images.runner(["color_jitter"])
    example = painted_images.painted(0, hw=painted_images.CANVAS)
    rng = np.random.default_rng(0)
    example["image"] = tf.constant(rng.integers(60, 190, (*painted_images.CANVAS, 3), dtype="uint8"))
    results = [run([example], seed) for seed in range(20)]
    for result in results:
        for key in ("boxes", "labels", "crowd"):
            np.testing.assert_array_equal(result[key], example[key])
        assert 0 < np.abs(result["image"].astype(int) - example["image"].numpy()).mean() < 60
    assert len({result["image"].tobytes() for result in results}) == 20


@pytest.mark.parametrize(
    "setting,value,expected",
    [
        ("saturation", 1.0, "grey"),
        ("hue", 0.5, "luma"),
        ("brightness", 0.5, "proportion"),
        ("contrast", 0.5, "mean"),
    ],
)
def test_each_colour_setting(setting, value, expected):
    off = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    run = painted_images.runner([{"color_jitter": off | {setting: value}}])
    image = np.random.default_rng(1).integers(100, 140, (*painted_images.CANVAS, 3), dtype="uint8")
    example, grey = painted_images.example_of(image, [], []), np.array([0.299, 0.587, 0.114])
    before = image.astype(float)
    for seed in range(10):
        after = run([example], seed)["image"].astype(float)
        if expected in ("grey", "luma"):
            np.testing.assert_allclose(after @ grey, before @ grey, atol=1.5)
        if expected == "grey":
            spread = np.ptp(after, axis=-1).mean() / np.ptp(before, axis=-1).mean()
            assert spread < 2.05
        if expected == "proportion":
            ratio = after.mean() / before.mean()
            np.testing.assert_allclose(after, before * ratio, atol=1.0)
        if expected == "mean":
            np.testing.assert_allclose((after @ grey).mean(), (before @ grey).mean(), atol=0.5)
            assert 0.45 < after.std() / before.std() < 1.55


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_crowds_and_padding_are_preserved(name):
    """A crowd over the whole image is one after every transform; label -1 never comes back to life."""
    images = 1 + {"mosaic": 3, "mixup": 1, "copy_paste": 1}.get(name, 0)
    run = painted_images.runner([name], images, with_masks=True)
    for seed in range(8):
        image = np.full((150, 200, 3), 255, "uint8")
        boxes = [[0, 0, 200, 150], [20, 20, 150, 130], [30, 30, 160, 120]]
        example = painted_images.example_of(image, boxes, [1, -1, 2], [True, False, False], pngs=["", "", ""])
        result = run([example] * images, seed)
        assert result["crowd"][0] and result["labels"][0] == 1 and result["labels"][1] == -1
        assert (result["labels"][result["crowd"]] == 1).all()
        assert set(result["labels"]) <= {1, -1, 2}
        height, width = result["image"].shape[:2]
        if name != "mosaic":
            np.testing.assert_allclose(result["boxes"][0], [0, 0, width, height], atol=0.51)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_images_without_objects(name):
    images = 1 + {"mosaic": 3, "mixup": 1, "copy_paste": 1}.get(name, 0)
    run = painted_images.runner([name], images, with_masks=True)
    example = painted_images.example_of(np.full((60, 90, 3), 7, "uint8"), [], [], pngs=[])
    for seed in range(4):
        result = run([example] * images, seed)
        assert result["boxes"].shape == (0, 4) and result["masks"].shape == (0, 112, 112)


def test_many_objects_at_once():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 150, (400, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 45, (400, 2))], axis=1)
    example = painted_images.example_of(np.zeros((200, 200, 3), "uint8"), boxes, rng.integers(0, 9, 400))
    run = painted_images.runner(["random_iou_crop", "mosaic", "mixup", "vertical_flip"], 5)
    for seed in range(5):
        result = run([example] * 5, seed)
        assert len(result["labels"]) in (1600, 2000)


@pytest.mark.parametrize("g", goldens("cn2_efficientdet_crop"), ids=str)
def test_scale_and_crop_equals_the_reference_for_given_draws(g):
    height, width, target, *draws = np.asarray(g["rows"]).T
    hw = np.stack([height, width], axis=-1)
    scaled, offset, scale, visible = placement(hw, np.stack([target, target], axis=-1), *draws)
    outs = np.concatenate([scaled, offset, scale[:, None], visible], axis=-1)
    boxes = g["boxes_in"] * scale.numpy()[:, None, None] - np.tile(offset.numpy()[:, ::-1], 2)[:, None]
    assert_agrees(g, {"outs": outs, "boxes_out": boxes})


@settings(max_examples=60, deadline=None)
@given(
    hw=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    target=st.tuples(st.integers(8, 2000), st.integers(8, 2000)),
    factor=st.floats(0.05, 4),
    draws=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_placements_stay_inside(hw, target, factor, draws):
    scaled, offset, scale, visible = (part.numpy() for part in placement(hw, target, factor, *draws))
    assert (visible >= 1).all() and (visible <= target).all()
    assert (offset >= 0).all() and (offset + visible <= scaled).all()
    assert (scaled <= np.maximum(np.multiply(hw, scale), 1) + 1e-6).all()


def test_boxes_with_too_small_a_visible_fraction_are_removed():
    """An image of 100x100 whose left half is cut away, by hand."""
    from kgarden.data.transforms.geometry import cut

    boxes = [[40, 0, 60, 20], [45, 0, 55.5, 20], [0, 0, 52, 50], [0, 60, 50.5, 100], [60, 60, 60.5, 60.5]]
    example = painted_images.example_of(np.zeros((100, 100, 3), "uint8"), boxes, [0, 1, 2, 3, 4])
    result = cut(example, tf.constant([0, 50, 100, 100]), 0.25)
    np.testing.assert_array_equal(result["labels"], [0, 1, -1, -1, 4])
    np.testing.assert_allclose(result["boxes"][:2], [[0, 0, 10, 20], [0, 0, 5.5, 20]])
    crowd = {**example, "crowd": tf.constant([False, False, True, True, False])}
    result = cut(crowd, tf.constant([0, 50, 100, 100]), 0.25)
    np.testing.assert_array_equal(result["labels"], [0, 1, 2, -1, 4])  # of the crowd 3 less than 1 px is left


def test_crop_is_resized_like_an_image_of_its_size():
    from kgarden.data.canvas import fitted_hw
    from kgarden.data.transforms.geometry import cut

    example = painted_images.example_of(np.zeros((300, 200, 3), "uint8"), [], [])
    for window in ([0, 0, 300, 100], [10, 20, 60, 190], [0, 0, 1, 200]):
        result = cut(example, tf.constant(window), 0.0)
        hw = (window[2] - window[0], window[3] - window[1])
        np.testing.assert_array_equal(
            result["target_hw"],
            fitted_hw(hw, painted_images.SHORT, painted_images.LONG, painted_images.CANVAS),
        )
        assert tuple(result["image"].shape[:2]) == hw


def test_iou_crops_reach_the_minimum_iou():
    """With IoU 0.9 asked for alone, what is seen of some object is nearly the whole window."""
    from kgarden.data.transforms import crops

    example = painted_images.example_of(np.zeros((100, 100, 3), "uint8"), [[10, 10, 90, 90]], [0])
    windows = tf.constant(
        [[10, 10, 90, 90], [0, 0, 50, 50], [10, 10, 90, 82], [20, 20, 80, 80], [91, 91, 99, 99]]
    )
    found = [
        crops._is_valid(example, windows, tf.constant(least)).numpy().tolist() for least in (0.9, 0.5, 0.0)
    ]
    # IoUs by hand: 1; 1600 / 7300 = 0.22; 0.9; 3600 / 6400 = 0.5625; 0.  Their centres: (50, 50).
    assert found[0] == [True, False, True, False, False]
    assert found[1] == [True, False, True, True, False]
    assert found[2] == [True, False, True, True, False]  # the second's border is the centre: half-open


def test_transform_is_a_function_of_example_and_seed():
    entries = ["random_iou_crop", "random_crop", "horizontal_flip", "vertical_flip", "color_jitter", "mixup"]
    run, again = (painted_images.new_runner(entries, num_images=2) for _ in range(2))
    examples, results = [painted_images.painted(0), painted_images.painted(1)], {}
    for seed in range(40):
        one, other = run(examples, seed), again(examples, seed)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
        results.setdefault(one["image"].tobytes(), []).append(seed)
    assert len(results) == 40


@pytest.mark.parametrize(
    "entries,message",
    [
        (["mosiac"], "no transform 'mosiac'; did you mean 'mosaic'"),
        ([{"mixup": {"alfa": 1}}], "augment.mixup.alfa: no such setting; did you mean 'alpha'"),
        ([{"mixup": {"alpha": 0.5}}], "mixup.alpha: 0.5 is not an integer"),
        ([{"random_crop": {"fraction": [0.9, 0.5]}}], r"random_crop.fraction: \[0.9, 0.5\] is not"),
        ([{"horizontal_flip": {"probability": 2}}], "horizontal_flip.probability: 2 is not"),
        (["mosaic", "large_scale_jitter"], "mosaic and large_scale_jitter both set"),
        (["copy_paste"], "copy_paste needs masks: set data.masks to true"),
        ([{"mosaic": {"antialias": True}}], "augment.mosaic.antialias: no such setting"),
    ],
)
def test_wrong_settings(entries, message):
    with pytest.raises(UserError, match=message):
        Augmentation(entries)


def test_every_transform_has_a_description():
    for name, defaults, summary in describe():
        assert name in TRANSFORMS and summary.endswith(".")
        Augmentation([{name: defaults}], masks=True)  # the defaults are valid settings


def test_random_numbers_are_uniform_and_independent():
    seeds = tf.stack([tf.fill([50_000], tf.constant(3, tf.int64)), tf.range(50_000, dtype=tf.int64)], axis=1)
    draws = rng.uniform(seeds, 3).numpy()
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in draws.T])
    chi2 = ((counts - 2500) ** 2 / 2500).sum(axis=1)
    assert (chi2 < 45).all()  # 19 degrees of freedom: p = 0.0007
    others = rng.uniform(rng.fold_in(seeds, 1), 1).numpy()[:, 0]
    lines = [*draws.T, others, np.roll(draws[:, 0], 1)]
    assert np.abs(np.corrcoef(lines) - np.eye(5)).max() < 0.02
    np.testing.assert_array_equal(rng.uniform(seeds[7], 3), draws[7])

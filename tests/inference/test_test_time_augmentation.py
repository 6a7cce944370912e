"""Several views of a picture, merged: by hand, against numpy, and what mirrors must leave alone."""

import keras
import numpy as np
import pytest
from keras import ops
from support.marks import SLOW_ON_JAX
from support.variants import CLASSES, VARIANTS, batch

from kgarden.errors import UserError
from kgarden.heads.selection import Selection
from kgarden.inference.test_time_augmentation import TestTimeAugmentation, last_selection
from kgarden.models import build_detector
from kgarden.models.base.static_shapes import ready_to_predict

FIRST_HW = (40, 51)  # an odd width


@pytest.fixture(autouse=True, scope="module")
def eagerly():
    """Tracing takes longer than all these models; tests/inference/test_views_of_recipes.py compiles."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.run_functions_eagerly(True)
        yield
        tf.config.run_functions_eagerly(False)
    else:
        yield


class Known:
    """A "detector" that reads the number of a view from its first pixel and answers with known boxes.

    Args:
        boxes:  (V, N, 4), px of the view.
        scores: (V, N, C).
        levels: rows of N that belong together.
    """

    mask_head = None

    def __init__(self, boxes, scores, levels=None, **selection):
        self.boxes, self.scores = np.float32(boxes), np.float32(scores)
        self.levels = levels or [(1, self.boxes.shape[1])]
        self.selection = Selection(**{"score_threshold": 0.05, "total": 20, **selection})

    def __call__(self, x, training=False):
        return ops.cast(x["images"][:, 0, 0, 0], "int32")

    def candidates(self, x, view):
        boxes, scores = (ops.take(ops.array(one), view, axis=0) for one in (self.boxes, self.scores))
        return {"boxes": boxes, "scores": scores, "levels": self.levels}

    def detect(self, x, view):
        return self.selection(self.candidates(x, view))


def views(*sizes, canvas=(64, 128)):
    """x of one picture: the first view at FIRST_HW, then at each (height, width, mirrored)."""

    def seen(number, height, width):
        images = np.full((1, *canvas, 3), number, "uint8")
        return {"images": images, "size_hw": np.int32([[height, width]])}

    others = [
        {**seen(number, height, width), "mirrored": np.array([mirrored])}
        for number, (height, width, mirrored) in enumerate(sizes, start=1)
    ]
    return {**seen(0, *FIRST_HW), "views": tuple(others)}


def ask(detector, x, **settings):
    """Detections of the first picture, those that are valid."""
    found = TestTimeAugmentation(detector, **settings).predict_on_batch(x)
    found = {key: np.asarray(value)[0] for key, value in found.items()}
    return {key: value[found["valid"]] for key, value in found.items()}


SIZES = [(40, 51, True), (60, 77, False), (60, 77, True)]
CONVENTIONS = ("detectron2", "maskrcnn_benchmark")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_boxes_are_mapped_to_the_first_view_by_hand(convention):
    """Widths 51 and 77: x becomes 51 - x in the mirror, 51 / 77 of it from the larger view."""
    boxes = [[[1, 2, 11, 12]], [[10, 5, 20, 15]], [[15.4, 30, 38.5, 45]], [[7, 30, 21, 45]]]
    scores = [[[0.9, 0]], [[0.8, 0]], [[0, 0.7]], [[0.6, 0]]]
    found = ask(Known(boxes, scores), views(*SIZES), convention=convention)
    by_hand = [
        [1, 2, 11, 12],
        [51 - 20, 5, 51 - 10, 15],
        [15.4 * 51 / 77, 30 * 40 / 60, 38.5 * 51 / 77, 45 * 40 / 60],  # 10.2, 20, 25.5, 30
        [56 * 51 / 77, 20, 70 * 51 / 77, 30],  # 77 - 21 = 56, 77 - 7 = 70
    ]
    np.testing.assert_allclose(found["boxes"], by_hand, rtol=1e-6)
    np.testing.assert_allclose(found["scores"], [0.9, 0.8, 0.7, 0.6])
    assert found["labels"].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_views_of_one_object_merge_per_class(convention):
    """The object at [10, 10, 20, 20] as each view sees it; the second view gives it another class as well."""
    plain, mirror = [10, 10, 20, 20], [51 - 20, 10, 51 - 10, 20]
    large = [10 * 77 / 51, 15, 20 * 77 / 51, 30]
    boxes = [[plain], [mirror], [large], [[77 - large[2], 15, 77 - large[0], 30]]]
    scores = [[[0.5, 0]], [[0.6, 0.3]], [[0.9, 0]], [[0.7, 0]]]
    found = ask(Known(boxes, scores), views(*SIZES), convention=convention)
    np.testing.assert_allclose(found["boxes"], [plain, plain], rtol=1e-6)
    np.testing.assert_allclose(found["scores"], [0.9, 0.3])
    assert found["labels"].tolist() == [0, 1]
    together = ask(Known(boxes, scores, class_wise=False), views(*SIZES), convention=convention)
    assert together["labels"].tolist() == [0]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_ties_go_to_the_earlier_view(convention):
    """And at an IoU equal to the threshold, 1/2, both do."""
    boxes = [[[10, 10, 20, 20]], [[51 - 21, 10, 51 - 11, 20]]]  # the mirror's is 1 px further right
    twice = [[[0.5]], [[0.5]]]
    found = ask(Known(boxes, twice, iou=0.5), views(SIZES[0]), convention=convention)
    np.testing.assert_allclose(found["boxes"], [[10, 10, 20, 20]])
    boxes = [[[10, 10, 20, 20]], [[51 - 20, 10, 51 - 10, 15]]]
    found = ask(Known(boxes, twice, iou=0.5), views(SIZES[0]), convention=convention)
    np.testing.assert_allclose(found["boxes"], [[10, 10, 20, 20], [10, 10, 20, 15]])
    found = ask(Known(boxes, twice, iou=0.5), views(SIZES[0]), convention=convention, iou=0.49)
    np.testing.assert_allclose(found["boxes"], [[10, 10, 20, 20]])


PAIR = [[[10, 10, 20, 20]], [[51 - 20, 10, 51 - 10, 15]]]  # IoU 1/2 across the views


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("soft,left", [("linear", 0.8 * 0.5), ("gaussian", 0.8 * np.exp(-0.25 / 0.5))])
def test_soft_nms_as_the_final_nms(convention, soft, left):
    """By the keys of merge over a model with NMS, and by the model's own."""
    x, scores = views(SIZES[0]), [[[0.9]], [[0.8]]]
    by_merge = ask(Known(PAIR, scores, iou=0.4), x, convention=convention, method="soft_nms", soft=soft)
    own = Known(PAIR, scores, iou=0.4, method="soft_nms", soft=soft)
    for found in (by_merge, ask(own, x, convention=convention)):
        np.testing.assert_allclose(found["boxes"], [[10, 10, 20, 20], [10, 10, 20, 15]])
        np.testing.assert_allclose(found["scores"], [0.9, left], rtol=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("method", ["none", "peaks"])
def test_views_of_an_nms_free_model_are_merged_by_nms(convention, method):
    boxes = [[[10, 10, 20, 20]], [[51 - 20, 10, 51 - 10, 20]]]
    known = Known(boxes, [[[0.6]], [[0.9]]], method=method, levels=[(1, 1)])
    found = ask(known, views(SIZES[0]), convention=convention)
    np.testing.assert_allclose(found["scores"], [0.9])


def test_rows_of_a_view():
    """B loses to A in its own view: a detection no longer, a candidate still, whom soft-NMS at the end keeps.

    A and B share 0.7, A and C 0.5, B and C 5/7. C's 0.7 becomes 0.35 for A; B's 0.8 becomes 0.24 for A and
    then loses 5/7 of that to C.
    """
    a, b, c_in_the_mirror = [10, 10, 20, 20], [10, 10, 20, 17], [51 - 20, 12, 51 - 10, 17]
    known = Known([[a, b], [c_in_the_mirror] * 2], [[[0.9], [0.8]], [[0.7], [0.0]]], iou=0.65)
    soft = {"method": "soft_nms", "soft": "linear", "min_score": 0.01, "iou": 0.0}
    x = views(SIZES[0])
    found = ask(known, x, convention="detectron2", **soft)
    np.testing.assert_allclose(found["scores"], [0.9, 0.35], rtol=1e-6)
    found = ask(known, x, convention="maskrcnn_benchmark", **soft)
    np.testing.assert_allclose(found["scores"], [0.9, 0.35, 0.24 * 2 / 7], rtol=1e-5)


def test_groups_of_suppression():
    """A suppresses B in the first view, C of the second suppresses A: B is free if it is still there."""
    a, b, c_in_the_mirror = [10, 10, 20, 20], [10, 13, 20, 23], [51 - 20, 7, 51 - 10, 17]
    known = Known([[a, b], [c_in_the_mirror] * 2], [[[0.9], [0.8]], [[0.95], [0.0]]], iou=0.5)
    for convention, left in zip(CONVENTIONS, ([0.95], [0.95, 0.8]), strict=True):
        found = ask(known, views(SIZES[0]), convention=convention)
        np.testing.assert_allclose(found["scores"], left)


def greedy(boxes, scores, groups, threshold):
    """NMS in numpy, float64: rows that stay, best first."""
    kept = []
    for row in np.argsort(-scores, kind="stable"):
        if all(
            groups[row] != groups[other] or overlap(boxes[row], boxes[other]) <= threshold for other in kept
        ):
            kept.append(row)
    return kept


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = np.prod(np.maximum(high - low, 0))
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


@pytest.mark.parametrize("own_boxes", [False, True], ids=["a box for all classes", "a box for each class"])
def test_candidates_of_two_views_against_numpy(own_boxes):
    """maskrcnn_benchmark: threshold, best 16 of each level of each view, best 50 of all, one NMS, best 20."""
    rng = np.random.default_rng(3 + own_boxes)
    levels, classes = [(2, 10), (1, 10)], 3
    shape = (2, 30, classes) if own_boxes else (2, 30)
    corner = rng.uniform(0, 25, (*shape, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 20, (*shape, 2))], axis=-1).astype("float32")
    scores = rng.uniform(0, 1, (2, 30, classes)).astype("float32")
    known = Known(boxes, scores, levels, score_threshold=0.3, per_level=16, iou=0.3, total=20, pool=50)
    found = ask(known, views((60, 77, True)), convention="maskrcnn_benchmark")

    rows = []
    for view in range(2):
        for start, stop in [(0, 20), (20, 30)]:
            flat = scores[view, start:stop].reshape(-1)
            for pair in np.argsort(-flat, kind="stable")[:16]:
                row, label = start + pair // classes, pair % classes
                box = boxes[view, row, label] if own_boxes else boxes[view, row]
                if view:  # mirrored, 77 px wide
                    mirrored = np.array([77 - box[2], box[1], 77 - box[0], box[3]])
                    box = mirrored * np.tile([51 / 77, 40 / 60], 2)
                if flat[pair] > 0.3:
                    rows.append((box, flat[pair], label))
    boxes, scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    pool = np.argsort(-scores)[:50]
    boxes, scores, labels = boxes[pool], scores[pool], labels[pool]
    kept = greedy(boxes.astype("float64"), scores, labels, 0.3)
    assert len(rows) > 55 and len(kept) > 20  # there is something to leave out
    limit = [51, 40, 51, 40]
    np.testing.assert_allclose(found["boxes"], np.clip(boxes[kept[:20]], 0, limit), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found["scores"], scores[kept[:20]])
    np.testing.assert_array_equal(found["labels"], labels[kept[:20]])


# Real detectors, small.


def small(name, **selection):
    keras.utils.set_random_seed(0)
    settings = {"score_threshold": 0.0, "total": 30, **selection}
    return build_detector({**VARIANTS[name], "selection": settings}, CLASSES)


def in_a_mirror(x):
    """The same pictures, mirrored within their canvas."""
    images = np.zeros_like(x["images"])
    for row, (height, width) in enumerate(x["size_hw"]):
        images[row, :height, :width] = x["images"][row, :height, :width][:, ::-1]
    return {"images": images, "size_hw": x["size_hw"]}


def boxes_of(found, size_hw=None):
    """Boxes of valid rows, 0 elsewhere; with sizes as a mirror shows them."""
    boxes = np.asarray(found["boxes"])
    if size_hw is not None:
        left, top, right, bottom = np.split(boxes, 4, axis=-1)
        width = np.asarray(size_hw)[:, 1:, None]
        boxes = np.concatenate([width - right, top, width - left, bottom], axis=-1)
    return np.where(np.asarray(found["valid"])[..., None], boxes, 0.0)


@pytest.mark.parametrize(
    "name,convention",
    [
        ("fcos", "detectron2"),
        pytest.param("atss_pss", "maskrcnn_benchmark", marks=SLOW_ON_JAX),
        pytest.param("centernet2", "maskrcnn_benchmark", marks=SLOW_ON_JAX),
    ],
)
def test_flipped_image_gives_flipped_boxes(name, convention):
    """With flip, the views of a picture and those of its mirror image are the same two."""
    detector, (x, _) = small(name), batch()
    assert x["size_hw"][0, 1] != x["images"].shape[2]  # a mirror of the canvas would be another
    x, other = {key: x[key] for key in ("images", "size_hw")}, in_a_mirror(x)
    merged, yes = TestTimeAugmentation(detector, convention=convention), np.array([True, True])
    one = merged.predict_on_batch({**x, "views": ({**other, "mirrored": yes},)})
    two = merged.predict_on_batch({**other, "views": ({**x, "mirrored": yes},)})
    assert one["valid"].any()
    np.testing.assert_array_equal(one["valid"], two["valid"])
    np.testing.assert_allclose(one["scores"], two["scores"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(boxes_of(one, x["size_hw"]), boxes_of(two), atol=2e-3)


@pytest.mark.parametrize(
    "name,convention",
    [
        pytest.param("centernet2", "detectron2", marks=SLOW_ON_JAX),
        ("centernet", "maskrcnn_benchmark"),
        pytest.param("double_head", "maskrcnn_benchmark", marks=SLOW_ON_JAX),
    ],
)
def test_single_view_equals_the_detector(name, convention):
    detector, (x, _) = small(name), batch()
    x = {key: x[key] for key in ("images", "size_hw")}
    plain = ready_to_predict(detector.inference_model()).predict_on_batch(x)
    merged = TestTimeAugmentation(detector, convention=convention).predict_on_batch({**x, "views": ()})
    assert plain["valid"].any()
    for key in ("boxes", "scores", "labels", "valid"):
        np.testing.assert_array_equal(merged[key], plain[key], err_msg=key)


# What is refused.


def test_masks_and_unused_settings_are_rejected_in_one_line():
    known = Known([[[0, 0, 9, 9]]], [[[0.5]]])
    for settings, words in [
        ({"convention": "mmdetection"}, "one of detectron2, maskrcnn_benchmark, mmdetection_1"),
        ({"soft": "linear"}, "merge.soft does not apply to method nms"),
        ({"sigma": 0.3}, "merge.sigma does not apply"),
        ({"method": "nms", "min_score": 0.1}, "merge.min_score does not apply"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            TestTimeAugmentation(known, **settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="merges proposals, and a one-stage model has none; use") as caught:
        TestTimeAugmentation(small("fcos"), convention="mmdetection_1")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="masks of several views"):
        TestTimeAugmentation(small("condinst"))


def test_final_selection_overrides_that_of_the_model():
    own = Selection(iou=0.7, total=50, method="none")
    assert last_selection(own) == Selection(iou=0.7, total=50, method="nms")
    soft = Selection(method="soft_nms", soft="gaussian", sigma=0.3)
    assert last_selection(soft) == soft
    assert last_selection(soft, method="nms", iou=0.5) == Selection(
        method="nms", iou=0.5, soft="gaussian", sigma=0.3
    )
    assert last_selection(soft, sigma=0.4, soft=None).sigma == 0.4

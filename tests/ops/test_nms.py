import re

import keras
import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.jit import fast

from kgarden.ops import nms as module
from kgarden.ops.nms import nms

compiled_nms = fast(nms, static=["iou_threshold", "max_output"])  # on JAX


def run(boxes, scores, threshold, max_output=None, labels=None, valid=None):
    """Kept rows of one image."""
    valid = np.ones(len(scores), bool) if valid is None else valid
    labels = None if labels is None else np.asarray(labels, "int32")[None]
    k = max(len(scores), 1) if max_output is None else max_output
    settings = {"iou_threshold": threshold, "max_output": k}
    found = compiled_nms(boxes[None], scores[None], valid[None], labels=labels, **settings)
    indices, kept = (ops.convert_to_numpy(array)[0] for array in found)
    assert len(indices) == k and not indices[~kept].any()
    assert (np.diff(kept.astype(int)) <= 0).all()  # what is kept stands first
    return indices[kept]


def greedy(boxes, scores, threshold, labels=None, valid=None):
    """The definition, one box after the other."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if valid is not None and not valid[i]:
            continue
        low, high = np.maximum(boxes[i, :2], boxes[kept, :2]), np.minimum(boxes[i, 2:], boxes[kept, 2:])
        common = np.maximum(high - low, 0).prod(axis=1)
        overlap = common / (area[i] + area[kept] - common)
        rival = True if labels is None else np.asarray(labels)[kept] == labels[i]
        if not np.any((overlap > np.float64(threshold)) & rival):
            kept.append(i)
    return np.array(kept, dtype=int)


def crowd(rng, count, clusters=20, size=300):
    """Boxes in clusters, so that chains of suppression arise, with some exact duplicates."""
    center = rng.uniform(0, size, (clusters, 2))[rng.integers(0, clusters, count)] + rng.normal(
        0, 6, (count, 2)
    )
    half = rng.uniform(8, 40, (count, 2))
    boxes = np.concatenate([center - half, center + half], axis=1).astype("float32")
    boxes[: count // 10] = boxes[count // 10 : 2 * (count // 10)]
    return boxes


@pytest.mark.parametrize("golden", goldens("d2_nms"), ids=str)
def test_nms_agrees_with_the_reference(golden):
    thresholds = {round(100 * threshold): threshold for threshold in params(golden)["thresholds"]}
    boxes, got = golden["boxes"], {}
    for name in golden.outputs:
        batched, tied, number = re.fullmatch(r"keep_(batched_)?(tied_)?([0-9]+|empty)", name).groups()
        scores = golden["scores_tied" if tied else "scores"]
        if number == "empty":
            got[name] = run(boxes[:0], scores[:0], 0.5)
        else:
            got[name] = run(
                boxes, scores, thresholds[int(number)], labels=golden["classes"] if batched else None
            )
    assert_agrees(golden, got)


@pytest.mark.parametrize(
    "seed, threshold", [(0, 0.3), (0, 0.7), (1, 0.0), (1, 0.95), (2, 0.3), (3, 0.7)], ids=str
)
@pytest.mark.parametrize("classes", [None, 3])
def test_equal_to_the_definition(seed, threshold, classes):
    """Over several blocks, with chains of suppression, duplicates, tied scores and invalid boxes."""
    rng = np.random.default_rng(seed)
    count = [700, 257, 90, 1][seed]
    boxes = crowd(rng, count)
    scores = (rng.integers(0, 50, count) / 50).astype("float32")
    labels = None if classes is None else rng.integers(0, classes, count)
    valid = rng.random(count) < 0.8
    expected = greedy(boxes, scores, threshold, labels=labels, valid=valid)
    np.testing.assert_array_equal(run(boxes, scores, threshold, labels=labels, valid=valid), expected)
    few = run(boxes, scores, threshold, 17, labels, valid)
    np.testing.assert_array_equal(few, expected[:17])


def test_iou_equal_to_the_threshold_does_not_suppress():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 5]])  # IoU 1/2
    scores = np.float32([0.9, 0.8])
    assert run(boxes, scores, 0.5).tolist() == [0, 1]
    assert run(boxes, scores, np.nextafter(0.5, 0)).tolist() == [0]


@pytest.mark.parametrize("tenths", range(1, 10))
def test_the_threshold_is_not_rounded_up(tenths):
    """float32(0.3) lies above 0.3; an IoU of exactly float32(0.3) is greater than 0.3."""
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, tenths]])
    scores = np.float32([0.9, 0.8])
    suppressed = float(np.float32(10 * tenths) / np.float32(100)) > tenths / 10
    assert run(boxes, scores, tenths / 10).tolist() == ([0] if suppressed else [0, 1])


def test_chains_are_resolved_in_order():
    """a suppresses b, so b cannot suppress c; along a chain every second box stays."""
    x = np.arange(101, dtype="float32")
    boxes = np.stack([x * 4, 0 * x, x * 4 + 10, 0 * x + 10], axis=1)  # neighbours: IoU 6/14
    scores = np.linspace(1, 0.1, 101, dtype="float32")
    np.testing.assert_array_equal(run(boxes, scores, 0.4), np.arange(0, 101, 2))


def test_labels_far_apart_keep_full_precision():
    """With 100,000 labels, moving each class aside by its label would round boxes to whole pixels."""
    boxes = np.float32([[0, 0, 1, 1], [0.1, 0, 1.1, 1]]) + 500
    scores = np.float32([0.9, 0.8])
    assert run(boxes, scores, 0.5, labels=[99_999, 99_999]).tolist() == [0]
    assert run(boxes, scores, 0.5, labels=[99_999, 99_998]).tolist() == [0, 1]


def test_batch_equals_singles():
    rng = np.random.default_rng(5)
    boxes = np.stack([crowd(rng, 300, clusters) for clusters in (3, 30, 100)])
    scores = rng.random((3, 300)).astype("float32")
    valid = np.stack([np.arange(300) < n for n in (300, 40, 0)])
    indices, kept = (
        ops.convert_to_numpy(a) for a in nms(boxes, scores, valid, iou_threshold=0.5, max_output=60)
    )
    for i in range(3):
        single = run(boxes[i], scores[i], 0.5, 60, valid=valid[i])
        np.testing.assert_array_equal(indices[i][kept[i]], single)
    assert not kept[2].any()


def test_invariant_to_order_of_boxes():
    rng = np.random.default_rng(6)
    boxes, scores = crowd(rng, 400), rng.random(400).astype("float32")
    shuffle = rng.permutation(400)
    np.testing.assert_array_equal(shuffle[run(boxes[shuffle], scores[shuffle], 0.6)], run(boxes, scores, 0.6))


def test_non_finite_scores_and_empty_boxes():
    boxes = np.float32([[0, 0, 9, 9], [0, 0, 9, 9], [5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]])
    scores = np.float32([np.nan, np.inf, 0.5, 0.4, 0.3])
    assert run(boxes, scores, 0.5).tolist() == [2, 3, 4]  # empty boxes overlap nothing


def test_longer_result_than_input_and_no_input():
    boxes, scores = np.float32([[0, 0, 9, 9], [50, 50, 60, 60]]), np.float32([0.3, 0.4])
    assert run(boxes, scores, 0.5, 7).tolist() == [1, 0]
    assert run(boxes[:0], scores[:0], 0.5, 7).tolist() == []


@pytest.mark.tensorflow
def test_loop_ends_early(monkeypatch):
    """No more blocks are walked than the result needs; counted in the steps of TensorFlow's eager loop."""
    walked = []
    monkeypatch.setattr(module, "_resolve", lambda *a, real=module._resolve: walked.append(1) or real(*a))
    rng = np.random.default_rng(7)
    corner = rng.uniform(0, 1e5, (5000, 2)).astype("float32")
    boxes = np.concatenate([corner, corner + 10], axis=1)
    run(boxes, rng.random(5000).astype("float32"), 0.5, 100)
    assert len(walked) == 1


@pytest.mark.parametrize("jit", [False, True])
def test_compiled(jit):
    rng = np.random.default_rng(8)
    boxes, scores = crowd(rng, 600)[None], rng.random((1, 600)).astype("float32")
    labels = rng.integers(0, 2, (1, 600)).astype("int32")
    valid = np.ones((1, 600), bool)

    def call(boxes, scores, valid, labels):
        return nms(boxes, scores, valid, iou_threshold=0.6, max_output=200, labels=labels)

    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(call)
    else:
        import tensorflow as tf

        compiled = tf.function(call, jit_compile=jit)
    got = [ops.convert_to_numpy(a)[0] for a in compiled(boxes, scores, valid, labels)]
    np.testing.assert_array_equal(got[0][got[1]], run(boxes[0], scores[0], 0.6, 200, labels[0]))


@pytest.mark.tensorflow
def test_saved_model_of_any_batch_size(tmp_path):
    import tensorflow as tf

    spec = [tf.TensorSpec((None, 500, 4)), tf.TensorSpec((None, 500)), tf.TensorSpec((None, 500), tf.bool)]
    saved = tf.Module()
    saved.call = tf.function(
        lambda b, s, v: dict(zip("iv", nms(b, s, v, iou_threshold=0.5, max_output=50), strict=True)), spec
    )
    tf.saved_model.save(saved, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    rng = np.random.default_rng(9)
    boxes = np.stack([crowd(rng, 500), crowd(rng, 500)])
    scores = rng.random((2, 500)).astype("float32")
    got = loaded.call(boxes, scores, np.ones((2, 500), bool))
    for i in range(2):
        np.testing.assert_array_equal(
            got["i"][i].numpy()[got["v"][i].numpy()], run(boxes[i], scores[i], 0.5, 50)
        )

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params

from kgarden.ops import boxes
from kgarden.ops.matcher import IGNORE, NEGATIVE, POSITIVE, match, sample


def matched_and_label(iou, thresholds, labels, low_quality):
    """Of one image, all of whose ground truth is real."""
    found = match(iou[None], np.ones((1, len(iou)), bool), thresholds, labels=labels, low_quality=low_quality)
    return [ops.convert_to_numpy(array)[0] for array in found]


@pytest.mark.parametrize("golden", goldens("d2_matcher"), ids=str)
def test_matcher_agrees_with_the_reference(golden):
    settings = params(golden)
    iou = golden["iou"]
    got = {"iou": ops.convert_to_numpy(boxes.iou(golden["gt_boxes"], golden["boxes"]))}
    cases = {name: settings[name] for name in ("rpn", "retinanet")}
    for name, threshold in settings["roi"].items():
        cases[name] = {
            "thresholds": [threshold],
            "labels": settings["roi_labels"],
            "low_quality": settings["roi_low_quality"],
        }
    for name, case in cases.items():
        got[f"{name}_match"], got[f"{name}_label"] = matched_and_label(iou, **case)
    empty = matched_and_label(iou[:0], **settings["rpn"])
    got["rpn_emptygt_match"], got["rpn_emptygt_label"] = empty
    got["subsample_counts"] = np.array([drawn(*row) for row in golden["subsample_cases"]])
    assert_agrees(golden, got)


def drawn(positive, negative, ignored, num, fraction):
    """How many positives and negatives `sample` draws from labels of these counts, shuffled."""
    rng = np.random.default_rng(0)
    counts = [int(positive), int(negative), int(ignored)]
    label = rng.permutation(np.repeat([POSITIVE, NEGATIVE, IGNORE], counts)).astype("int32")
    random = rng.random((1, len(label)), "float32")
    found = sample(label[None], int(num), round(float(fraction), 6), random)
    indices, valid, is_positive = (ops.convert_to_numpy(array)[0] for array in found)
    chosen = indices[valid]
    assert len(set(chosen)) == len(chosen)
    assert (label[chosen] == np.where(is_positive[valid], POSITIVE, NEGATIVE)).all()
    return is_positive.sum(), (valid & ~is_positive).sum()


def test_reference_contains_all_labels():
    [golden] = [g for g in goldens("d2_matcher") if g.name == "d2_matcher"] or [None]
    if golden is None:
        pytest.skip("another directory of references")
    for name in ("rpn", "retinanet"):
        assert set(golden[f"{name}_label"]) == {-1, 0, 1}


def test_low_quality_match_keeps_its_own_best_row():
    iou = np.float32([[0.2, 0.1], [0.25, 0.0]])  # box 0 is the best of both rows; row 1 is its best
    matched, label = matched_and_label(iou, (0.3, 0.7), (0, -1, 1), low_quality=True)
    assert matched.tolist() == [1, 0] and label.tolist() == [POSITIVE, NEGATIVE]
    _, label = matched_and_label(iou, (0.3, 0.7), (0, -1, 1), low_quality=False)
    assert label.tolist() == [NEGATIVE, NEGATIVE]


def test_thresholds_are_inclusive():
    _, label = matched_and_label(np.float32([[0.5, 0.49999, 0.75]]), (0.5, 0.75), (0, -1, 1), False)
    assert label.tolist() == [IGNORE, NEGATIVE, POSITIVE]


def test_invariant_to_padding():
    rng = np.random.default_rng(2)
    iou = rng.random((2, 5, 30)).astype("float32")
    alone = match(iou[:, :3], np.ones((2, 3), bool), (0.5,), (0, 1), low_quality=True)
    gt_valid = np.arange(5)[None].repeat(2, 0) < 3
    padded = match(iou, gt_valid, (0.5,), (0, 1), low_quality=True)
    for a, b in zip(alone, padded, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    valid = np.arange(30)[None].repeat(2, 0) < 20
    fewer = match(iou[:, :, :20], gt_valid, (0.5,), (0, 1), low_quality=True)
    masked = match(iou, gt_valid, (0.5,), (0, 1), low_quality=True, valid=valid)
    for a, b in zip(fewer, masked, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b)[:, :20])
    assert (ops.convert_to_numpy(masked[1])[:, 20:] == IGNORE).all()


def test_image_without_objects():
    matched, label = match(
        np.ones((2, 4, 9), "float32"), np.zeros((2, 4), bool), (0.3, 0.7), labels=(0, -1, 1), low_quality=True
    )
    assert not ops.convert_to_numpy(matched).any() and not ops.convert_to_numpy(label).any()


def test_mismatched_thresholds_and_labels_raise():
    with pytest.raises(ValueError, match="one more"):
        match(np.ones((1, 1, 1), "float32"), np.ones((1, 1), bool), (0.3, 0.7), (0, 1))


def test_sample_draws_the_highest_random_numbers():
    label = np.int32([[1, 1, 1, 0, 0, -1]])
    random = np.float32([[0.1, 0.9, 0.5, 0.2, 0.3, 0.99]])
    indices, valid, is_positive = (ops.convert_to_numpy(a)[0] for a in sample(label, 4, 0.5, random))
    assert indices.tolist() == [1, 2, 4, 3]
    assert valid.all() and is_positive.tolist() == [True, True, False, False]
    indices, valid, is_positive = (ops.convert_to_numpy(a)[0] for a in sample(label, 8, 0.25, random))
    assert indices.tolist() == [1, 2, 4, 3, 0, 0, 0, 0]
    assert valid.tolist() == [True] * 4 + [False] * 4 and is_positive.sum() == 2

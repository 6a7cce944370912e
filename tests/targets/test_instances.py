"""Which places learn masks, and the class at each cell, against loops."""

import numpy as np
import pytest
from keras import ops
from support import reference_loops as loops

from kgarden.targets.assign_result import BACKGROUND, IGNORED
from kgarden.targets.instances import best_of_each, drawn, semantic_labels


def chosen(*arguments):
    found = [ops.convert_to_numpy(part) for part in best_of_each(*arguments)]
    assert all(part.shape == (len(arguments[0]), arguments[3]) for part in found)
    place, row, valid = found
    assert (place[~valid] == 0).all()
    pairs = [list(zip(p[v], r[v], strict=True)) for p, r, v in zip(place, row, valid, strict=True)]
    assert all(len(set(one)) == len(one) for one in pairs)  # none twice
    return [set(map(lambda pair: tuple(map(int, pair)), one)) for one in pairs]


@pytest.mark.parametrize("count", [1, 3, 7, 20, 90])
def test_agrees_with_loops(count):
    rng = np.random.default_rng(count)
    matched = rng.integers(-2, 6, (4, 80)).astype("int32")
    matched[1] = np.where(matched[1] == 2, -1, matched[1])  # an object without a place
    matched[2] = -1
    score = rng.random((4, 80)).astype("float32")
    wanted = rng.random((4, 6)) < 0.8
    wanted[3] = True
    got = chosen(matched, score, wanted, count)
    assert got == [loops.best_of_each(*one, count) for one in zip(matched, score, wanted, strict=True)]
    assert got[2] == set() and all(m != -2 for one in got for _, m in one)


def test_points_are_divided_evenly_and_each_object_keeps_its_best():
    matched = np.int32([[0] * 30 + [1] * 2 + [-1] * 8])
    score = np.linspace(0.9, 0.1, 40, dtype="float32")[None]
    got = chosen(matched, score, np.array([[True, True]]), 8)[0]
    assert got == {(0, 0), (1, 0), (2, 0), (3, 0), (30, 1), (31, 1)}  # the small one's rest is not given away
    got = chosen(matched, score, np.array([[False, True]]), 8)[0]
    assert got == {(30, 1), (31, 1)}


def test_points_are_drawn_where_there_are_more_than_wanted():
    rng = np.random.default_rng(0)
    matched = rng.integers(-2, 4, (2, 50)).astype("int32")
    wanted = np.array([[True, True, False, True], [False] * 4])
    numbers = rng.random((2, 50)).astype("float32")
    having = {int(place) for place in np.flatnonzero(np.isin(matched[0], [0, 1, 3]))}

    def pairs(count, random):
        found = drawn(matched, wanted, count, random)
        place, row, valid = map(ops.convert_to_numpy, found)
        assert place.shape == (2, min(count, 50)) and not valid[1].any() and (place[~valid] == 0).all()
        assert (matched[0][place[0][valid[0]]] == row[0][valid[0]]).all()
        return set(place[0][valid[0]].tolist())

    assert pairs(40, lambda n: numbers[:, :n]) == having == pairs(60, None) and 5 < len(having) < 40
    assert pairs(5, lambda n: numbers[:, :n]) == set(sorted(having, key=lambda n: -numbers[0, n])[:5])
    assert pairs(5, None) == set(sorted(having)[:5])


def truth():
    boxes = np.float32([[[0, 0, 64, 64], [16, 16, 32, 48], [40, 8, 60, 30], [0, 0, 64, 64], [0, 0, 0, 0]]])
    masks = np.zeros((1, 5, 16, 16), bool)
    masks[0, 0] = masks[0, 1, :8] = masks[0, 3] = True
    labels, crowd = np.int32([[2, 0, 1, 1, -1]]), np.array([[False, False, False, True, False]])
    return {"boxes": boxes, "labels": labels, "crowd": crowd, "masks": masks}


def test_semantic_label_is_that_of_the_smallest_mask():
    y = truth()
    known = np.array([[True, True, False, False, False]])
    got = ops.convert_to_numpy(semantic_labels(y, known, (9, 9), 8)).reshape(9, 9)
    want = np.full((9, 9), BACKGROUND)
    want[:8, :8] = 2  # the large one; the crowd region, just as large, counts nowhere
    want[2:4, 2:4] = 0  # the upper half of the small one; below it lies the large one
    np.testing.assert_array_equal(got, want)


def test_missing_masks_have_no_targets():
    y = truth()
    y["masks"][0, 0] = False
    known = np.array([[False, True, False, False, False]])
    got = ops.convert_to_numpy(semantic_labels(y, known, (9, 9), 8)).reshape(9, 9)
    assert (got[2:4, 2:4] == 0).all() and (got[8] == BACKGROUND).all() and (got[:, 8] == BACKGROUND).all()
    assert (got[:8, :8] == IGNORED).sum() == 60
    y["labels"][:] = -1
    got = ops.convert_to_numpy(semantic_labels(y, np.zeros((1, 5), bool), (9, 9), 8))
    assert (got == BACKGROUND).all()


def test_a_small_mask_in_a_large_box_is_the_smaller_object():
    """Masks are compared by their own area, not by that of their boxes."""
    masks = np.zeros((1, 2, 8, 8), bool)
    masks[0, 0, :2, :2] = masks[0, 1] = True  # 1/16 of 16 x 16 px, and all of 8 x 8 px
    boxes = np.float32([[[0, 0, 16, 16], [0, 0, 8, 8]]])
    y = {"boxes": boxes, "labels": np.int32([[3, 4]]), "crowd": np.zeros((1, 2), bool), "masks": masks}
    labels = ops.convert_to_numpy(semantic_labels(y, np.ones((1, 2), bool), (4, 4), 4)).reshape(4, 4)
    assert labels.tolist() == [[3, 4, -1, -1], [4, 4, -1, -1], [-1] * 4, [-1] * 4]

"""One-to-one assignment against scipy's solver, against numbers computed with it, and by hand."""

import numpy as np
import pytest
from keras import ops
from scipy.optimize import linear_sum_assignment
from support.golden import assert_agrees, goldens, params
from support.jit import fast, jitted, traced

from kgarden.ops import linear_assignment
from kgarden.ops.linear_assignment import objects_of

hungarian = fast(linear_assignment.hungarian, static=["outside"])
top_one = fast(linear_assignment.top_one)


def numpy_of(x):
    return ops.convert_to_numpy(x)


def value(quality, assigned, outside):
    """What hungarian maximises: the sum of (quality - outside) over the pairs."""
    return sum(np.float64(quality[m, a]) - outside for m, a in enumerate(assigned) if a >= 0)


def best_value(quality, allowed, outside):
    rows, columns = linear_sum_assignment(np.where(allowed, quality, outside), maximize=True)
    return sum(
        np.float64(quality[m, a]) - outside for m, a in zip(rows, columns, strict=True) if allowed[m, a]
    )


def assert_one_to_one(assigned, allowed):
    for m, a in enumerate(assigned):
        assert a == -1 or allowed[m, a], "a pair that is not allowed"
    taken = assigned[assigned >= 0]
    assert len(set(taken)) == len(taken), "a candidate was given twice"


@pytest.mark.parametrize("golden", goldens("onestage_assign_matrices"), ids=str)
def test_assignments_agree_with_the_reference(golden):
    methods = params(golden)["methods"]
    quality, allowed = golden["q"], golden["omega"] > 0

    def found(name):
        return hungarian(quality, allowed, methods[name]["outside"])

    def total(assigned):
        at = np.take_along_axis(quality, np.maximum(assigned, 0)[..., None], axis=2)[..., 0]
        return np.where(assigned >= 0, at, 0).sum(axis=1)

    count = quality.shape[2]
    best = numpy_of(found("hungarian"))
    got = {
        "assigned_hungarian": numpy_of(objects_of(best, count)),
        "assigned_hungarian_outside0": numpy_of(objects_of(found("hungarian_outside0"), count)),
        "assigned_topone": numpy_of(objects_of(top_one(quality, allowed), count)),
        "total_q_hungarian": total(best),
    }
    assert_agrees(golden, got)


SIZES = [(1, 7), (8, 5), (5, 40), (25, 60)]


@pytest.mark.parametrize("objects,candidates", SIZES)
@pytest.mark.parametrize("outside", [-1.0, 0.0])
def test_hungarian_total_equals_scipy(objects, candidates, outside):
    """Random and degenerate matrices: ties, nothing or everything allowed, more objects than candidates."""
    rng = np.random.default_rng(objects * 100 + candidates)
    density = np.repeat([0.0, 0.1, 0.3, 0.7, 1.0], 6)[:, None, None]
    quality = rng.uniform(0, 1, (30, objects, candidates)).astype("float32")
    quality[1::3] = np.round(quality[1::3] * 3) / 3  # ties
    quality[2::3] *= rng.uniform(0, 1, (10, 1, candidates)) ** 8  # everyone wants the same few
    allowed = rng.uniform(0, 1, quality.shape) < density
    assigned = numpy_of(traced(hungarian)(quality, allowed, outside))
    assert assigned.shape == (30, objects) and assigned.dtype == np.int32
    for image in range(30):
        assert_one_to_one(assigned[image], allowed[image])
        np.testing.assert_allclose(
            value(quality[image], assigned[image], outside),
            best_value(quality[image], allowed[image], outside),
            atol=2e-5,
        )
    assert (assigned >= 0).any()
    assert (assigned != numpy_of(top_one(quality, allowed))).any() or objects == 1, "the cases are too easy"


def test_equal_qualities():
    quality, allowed = np.full((1, 6, 4), 0.5, "float32"), np.ones((1, 6, 4), bool)
    assigned = numpy_of(hungarian(quality, allowed))[0]
    assert_one_to_one(assigned, allowed[0])
    assert (assigned >= 0).sum() == 4  # every candidate is used, two objects stay without


def test_augmenting_path_through_all_objects():
    """Object i can have candidates i and i + 1 and prefers i; the last one can have only candidate 0."""
    length = 30
    quality = np.zeros((1, length, length), "float32")
    for i in range(length - 1):
        quality[0, i, i], quality[0, i, i + 1] = 0.51, 0.5
    quality[0, -1, 0] = 0.2
    assigned = numpy_of(hungarian(quality, quality > 0))[0]
    np.testing.assert_array_equal(assigned, [*range(1, length), 0])
    # 29 losses of 0.01 are more than the lone object's 0.2, and less than its 0.2 - (-1).
    assigned = numpy_of(hungarian(quality, quality > 0, outside=0.0))[0]
    np.testing.assert_array_equal(assigned, [*range(length - 1), -1])


def test_allowed_pair_of_quality_zero_is_matched():
    quality, allowed = np.zeros((1, 2, 3), "float32"), np.zeros((1, 2, 3), bool)
    allowed[0, 0, 2] = True
    for rule in (hungarian, top_one):
        np.testing.assert_array_equal(numpy_of(rule(quality, allowed)), [[2, -1]])


def test_top_one_has_no_second_choice():
    quality = np.float32([[[0.9, 0.8, 0.0], [0.7, 0.1, 0.6], [0.9, 0.2, 0.3], [0.2, 0.3, 0.6]]])
    assigned = numpy_of(top_one(quality, np.ones_like(quality, bool)))
    # 0 and 2 want candidate 0 equally, 1 wants it less; 3 has the last one for itself.
    np.testing.assert_array_equal(assigned, [[0, -1, -1, 2]])
    np.testing.assert_array_equal(numpy_of(objects_of(assigned, 3)), [[0, -1, 3]])


@pytest.mark.parametrize("rule", [hungarian, top_one])
def test_without_objects_or_candidates(rule):
    assert numpy_of(rule(np.zeros((2, 0, 5), "float32"), np.zeros((2, 0, 5), bool))).shape == (2, 0)
    nothing = numpy_of(rule(np.zeros((2, 3, 0), "float32"), np.zeros((2, 3, 0), bool)))
    np.testing.assert_array_equal(nothing, np.full((2, 3), -1))


@pytest.mark.parametrize("rule", [hungarian, top_one])
def test_images_are_independent_and_xla_agrees(rule):
    rng = np.random.default_rng(5)
    quality = rng.uniform(0, 1, (4, 10, 14)).astype("float32")
    allowed = rng.uniform(0, 1, quality.shape) < [[[0.0]], [[0.2]], [[0.5]], [[1.0]]]
    together = numpy_of(rule(quality, allowed))
    for image in range(4):
        alone = numpy_of(rule(quality[image : image + 1], allowed[image : image + 1]))
        np.testing.assert_array_equal(alone[0], together[image])
    np.testing.assert_array_equal(numpy_of(jitted(rule)(quality, allowed)), together)

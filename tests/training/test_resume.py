"""A training that is killed at any moment ends, after the same command again, with the same bits."""

import functools

import numpy as np
import pytest
from support.programs.forks import forks
from support.programs.resume import MOMENTS, STEPS

from tfrecords.converters import shapes

pytestmark = pytest.mark.tensorflow

KILLED = -9


@pytest.fixture(scope="module")
def run():
    """run(data, folder, ..., MODEL=variant) -> (exit status, what was printed), in a process of its own."""
    return functools.partial(forks().run, "resume")


def state_of(folder):
    """Weights, optimizer, averages and best result that a finished run holds."""
    with np.load(folder / "checkpoint" / "latest.npz") as stored:
        arrays = {name: stored[name] for name in stored.files if name != "words"}
    return arrays, (folder / "detections.json").read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    shapes.build(folder / "train", count=24, seed=0, size_hw=(96, 128))
    shapes.build(folder / "val", count=6, seed=1, size_hw=(96, 128))
    return folder


@pytest.fixture(scope="module")
def whole(data, run, tmp_path_factory):
    """Function of a variant: the state of a run that nobody disturbed."""

    @functools.cache
    def undisturbed(variant):
        folder = tmp_path_factory.mktemp("whole") / "run"
        code, said = run(data, folder, MODEL=variant)
        assert code == 0, said
        return state_of(folder)

    return undisturbed


def assert_ends_alike(run, data, folder, whole, variant, kills):
    for moment, number in kills:
        code, said = run(data, folder, moment, number, MODEL=variant)
        assert code == KILLED, said
    code, said = run(data, folder, MODEL=variant)
    assert code == 0, said
    whole, (arrays, detections) = whole(variant), state_of(folder)
    assert arrays.keys() == whole[0].keys() and len(arrays) > 100
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, whole[0][name], err_msg=name)
    assert detections == whole[1]
    assert not list((folder / "checkpoint").glob(".*"))  # what the dead left is cleared away


def test_resume_after_a_kill_in_a_checkpoint_and_after_a_step(run, data, whole, tmp_path):
    kills = [("while a checkpoint is written", 2), ("after a step", 3)]
    assert_ends_alike(run, data, tmp_path / "run", whole, "retinanet", kills)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_resume_after_a_kill_at_a_random_moment(run, data, whole, tmp_path, moment):
    rng = np.random.default_rng(list(MOMENTS).index(moment))
    often = STEPS if moment == "after a step" else 2
    kills = [(moment, int(rng.integers(1, often + 1)))]
    assert_ends_alike(run, data, tmp_path / "run", whole, "two_stage", kills)

"""One replica and two, with the same global batches, reach the same weights."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.tensorflow
HERE = pathlib.Path(__file__).parent


SLOW = ["centernet2", "fcos", "atss", "gfl", "retinanet", "atss_pss", "defcn"]


@pytest.mark.parametrize(
    "variant", ["two_stage", *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_two_replicas_train_as_one(variant):
    """Every loss term divides by the objects of the whole batch, sampling follows the picture, norms see all.

    In a process of its own, because the devices of TensorFlow are fixed once it has started.
    """
    environment = os.environ | {
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
    }
    command = [sys.executable, str(HERE / "replicas_program.py"), variant]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights, terms, moved = map(float, done.stdout.split()[-3:])
    assert moved > 0.5  # of the tensors, or there was nothing to compare
    assert weights < 1e-3  # of the way that each went
    assert terms < 1e-5

"""One replica and two, with the same global batches, reach the same weights."""

import pytest
from support.programs import run

pytestmark = pytest.mark.tensorflow


SLOW = ["centernet2", "fcos", "atss", "gfl", "retinanet", "atss_pss", "defcn", "condinst_pss", "mask_rcnn"]


@pytest.mark.parametrize(
    "case",
    [
        ["two_stage"],
        *(pytest.param([one], marks=pytest.mark.slow) for one in SLOW),
        ["two_stage", "micro"],
        pytest.param(["two_stage", "remat"], marks=pytest.mark.slow),
        pytest.param(["centernet2", "micro", "remat"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_two_replicas_train_as_one(case):
    """Loss terms divide by the objects of the whole batch, sampling follows the picture, norms see all."""
    weights, terms, moved = map(float, run("replicas", *case).split()[-3:])
    assert moved > (0.3 if "micro" in case else 0.5)  # of the tensors, or there was nothing to compare
    assert weights < 1e-3  # of the way that each went
    assert terms < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["sync_bn", "bn"])
def test_averages_on_two_replicas(norm):
    """Those of one replica, statistics of norms included; computed by hand they are the same."""
    assert run("averages", norm).splitlines()[-1] == "averages agree"


@pytest.mark.slow
def test_float16_on_two_replicas():
    """What overflows on one replica is left out on both."""
    assert run("overflow").splitlines()[-1] == "left out on both"

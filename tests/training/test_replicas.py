"""One replica and two, with the same global batches, reach the same weights."""

import pytest
from support.programs import run

pytestmark = pytest.mark.tensorflow


SLOW = ["retinanet", "centernet2", "fcos", "atss", "gfl", "atss_pss", "defcn", "condinst_pss", "mask_rcnn"]


@pytest.mark.parametrize(
    "cases",
    [
        "two_stage , retinanet micro",  # RoIs sampled by step and image; a normaliser that remembers
        pytest.param(" , ".join(SLOW), marks=pytest.mark.slow),
        pytest.param("two_stage remat , two_stage micro , centernet2 micro remat", marks=pytest.mark.slow),
    ],
)
def test_two_replicas_equal_one(cases):
    """Loss terms divide by the objects of all replicas; sampling and norms see the whole batch."""
    cases = cases.split(" , ")
    lines = run("replicas", *cases).splitlines()[-len(cases) :]
    for case, line in zip(cases, lines, strict=True):
        weights, terms, moved = map(float, line.split())
        assert moved > (0.3 if "micro" in case else 0.5), (
            case
        )  # of the tensors, or there is nothing to compare
        assert weights < 1e-3, case  # of the way that each went
        assert terms < 1e-5, case


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["sync_bn", "bn"])
def test_ema_on_two_replicas(norm):
    """Those of one replica, statistics of norms included; computed by hand they are the same."""
    assert run("averages", norm).splitlines()[-1] == "averages agree"


@pytest.mark.slow
def test_float16_on_two_replicas():
    """What overflows on one replica is left out on both."""
    assert run("overflow").splitlines()[-1] == "left out on both"

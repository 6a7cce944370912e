"""Training diagnostics: which reports lead to which warning."""

import pytest

from kgarden.training.diagnostics import Diagnostics


def warnings_of(losses, norms=None, every=20, **settings):
    """Returns [(step, warning), ...] for reports of these losses, one every 20 steps."""
    norms = norms or [1.0] * len(losses)
    diagnostics, found = Diagnostics(**settings), []
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        step = number * every
        found += [(step, sentence) for sentence in diagnostics.add(step, loss, norm, traces=1)]
    return found


def test_a_healthy_training_gives_no_warning():
    assert warnings_of([3.0 * 0.95**n for n in range(50)], [5.0 * 0.97**n for n in range(50)]) == []


def test_a_plateau_after_a_fall_gives_no_warning():
    assert warnings_of([3.0, 2.5, 2.2, *[1.0] * 40]) == []


@pytest.mark.parametrize("warmup, step", [(0, 200), (100, 300)])
def test_a_loss_that_does_not_fall(warmup, step):
    [(when, sentence)] = warnings_of([3.2, 3.3, 3.1] * 20, warmup=warmup)
    assert when == step
    assert "does not fall: 3.2 at the beginning, 3.2 at step" in sentence


def test_a_loss_that_falls_late_gives_no_warning():
    assert warnings_of([3.0] * 7 + [2.0] * 30) == []


def test_the_loss_of_trained_weights_need_not_fall():
    assert warnings_of([3.0] * 40, trained=True) == []


def test_a_loss_that_rises():
    [(step, sentence)] = warnings_of([4.0, 2.0, 1.0, 1.1, 3.5, 9.0, 20.0])
    assert step == 5 * 20
    assert "the loss rises: 3.5 at step 100, the minimum was 1" in sentence


def test_a_loss_may_rise_during_warm_up():
    assert warnings_of([1.0, 1.0, 1.0, 1.0, 3.5, 0.9], warmup=100) == []


@pytest.mark.parametrize("clips", [True, False])
def test_exploding_gradients(clips):
    [(step, sentence)] = warnings_of([1.0] * 7, [2.0, 3.0, 2.0, 2.5, 700.0, 3.0, 900.0], clips=clips)
    assert step == 100
    assert "its norm is 700 at step 100, the median is 2.25" in sentence
    assert ("clip_norm" in sentence) is not clips


def test_repeated_tracing():
    diagnostics = Diagnostics(canvases=2)
    assert diagnostics.add(20, 1.0, traces=1) == diagnostics.add(40, 1.0, traces=2) == []
    [sentence] = diagnostics.add(60, 1.0, traces=3)
    assert "traced 3 times for 2 canvases" in sentence
    assert diagnostics.add(80, 1.0, traces=4) == []  # given once


def test_a_resumed_run_takes_earlier_reports_into_account():
    early = [{"step": 20 * n, "loss": 3.0, "gradient_norm": 1.0, "lr": 0.1} for n in range(1, 6)]
    diagnostics = Diagnostics(reports=early)
    late = [diagnostics.add(20 * n, 0.5, 1.0) for n in range(6, 40)]
    assert not any(late)

"""Numbers of a training in words."""

import pytest

from kgarden.training.diagnostics import Diagnosis


def told(losses, norms=None, every=20, **settings):
    """[(step, sentence), ...] for reports of these losses, one every 20 steps."""
    norms = norms or [1.0] * len(losses)
    diagnosis, found = Diagnosis(**settings), []
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        step = number * every
        found += [(step, sentence) for sentence in diagnosis.add(step, loss, norm, traces=1)]
    return found


def test_a_training_that_goes_well_is_left_alone():
    assert told([3.0 * 0.95**n for n in range(50)], [5.0 * 0.97**n for n in range(50)]) == []


def test_a_loss_on_its_plateau_has_fallen():
    assert told([3.0, 2.5, 2.2, *[1.0] * 40]) == []


@pytest.mark.parametrize("warmup, step", [(0, 200), (100, 300)])
def test_a_loss_that_does_not_fall(warmup, step):
    [(when, sentence)] = told([3.2, 3.3, 3.1] * 20, warmup=warmup)
    assert when == step
    assert "does not fall: 3.2 when training began, 3.2 now" in sentence


def test_a_loss_that_falls_late_is_waited_for():
    assert told([3.0] * 7 + [2.0] * 30) == []


def test_what_was_trained_before_need_not_fall():
    assert told([3.0] * 40, trained=True) == []


def test_a_loss_that_rises():
    [(step, sentence)] = told([4.0, 2.0, 1.0, 1.1, 3.5, 9.0, 20.0])
    assert step == 5 * 20
    assert "the loss rises: 3.5 at step 100, it has been 1" in sentence


def test_a_loss_may_jump_while_the_rate_warms_up():
    assert told([1.0, 1.0, 1.0, 1.0, 3.5, 0.9], warmup=100) == []


@pytest.mark.parametrize("clips", [True, False])
def test_gradients_that_explode(clips):
    [(step, sentence)] = told([1.0] * 7, [2.0, 3.0, 2.0, 2.5, 700.0, 3.0, 900.0], clips=clips)
    assert step == 100
    assert "its norm is 700 at step 100, usually 2.25" in sentence
    assert ("clip_norm" in sentence) is not clips


def test_a_step_that_is_traced_again_and_again():
    diagnosis = Diagnosis(canvases=2)
    assert diagnosis.add(20, 1.0, traces=1) == diagnosis.add(40, 1.0, traces=2) == []
    [sentence] = diagnosis.add(60, 1.0, traces=3)
    assert "traced 3 times for 2 canvases" in sentence
    assert diagnosis.add(80, 1.0, traces=4) == []  # said once


def test_a_run_that_goes_on_remembers_how_it_began():
    early = [{"step": 20 * n, "loss": 3.0, "gradient_norm": 1.0, "lr": 0.1} for n in range(1, 6)]
    diagnosis = Diagnosis(reports=early)
    late = [diagnosis.add(20 * n, 0.5, 1.0) for n in range(6, 40)]
    assert not any(late)

"""The progress line: what fits is whole, what matters most is kept longest."""

import io
import re

from rich.console import Console

from kgarden.training.progress_line import ProgressLine, duration, fitted, fitted_terms
from kgarden.training.reporter import Reporter

TERMS = {"loss": 2.6137447, "rpn/objectness": 0.69271594, "rpn/box": 0.010401437, "roi/class": 1.8970876}
VALUES = dict(rate=0.0025, seconds=3.7, images_per_s=34.342, waiting=0.031, seconds_left=4325.0)
WHOLE = "step 1240/9000  ETA 1:12:05  34.3 images/s  wait 3 %  loss 2.614  lr 0.0025"
WHOLE_TERMS = "rpn objectness 0.693 box 0.0104 · roi class 1.9"


def shown(width, **more):
    """The lines of the progress line at a width, as a terminal gets them."""
    reporter = Reporter(Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None))
    reporter.start(9000, 1200)
    try:
        reporter.values(1240, TERMS, **{**VALUES, **more})
        console = Console(file=io.StringIO(), width=width)
        console.print(reporter.progress)
    finally:
        reporter.stop()
    return console.file.getvalue().splitlines()


def test_what_fits_is_whole_and_in_order():
    first, second = shown(140)
    line, _, bar = first.rpartition("  ")
    assert (line, second) == (WHOLE, WHOLE_TERMS)
    assert set(bar) == {"━", "╌"} and len(bar) == 40 and bar.count("━") == round(40 * 1240 / 9000)
    assert shown(80) == [WHOLE, WHOLE_TERMS]
    assert shown(60) == [WHOLE.replace("  wait 3 %", "").replace("  lr 0.0025", ""), WHOLE_TERMS]
    assert shown(40) == ["step 1240/9000  ETA 1:12:05  loss 2.614", "rpn objectness 0.693 box 0.0104 …"]
    assert shown(30) == ["step 1240/9000  loss 2.614", "rpn objectness 0.693 …"]
    assert shown(84, warming_up=True)[0] == WHOLE
    assert shown(86, warming_up=True)[0] == WHOLE + "  (warm-up)"
    compiled = shown(140, compiled=True, seconds_left=float("inf"))[0]
    assert compiled.startswith("step 1240/9000  ETA ?  0:04 with compilation  wait 3 %  loss 2.614  lr")


def test_no_number_or_word_is_cut():
    words = set(WHOLE.split()) | set(WHOLE_TERMS.split()) | {"…"}
    for width in range(1, 150):
        lines = shown(width)
        assert all(len(line) <= width for line in lines)
        assert all(word in words or set(word) <= {"━", "╌"} for line in lines for word in line.split())
        for figure in ("ETA", "loss", "lr", "wait"):  # a name comes with its number
            assert all(re.search(rf"{figure} \d", line) for line in lines if figure in line.split())


def test_phases_are_named_with_their_time():
    now = [100.0]
    progress = ProgressLine(9000, 40, clock=lambda: now[0])
    progress.enter("compiling the training step …")
    now[0] += 65
    assert progress.lines(80) == ["step 40/9000  compiling the training step …  1:05"]
    assert progress.lines(32) == ["step 40/9000"]
    progress.enter(None)
    assert progress.lines(80)[0].startswith("step 40/9000  ╌")


def test_evaluations_are_counted_on_a_terminal_and_told_now_and_then_elsewhere(monkeypatch):
    reporter = Reporter(Console(file=io.StringIO(), force_terminal=True, width=80))
    reporter.start(9000)
    assert "compiling" in reporter.progress.lines(80)[0]
    with reporter.evaluating(360) as show:
        show(120)
        assert reporter.progress.lines(80)[0].startswith("step 0/9000  evaluating 120 of 360 images  0:00")
    assert reporter.progress.phase is None and reporter.live is not None
    reporter.stop()
    with reporter.evaluating(None) as show:  # after the training, with a line of its own
        show(8)
        assert reporter.live is not None and "evaluating 8 images" in reporter.progress.lines(80)[0]
    assert reporter.live is None

    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr("kgarden.training.reporter.time.monotonic", lambda: now[0])
    reporter = Reporter(Console(file=out, width=40))
    reporter.start(9000)
    with reporter.evaluating(360) as show:
        for done, now[0] in ((40, 1.0), (80, 61.0), (120, 62.0), (160, 121.5)):
            show(done)
    assert out.getvalue() == "evaluating 80 of 360 images\nevaluating 160 of 360 images\n"


def test_pipes_get_whole_lines():
    """Whatever the width: every term by its full name."""
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=40))
    reporter.start(9000)
    reporter.values(1240, TERMS, **VALUES)
    assert out.getvalue() == (
        "step 1240/9000  ETA 1:12:05  34.3 images/s  waiting for data 3 %  loss 2.614  "
        "rpn/objectness 0.6927  rpn/box 0.0104  roi/class 1.897  lr 0.0025\n"
    )


def test_parts_by_hand():
    ranked = [(0, "aaaa"), (2, "bbb"), (1, "cc")]
    assert fitted(ranked, 13) == "aaaa  bbb  cc" and fitted(ranked, 12) == "aaaa  cc"
    assert fitted(ranked, 8) == "aaaa  cc" and fitted(ranked, 7) == "aaaa" and fitted(ranked, 3) == ""
    terms = {"cls": 0.25, "stage0/box": 1.0, "stage0/class": 2.0}
    whole = "cls 0.25 · stage0 box 1 class 2"
    assert fitted_terms(terms, len(whole)) == whole
    assert fitted_terms(terms, len(whole) - 1) == "cls 0.25 · stage0 box 1 …"
    assert fitted_terms(terms, len("cls 0.25 · stage0 box 1 …") - 1) == "cls 0.25 …"
    assert fitted_terms(terms, 7) == "" and fitted_terms({}, 80) == ""
    assert [duration(s) for s in (59.6, 725, 11525, float("nan"))] == ["1:00", "12:05", "3:12:05", "?"]


def test_outside_of_a_training_there_are_no_steps():
    progress = ProgressLine(0, clock=lambda: 0.0)
    progress.enter("evaluating 8 images")
    assert progress.lines(80) == ["evaluating 8 images  0:00"]

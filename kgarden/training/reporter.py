"""Training reporter: a progress line on a terminal, plain lines in pipes, files and notebooks."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live

from kgarden.metrics.tables import evaluation_tables, summary
from kgarden.training.progress_line import ProgressLine, duration
from kgarden.utils.text import printable

COMPILING = "compiling the training step …"
SECONDS_BETWEEN_LINES = 60  # of a long evaluation without a terminal


class Reporter:
    """Prints progress, losses and evaluations of a training.

    Args:
        console: rich.console.Console; None: standard output.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self.progress = self.live = None
        self.notes = []

    def note(self, text: str) -> None:
        """Prints a line that the end of the training should repeat, and keeps it in `notes`."""
        self.notes.append(text)
        self.line(text)

    def line(self, text: str) -> None:
        """Prints a line, above the progress line if there is one."""
        self.console.print(printable(text, newlines=True), markup=False, soft_wrap=True)

    def start(self, total: int, done: int = 0) -> None:
        """Starts a training of `total` steps, on a terminal with a progress line; the first step compiles."""
        self.total = total
        self.progress = ProgressLine(total, done)
        self.progress.enter(COMPILING)
        self._show()

    def _show(self):
        if self.console.is_terminal and self.live is None:
            self.live = Live(self.progress, console=self.console, transient=True)
            self.live.start()

    def advance(self, step: int) -> None:
        """Moves the progress line to a step."""
        if self.progress:
            self.progress.step = step
            self.progress.enter(None)

    def values(
        self,
        step: int,
        terms: dict[str, float],
        rate: float,
        seconds: float,
        images_per_s: float,
        waiting: float,
        seconds_left: float,
        compiled: bool = False,
        warming_up: bool = False,
    ) -> None:
        """Prints the metrics of the last steps.

        Args:
            step:         the last one.
            terms:        {name: mean since the last call}, "loss" first.
            rate:         learning rate.
            seconds:      since the last call.
            images_per_s: throughput.
            waiting:      fraction of the time spent waiting for data, 0..1.
            seconds_left: estimated time to the end of the training; inf: unknown.
            compiled:     whether a step was compiled in that time, so that it says nothing about throughput.
            warming_up:   whether the learning rate is still in its warm-up.
        """
        loss = f"loss {terms['loss']:.4g}"
        others = {name: value for name, value in terms.items() if name != "loss"}
        of_rate, stage = f"lr {rate:.3g}", ["(warm-up)"] if warming_up else []
        speed = f"{duration(seconds)} with compilation" if compiled else f"{images_per_s:.1f} images/s"
        left = f"ETA {duration(seconds_left)}"
        if self.live:
            wait = f"wait {100 * waiting:.0f} %"
            ranked = [(2, left), (3, speed), (4, wait), (1, loss), (5, of_rate)]
            self.progress.figures = ranked + [(6, one) for one in stage]
            self.progress.terms = others
            self.advance(step)
            return
        wait = f"waiting for data {100 * waiting:.0f} %"
        each = [f"{name} {value:.4g}" for name, value in others.items()]
        self.line("  ".join([f"step {step}/{self.total}", left, speed, wait, loss, *each, of_rate, *stage]))

    @contextlib.contextmanager
    def evaluating(self, total: int | None) -> Iterator[Callable[[int], None]]:
        """Yields a function of the number of images evaluated so far, which shows them.

        On a terminal they replace the figures of the progress line; elsewhere there is a line now and then.

        Args:
            total: number of images; None: unknown.
        """
        of_total = f" of {total}" if total else ""
        told = time.monotonic()
        starts = self.live is None
        self.progress = self.progress or ProgressLine(0)

        def show(done):
            nonlocal told
            text = f"evaluating {done}{of_total} images"
            if self.live:
                self.progress.phase = text
            elif time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self.line(text)

        self.progress.enter("evaluating")
        self._show()
        show(0)
        try:
            yield show
        finally:
            self.progress.enter(None)
            if starts:
                self.stop()

    def stop(self) -> None:
        """Removes the progress line."""
        if self.live:
            self.live.stop()
            self.live = None

    def evaluation(self, evaluation: dict) -> None:
        """Prints metric tables in percent, and the explanation of a near-zero headline metric."""
        self.console.print(*evaluation_tables(evaluation), sep="\n")
        if "not_judged" in (masks := evaluation.get("masks", {})):
            self.line(f"masks were not evaluated: {masks['not_judged']}")
        for sentence in evaluation.get("limits", []):
            self.line(f"limit: {sentence}")
        self.explanation(evaluation)

    def explanation(self, evaluation: dict) -> None:
        """Prints the explanation of a near-zero headline metric, if there is one."""
        for sentence in evaluation.get("explanation", []):
            self.line(f"why: {sentence}")

    def interval(self, step: int, evaluation: dict, best: float | None, best_step: int | None) -> None:
        """Prints one line for an evaluation during training.

        Args:
            step:       the current one.
            evaluation: as in `kgarden.evaluation.evaluate`.
            best:       best headline metric so far, including this one; None if nothing could be measured.
            best_step:  the step of the weights kept as the best; None if none could be saved.
        """
        images = f"on {evaluation['images']} images"
        verdict = _verdict(step, evaluation, best, best_step=best_step)
        self.line(f"step {step}/{self.total}  {summary(evaluation)}  {images}, {verdict}")
        self.explanation(evaluation)


def _verdict(step, evaluation, best, best_step):
    """States which weights are the best so far; without a measurement there are none."""
    if best_step is None:
        return "no weights saved yet"
    if best is None:
        return f"not measured, so nothing can be compared; the weights of step {best_step} are kept"
    if best_step == step:
        return "best so far"
    missing = "" if evaluation["metrics"][evaluation["headline"]] is not None else "not measured; "
    return f"{missing}best {best:.1f} at step {best_step}"

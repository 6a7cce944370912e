"""Training reporter: a progress bar on a terminal, plain lines elsewhere."""

import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kgarden.metrics.tables import evaluation_tables, summary
from kgarden.utils.text import printable


class Reporter:
    """Prints progress, losses and evaluations of a training.

    Args:
        console: rich.console.Console; None: standard output.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self.bar = self.task = None
        self.notes = []

    def note(self, text: str) -> None:
        """Prints a line that the end of the training should repeat, and keeps it in `notes`."""
        self.notes.append(text)
        self.line(text)

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(printable(text, newlines=True), markup=False, soft_wrap=True)

    def start(self, total: int, done: int = 0) -> None:
        """Starts a training of `total` steps; on a terminal with a bar."""
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("starting", total=total, completed=done)
            self.bar.start()
        self.total = total

    def advance(self, step: int) -> None:
        """Moves the bar to a step."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def values(
        self,
        step: int,
        terms: dict[str, float],
        rate: float,
        images_per_s: float,
        waiting: float,
        seconds_left: float,
    ) -> None:
        """Prints the metrics of the last steps.

        Args:
            step:         the last one.
            terms:        {name: mean since the last call}, "loss" first.
            rate:         learning rate.
            images_per_s: throughput.
            waiting:      fraction of the time spent waiting for data, 0..1.
            seconds_left: estimated time to the end of the training.
        """
        text = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        text += f"  lr {rate:.3g}  {images_per_s:.1f} images/s  waiting for data {100 * waiting:.0f} %"
        text += f"  {duration(seconds_left)} left"
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        else:
            self.line(f"step {step}/{self.total}  {text}")

    def stop(self) -> None:
        """Removes the bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None

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


def duration(seconds: float) -> str:
    """Formats seconds as 12:05 or 3:12:05; "?" if they are not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

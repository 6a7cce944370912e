"""What a training shows: a progress bar on a terminal, plain lines elsewhere."""

import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kgarden.metrics.tables import evaluation_tables, summary


class Reporter:
    """Tells a person how far a work is.

    Args:
        console: rich.console.Console; None: standard output.
    """

    def __init__(self, console=None):
        self.console = console or Console(highlight=False)
        self.bar = self.task = None

    def line(self, text):
        """One line of its own, above the bar if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, total, done=0):
        """A work of `total` steps begins; on a terminal it has a bar."""
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

    def advance(self, step):
        if self.bar:
            self.bar.update(self.task, completed=step)

    def values(self, step, terms, rate, images_per_s, waiting, seconds_left):
        """Numbers of the last steps.

        Args:
            terms:        {name: mean since the last call}, "loss" first.
            rate:         learning rate.
            waiting:      share of the time spent waiting for data, 0..1.
            seconds_left: of training.
        """
        text = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        text += f"  lr {rate:.3g}  {images_per_s:.1f} images/s  waiting for data {100 * waiting:.0f} %"
        text += f"  {duration(seconds_left)} left"
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        else:
            self.line(f"step {step}/{self.total}  {text}")

    def stop(self):
        if self.bar:
            self.bar.stop()
            self.bar = None

    def evaluation(self, evaluation):
        """The tables of numbers, in percent, and the cause where the first is nearly nothing."""
        self.console.print(*evaluation_tables(evaluation), sep="\n")
        if "not_judged" in (masks := evaluation.get("masks", {})):
            self.line(f"masks were not judged: {masks['not_judged']}")
        self.explanation(evaluation)

    def explanation(self, evaluation):
        """Why the headline is nearly nothing, if that was asked."""
        for sentence in evaluation.get("explanation", []):
            self.line(f"why: {sentence}")

    def interval(self, step, evaluation, best, best_step):
        """One line for an evaluation between two steps.

        Args:
            best, best_step: the best headline so far, this one included, and when it was reached; None
                where no weights could be kept.
        """
        verdict = f"best {best:.1f} at {best_step}" if best is not None else "no weights kept yet"
        verdict = "the best so far" if best_step == step else verdict
        pictures = f"on {evaluation['images']} pictures"
        self.line(f"step {step}/{self.total}  {summary(evaluation)}  {pictures}, {verdict}")
        self.explanation(evaluation)


def duration(seconds):
    """12:05 or 3:12:05; "?" for what is not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

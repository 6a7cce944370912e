"""Progress of a training, fitted to the width of a terminal: whole figures, the most important ones first.

step 1240/9000  ETA 1:12:05  34.3 images/s  wait 3 %  loss 0.617  lr 0.0025
rpn objectness 0.0931 box 0.0104 · roi class 0.321 box 0.193
"""

import math
import time
from collections.abc import Sequence

from rich.text import Text

GAP, GROUP_GAP, MORE = "  ", " · ", " …"
LEAST_BAR, MOST_BAR = 8, 40  # columns


class ProgressLine:
    """Renderable of rich.live.Live with the state of a training; read by the thread that refreshes it.

    Args:
        total: number of steps; 0 outside of a training.
        step:  the steps that are done.
        clock: seconds of a monotonic clock.
    """

    def __init__(self, total: int, step: int = 0, clock=time.monotonic):
        self.total, self.step, self._clock = total, step, clock
        self.phase, self._since = None, 0.0
        self.figures, self.terms = [], {}  # (rank, text), ... as in `fitted`; loss terms

    def enter(self, phase: str | None) -> None:
        """Names what is done, such as "compiling …", and starts its time; None: steps."""
        self.phase, self._since = phase, self._clock()

    def lines(self, width: int) -> list[str]:
        """Returns one or two lines of at most `width` characters."""
        step = (0, f"step {self.step}/{self.total}")
        if self.phase:
            phase = [(1, self.phase), (2, duration(self._clock() - self._since))]
            return [fitted([step, *phase] if self.total else phase, width)]
        first = fitted([step, *self.figures], width)
        terms = fitted_terms(self.terms, width)
        return [first + self._bar(width - len(first)), *([terms] if terms else [])]

    def _bar(self, room):
        columns = min(room - len(GAP), MOST_BAR)
        if columns < LEAST_BAR:
            return ""
        done = round(columns * self.step / max(self.total, 1))
        return GAP + "━" * done + "╌" * (columns - done)

    def __rich_console__(self, console, options):
        for line in self.lines(options.max_width):
            yield Text(line, no_wrap=True, overflow="crop")


def fitted(ranked: Sequence[tuple[int, str]], width: int) -> str:
    """Joins texts in their order, without those of the highest ranks as long as they do not fit.

    Args:
        ranked: (rank, text), ...; no text is cut.
        width:  number of characters.
    """
    for most in sorted({rank for rank, _ in ranked}, reverse=True):
        line = GAP.join(text for rank, text in ranked if rank <= most)
        if len(line) <= width:
            return line
    return ""


def fitted_terms(terms: dict[str, float], width: int) -> str:
    """Returns loss terms as "rpn objectness 0.693 box 0.0104 · roi class 1.9", with an ellipsis for the rest.

    Args:
        terms: {"rpn/objectness": value, ...}.
        width: number of characters.
    """
    line, group = "", None
    for number, (name, value) in enumerate(terms.items(), start=1):
        prefix, _, last = name.rpartition("/")
        text = f"{last} {value:.3g}"
        if prefix != group:
            text = (GROUP_GAP if line else "") + f"{prefix} {text}".lstrip()
        else:
            text = f" {text}"
        if len(line + text) + (len(MORE) if number < len(terms) else 0) > width:
            return line + MORE if line else ""
        line, group = line + text, prefix
    return line


def duration(seconds: float) -> str:
    """Formats seconds as 12:05 or 3:12:05; "?" if they are not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

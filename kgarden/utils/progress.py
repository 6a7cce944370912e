"""Progress of a long task: a bar on a terminal, a line at every tenth elsewhere."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@contextlib.contextmanager
def progress_of(things: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that shows the progress.

    Args:
        things:  what is counted, for example "images converted".
        console: rich.console.Console; None: standard output.
    """
    console = console or Console(highlight=False)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.completed}/{task.total} " + things), BarColumn(), console=console
        ) as bar:
            task = bar.add_task(things)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenth = -1

    def print_tenth(done, total):
        nonlocal tenth
        if 10 * done // max(total, 1) > tenth:
            tenth = 10 * done // max(total, 1)
            console.print(f"{done}/{total} {things}")

    yield print_tenth

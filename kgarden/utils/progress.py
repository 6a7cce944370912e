"""Progress of long work: a bar on a terminal, a line every tenth elsewhere."""

import contextlib

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@contextlib.contextmanager
def progress_of(things, console=None):
    """A function of (done, total) that shows a bar on a terminal, and a line every tenth elsewhere."""
    console = console or Console(highlight=False)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.completed}/{task.total} " + things), BarColumn(), console=console
        ) as bar:
            task = bar.add_task(things)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenth = -1

    def tell(done, total):
        nonlocal tenth
        if 10 * done // max(total, 1) > tenth:
            tenth = 10 * done // max(total, 1)
            console.print(f"{done}/{total} {things}")

    yield tell

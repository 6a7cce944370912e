"""Graceful interrupts: Ctrl-C and SIGTERM ask a training to stop instead of ending it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def graceful_interrupts(request_stop: Callable[[], object]) -> Iterator[None]:
    """Calls `request_stop` on Ctrl-C or SIGTERM; a second signal ends the process as usual.

    Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number, frame):
        request_stop()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

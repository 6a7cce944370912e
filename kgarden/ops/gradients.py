"""Custom gradients that a prediction does without.

TensorFlow registers every custom gradient of a graph for the life of the process, and with it the graph. A
process that builds many prediction graphs, one for each evaluation of a run, would keep them all.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

from keras import ops

_STATE = threading.local()


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Traces what is inside without custom gradients: for predictions."""
    before = getattr(_STATE, "off", False)
    _STATE.off = True
    try:
        yield
    finally:
        _STATE.off = before


def custom_gradient(function: Callable) -> Callable:
    """As `keras.ops.custom_gradient`; inside of `without_gradients` the value alone.

    Args:
        function: of tensors, returns (value, function of the upstream gradient).
    """
    with_gradient = ops.custom_gradient(function)

    @functools.wraps(function)
    def chosen(*arguments):
        return function(*arguments)[0] if getattr(_STATE, "off", False) else with_gradient(*arguments)

    return chosen

"""Timing and memory measurement."""

import pathlib
import re
import resource
import time
from collections.abc import Callable

import keras
import numpy as np


def compiled(function: Callable, *arguments) -> Callable[[], object]:
    """Compiles a call with the backend; the returned function blocks until the result is computed.

    Tensors are arguments and not constants of the graph, which a compiler would fold.
    """
    if keras.backend.backend() == "jax":
        import jax

        jitted = jax.jit(lambda *tensors: function(*tensors))
        return lambda: jax.block_until_ready(jitted(*arguments))
    import tensorflow as tf

    graph = tf.function(lambda *tensors: function(*tensors), autograph=False)
    return lambda: [tensor.numpy() for tensor in tf.nest.flatten(graph(*arguments))]


def median(function: Callable, repeats: int) -> float:
    """Returns the median seconds of a function."""
    return interleaved_medians({"one": function}, repeats)["one"]


def interleaved_medians(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Returns median seconds, interleaved, so that background load affects all of them equally."""
    return {name: float(np.median(seconds)) for name, seconds in rounds(functions, repeats).items()}


def rounds(functions: dict[str, Callable], repeats: int) -> dict[str, np.ndarray]:
    """Times each function once per round, after a warm-up round.   {name: (repeats,) seconds}"""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(ratios: np.ndarray) -> list[float]:
    """Returns the three quartiles of the rounds' ratios."""
    return [round(float(one), 3) for one in np.quantile(ratios, [0.25, 0.5, 0.75])]


def peak_memory() -> float:
    """Returns the largest resident size of this process so far, GiB."""
    # `ru_maxrss` begins with that of the parent process; /proc does not.
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / 2**20, 2)


def resident_memory() -> float:
    """Returns the current resident size of this process, MiB; without /proc, the largest so far."""
    status = pathlib.Path("/proc/self/statm")
    if not status.is_file():
        return round(1024 * peak_memory(), 1)
    return round(int(status.read_text().split()[1]) * resource.getpagesize() / 2**20, 1)

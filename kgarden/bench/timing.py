"""Seconds and memory."""

import pathlib
import resource
import time

import keras
import numpy as np


def compiled(function, *arguments):
    """The call compiled as the backend does it; it returns when the work is done.

    Tensors are arguments and not constants of the graph, which a compiler would compute beforehand.
    """
    if keras.backend.backend() == "jax":
        import jax

        jitted = jax.jit(lambda *tensors: function(*tensors))
        return lambda: jax.block_until_ready(jitted(*arguments))
    import tensorflow as tf

    graph = tf.function(lambda *tensors: function(*tensors))
    return lambda: [tensor.numpy() for tensor in tf.nest.flatten(graph(*arguments))]


def median(function, repeats):
    return alternate({"one": function}, repeats)["one"]


def alternate(functions, repeats):
    """Median seconds of each, run in turn so that a machine's moods meet all alike."""
    return {name: float(np.median(seconds)) for name, seconds in rounds(functions, repeats).items()}


def rounds(functions, repeats):
    """Seconds of each in every round, after one that is not counted.   dict name -> (repeats,)."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def quartiles(ratios):
    """Of the rounds' ratios.   list of three floats."""
    return [round(float(one), 3) for one in np.quantile(ratios, [0.25, 0.5, 0.75])]


def peak_memory():
    """Largest resident size of this process so far, GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def resident_memory():
    """Resident size of this process now, MiB; where the system does not say, the largest so far."""
    status = pathlib.Path("/proc/self/statm")
    if not status.is_file():
        return round(1024 * peak_memory(), 1)
    return round(int(status.read_text().split()[1]) * resource.getpagesize() / 2**20, 1)

"""Full-size models for tests of names and shapes: their variables exist, but hold nothing."""

import keras
import numpy as np


def unfilled(build):
    """What a function builds, with variables that have a path and a shape, and no values.

    Args:
        build: function without arguments.
    Returns:
        its result; initialisers, which take seconds for a model of full size, have not run.
    """
    with keras.StatelessScope(initialize_variables=False):
        return build()


def blank(shapes):
    """Arrays that occupy no memory.   {name: shape} -> {name: array of zeros, read-only}"""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

"""Full-size models for tests of names and shapes: their variables exist, but hold nothing."""

import keras
import numpy as np
from keras.src.backend.common import global_state

WAITING = "uninitialized_variables"


def unfilled(build):
    """What a function builds, with variables that have a path and a shape, and no values.

    Args:
        build: function without arguments.
    Returns:
        its result; initialisers, which take seconds for a model of full size, have not run.
    """
    # Keras fills all variables that wait for values when any other stateless scope ends: those of every
    # model of full size of a run, gigabytes. Those built here wait for none.
    waiting = list(global_state.get_global_attribute(WAITING, []))
    try:
        with keras.StatelessScope(initialize_variables=False):
            return build()
    finally:
        global_state.set_global_attribute(WAITING, waiting)


def blank(shapes):
    """Arrays that occupy no memory.   {name: shape} -> {name: array of zeros, read-only}"""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

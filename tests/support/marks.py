"""Marks for tests whose property one backend shows as well as two."""

import keras
import pytest

ON_JAX = keras.backend.backend() == "jax"
SLOW_ON_JAX = [pytest.mark.slow] * ON_JAX  # each case compiles for long there


def slow_on_jax(test):
    """Decorator: slow on JAX."""
    return pytest.mark.slow(test) if ON_JAX else test


def slow_on_jax_but(names, kept):
    """Parameters of a test, all but the kept ones slow on JAX."""
    return [pytest.param(one, marks=[] if one in kept else SLOW_ON_JAX) for one in names]

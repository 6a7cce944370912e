"""Weight initialisers of the reference implementations.

Functions, because a Keras initializer returns the same numbers at every call: each layer needs its own.
"""

import math

import keras


def normal(stddev):
    """Normal distribution with mean 0."""
    return keras.initializers.RandomNormal(stddev=stddev)


def xavier_fan_in():
    """Uniform with variance 1 / fan_in: kaiming-uniform with a = 1, "c2_xavier" in detectron2."""
    return keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")


def msra_fan_out():
    """N(0, sqrt(2 / fan_out)): "c2_msra" in detectron2.   He et al. 2015, arXiv:1502.01852, Eq. 14."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def prior_bias(probability=0.01):
    """Bias for an initial sigmoid output of `probability`.   Lin et al. 2017, arXiv:1708.02002, 4.1."""
    return keras.initializers.Constant(-math.log((1 - probability) / probability))

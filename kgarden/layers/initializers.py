"""Weight initialisers of the reference implementations.

Functions, because a Keras initializer returns the same numbers at every call: each layer needs its own.
"""

import math

import keras

from kgarden.errors import UserError


def normal(stddev):
    """Normal distribution with mean 0."""
    return keras.initializers.RandomNormal(stddev=stddev)


def xavier_fan_in():
    """Uniform with variance 1 / fan_in: kaiming-uniform with a = 1, "c2_xavier" in detectron2."""
    return keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")


def xavier():
    """Uniform with variance 2 / (fan_in + fan_out): mmdetection's.   Glorot and Bengio 2010, Eq. 16."""
    return keras.initializers.VarianceScaling(1.0, "fan_avg", "uniform")


def normal_fan_in():
    """Normal with variance 1 / fan_in: kaiming-normal with a = 1, of the TSD release."""
    return keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")


def torch_uniform():
    """Uniform with variance 1 / (3 fan_in): what PyTorch gives a convolution that nobody initialises."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in):
    """Uniform between -1 / sqrt(fan_in) and 1 / sqrt(fan_in): the bias beside `torch_uniform`."""
    limit = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-limit, limit)


def he_normal():
    """Truncated normal distribution with variance 2 / fan_in.   He et al. 2015, arXiv:1502.01852, Eq. 10."""
    return keras.initializers.HeNormal()


def he_uniform():
    """Uniform with variance 2 / fan_in: kaiming-uniform for ReLU, detectron2's for deformable kernels."""
    return keras.initializers.HeUniform()


def msra_fan_out():
    """N(0, sqrt(2 / fan_out)): "c2_msra" in detectron2.   He et al. 2015, arXiv:1502.01852, Eq. 14."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def prior_bias(probability=0.01):
    """Bias for an initial sigmoid output of `probability`.   Lin et al. 2017, arXiv:1708.02002, 4.1."""
    return keras.initializers.Constant(-math.log((1 - probability) / probability))


# As recipes name them.
BY_NAME = {"c2_xavier": xavier_fan_in, "normal_fan_in": normal_fan_in, "xavier": xavier}


def by_name(name, where):
    """A new initialiser of BY_NAME.

    Args:
        name:  its key.
        where: dotted key of the setting in the recipe, for messages.
    Raises:
        UserError: unknown name.
    """
    if name not in BY_NAME:
        raise UserError(f"{where} {name!r}: one of {', '.join(BY_NAME)}")
    return BY_NAME[name]()

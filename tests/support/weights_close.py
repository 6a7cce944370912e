"""How far two trainings are apart that should be one."""

import numpy as np


def beyond_rounding(a, b):
    """The largest difference of two weights, less the last digit of a float32, which threads may decide."""
    return np.maximum(np.abs(a - b) - np.spacing(np.abs(a).astype("float32")), 0).max()

"""Initialisers by name and by their laws; those of full-size models: tests/models/test_initial_values.py."""

import numpy as np
import pytest

from kgarden.errors import UserError
from kgarden.heads.fc_head import FCHead
from kgarden.layers.initializers import torch_bias, torch_uniform
from kgarden.layers.non_local import NonLocal
from kgarden.necks.fpn import FPN


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match="model.neck.initializer 'glorot': one of c2_xavier, normal_fan_in, xavier"
    ):
        FPN(initializer="glorot")
    with pytest.raises(
        UserError, match="model.roi_head.initializer 'glorot': one of c2_xavier, normal_fan_in, xavier"
    ):
        FCHead(initializer="glorot")
    with pytest.raises(UserError, match="non-local initializer 'glorot': one of normal, torch"):
        NonLocal(initializer="glorot")


def test_the_default_of_torch_has_one_limit_for_kernel_and_bias():
    fan_in = 3 * 3 * 16
    kernel = np.abs(torch_uniform()((3, 3, 16, 64)))
    bias = np.abs(torch_bias(fan_in)((5000,)))
    for values in (kernel, bias):
        assert 0.98 / np.sqrt(fan_in) < values.max() <= 1.0001 / np.sqrt(fan_in)

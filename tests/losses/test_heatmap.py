"""Focal loss of heatmaps by hand."""

import numpy as np
import pytest
from keras import ops

from kgarden.losses.heatmap import heatmap_focal_loss


@pytest.mark.parametrize(("ignore_above", "counts"), [(None, 1), (0.51, 1), (0.5, 0)])
def test_a_negative_at_the_limit_is_ignored(ignore_above, counts):
    """CenterNet2's `ignore_high_fp` keeps probabilities strictly below it."""
    logits, heat = np.zeros((1, 2, 1), "float32"), np.float32([[[1.0], [0.5]]])
    rows, valid = np.zeros((1, 1), "int32"), np.ones((1, 1), bool)
    of_positive, of_negative = heatmap_focal_loss(
        logits, heat, rows, positive_label=rows, positive_valid=valid, ignore_above=ignore_above
    )
    log_half = -np.log(0.5)
    assert float(ops.convert_to_numpy(of_positive)) == pytest.approx(0.25 * log_half * 0.5**2, rel=1e-5)
    expected = counts * 0.75 * log_half * 0.5**2 * 0.5**4
    assert float(ops.convert_to_numpy(of_negative)) == pytest.approx(expected, rel=1e-5)

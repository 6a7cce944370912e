"""Binned statistics, correlations and cosines against reference numbers and by hand."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, flattened_hwc, goldens, params

from kgarden.analyze.statistics import (
    BINS,
    BinnedMoments,
    Pearson,
    bin_of,
    by_distance,
    cosines_of_cells,
    off_diagonal,
    tiled,
)
from kgarden.heads.fc_head import FCHead

numpy = ops.convert_to_numpy


@pytest.mark.parametrize("golden", goldens("mmdet_double_head_analysis_own"), ids=str)
def test_statistics_agree_with_the_reference(golden):
    s = params(golden)
    assert s["bins"] == BINS and s["std"] == "population"
    features, width = golden["roi_feat"], len(golden["fc_b"])
    count, rows, columns, depth = features.shape
    head = FCHead(width, num_fcs=1)
    head.build((None, None, rows, columns, depth))
    assert s["fc_input_order"] == "flattened (channel, y, x)"
    head.layers[0].kernel.assign(flattened_hwc(golden.raw("fc_w").T, (depth, rows, columns)))
    head.layers[0].bias.assign(golden["fc_b"])
    cells = head.cells(features[None])
    weights = ops.reshape(head.weights_of_cells((rows, columns, depth)), (1, rows, columns, -1))
    got = {
        "fc_cell_out": numpy(cells),
        "fc_pre_act": numpy(ops.sum(cells, axis=(1, 2))) + golden["fc_b"],
        "fc_out_corr_mean": numpy(cosines_of_cells(cells)).mean(axis=0),
        "fc_weight_corr": numpy(cosines_of_cells(weights))[0],
        "conv_corr_mean": numpy(cosines_of_cells(ops.convert_to_tensor(golden["conv_feat"]))).mean(axis=0),
    }
    iou, score = golden["iou"], golden["score"]
    bins, correlation = BinnedMoments(), Pearson()
    for part in np.array_split(np.arange(len(iou)), 3):  # sums are streamed
        bins.add(bin_of(iou[part]), score[part])
        correlation.add(iou[part], score[part])
    got |= {"bin_index": bin_of(iou), "bin_count": bins.count, "pcc": correlation.r}
    got |= {"bin_mean": np.nan_to_num(bins.mean()), "bin_std": np.nan_to_num(bins.std())}
    assert_agrees(golden, got)


@pytest.mark.parametrize("num_convs", [0, 1])
def test_cells_and_bias_sum_to_the_pre_activation(num_convs):
    rng = np.random.default_rng(0)
    head = FCHead(5, num_fcs=1, num_convs=num_convs)
    head.build((None, None, 7, 7, 3))
    head.layers[0].bias.assign(rng.normal(size=5))
    features = rng.normal(size=(2, 4, 7, 7, 3)).astype("float32")
    cells = head.cells(features)
    assert cells.shape == (8, 7, 7, 5)
    sums = numpy(ops.sum(cells, axis=(1, 2))) + numpy(head.layers[0].bias)
    np.testing.assert_allclose(np.maximum(sums, 0).reshape(2, 4, 5), numpy(head(features)), atol=1e-5)
    # one cell alone: the contribution of its features
    only = features.copy()
    only[:, :, np.arange(7) != 2], only[:, :, 2, np.arange(7) != 5] = 0, 0
    if not num_convs:
        alone = numpy(ops.sum(head.cells(only), axis=(1, 2)))
        np.testing.assert_allclose(alone, numpy(cells)[:, 2, 5], atol=1e-5)


def test_bins_by_hand():
    iou = [0.0, 0.049, 0.05, 0.5, 0.5 - 1e-12, 0.999, 1.0]
    assert bin_of(iou).tolist() == [0, 0, 1, 10, 10, 19, 19]
    bins = BinnedMoments()
    bins.add(bin_of([0.0, 0.01, 1.0]), [1.0, 3.0, 5.0])
    assert bins.count[[0, 19]].tolist() == [2, 1] and bins.count.sum() == 3
    assert bins.mean()[[0, 19]].tolist() == [2.0, 5.0] and bins.std()[[0, 19]].tolist() == [1.0, 0.0]
    assert np.isnan(bins.mean()[1:19]).all() and np.isnan(bins.std()[1:19]).all()


def test_streaming_correlation_and_constant_values():
    rng = np.random.default_rng(3)
    x = rng.uniform(0.4, 0.6, 500)
    y = x + rng.normal(scale=0.05, size=500)
    one = Pearson()
    for part in np.array_split(np.arange(500), 7):
        one.add(x[part], y[part])
    assert one.r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12) and one.count == 500
    flat = Pearson()
    assert np.isnan(flat.r)
    flat.add([0.1, 0.2, 0.3], [0.7, 0.7, 0.7])
    assert np.isnan(flat.r)
    turned = Pearson()
    turned.add(x, 1 - x)
    assert turned.r == pytest.approx(-1)


def test_cosines_distances_and_tiles_by_hand():
    maps = np.zeros((1, 2, 2, 3), "float32")
    maps[0, 0, 0], maps[0, 0, 1], maps[0, 1, 0] = [1, 0, 0], [3, 4, 0], [0, 0, 2]
    cosines = numpy(cosines_of_cells(ops.convert_to_tensor(maps)))[0]
    expected = [[1, 0.6, 0, 0], [0.6, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # the last cell has no value
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    assert off_diagonal(cosines) == pytest.approx(0.1)
    distances, means, pairs = by_distance(cosines, 2)
    np.testing.assert_allclose(distances, [0, 1, 2**0.5])
    assert pairs.tolist() == [4, 4, 2]
    np.testing.assert_allclose(means, [0.75, 0.15, 0], atol=1e-6)
    # top right tile: similarity of cell (0, 1) to (0, 0), (0, 1), (1, 0), (1, 1)
    np.testing.assert_allclose(tiled(cosines, 2)[:2, 2:], [[0.6, 1], [0, 0]], atol=1e-6)

"""RoI features, the input of every RoI head: multi-level RoIAlign on a pyramid, plain or deformable."""

from typing import NamedTuple

import keras

from kgarden.errors import UserError
from kgarden.ops.deform_roi_pool import bin_centers, deform_roi_pool
from kgarden.ops.roi_align import roi_align


class RoIPooling(NamedTuple):
    """Settings of RoI pooling; their defaults are defined here only.

    Attributes:
        roi_levels:     [first, last] of the pyramid levels to pool from; None: all.
        pool_size:      S, bins along each side.
        sampling_ratio: samples per bin along each side; 0: as many as the bin has cells.
        aligned, least_cells: see kgarden/ops/roi_align.py.
    """

    roi_levels: list | None = None
    pool_size: int = 7
    sampling_ratio: int = 0
    aligned: bool = True
    least_cells: float | None = None


class RoIFeatures(keras.layers.Layer):
    """Multi-level RoIAlign.   He et al. 2017, arXiv:1703.06870, section 3; levels: Lin et al. 2016, Eq. 1.

    Args:
        strides:            of the pyramid.
        pooling:            RoIPooling; None: its defaults.
        enlarged, plus_one: see kgarden/ops/roi_align.py.
    Call:
        pyramid: list of (B, H_l, W_l, D).
        boxes:   (B, P, 4) px of the network input.
    Returns:
        (B, P, S, S, D).
    """

    def __init__(self, strides, pooling=None, enlarged=1.0, plus_one=False, **kwargs):
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        pooling = pooling or RoIPooling()
        first, last = pooling.roi_levels or (0, 99)
        self.chosen = [i for i, stride in enumerate(strides) if 2**first <= stride <= 2**last]
        if not self.chosen:
            raise UserError(f"roi_levels {list(pooling.roi_levels)}: the pyramid has strides {list(strides)}")
        self.strides = [strides[index] for index in self.chosen]
        self.size = pooling.pool_size
        self.settings = dict(
            sampling_ratio=pooling.sampling_ratio,
            aligned=pooling.aligned,
            least_cells=pooling.least_cells,
            enlarged=enlarged,
            plus_one=plus_one,
        )

    def build(self, input_shape):
        pass

    def call(self, pyramid, boxes):
        chosen = [pyramid[index] for index in self.chosen]
        return roi_align(chosen, self.strides, boxes, self.size, **self.settings)


class DeformRoIFeatures(RoIFeatures):
    """Multi-level deformable RoI pooling, from the levels of RoIAlign.   Dai et al. 2017, arXiv:1703.06211.

    Args:
        strides, pooling, plus_one: as in RoIFeatures; of `pooling`, levels and size alone.
        samples, gamma, aligned: see kgarden/ops/deform_roi_pool.py.
    Call:
        pyramid: list of (B, H_l, W_l, D).
        boxes:   (B, P, 4) px of the network input.
        offsets: (B, P, S, S, 2) or (B, P, 1, 1, 2), in box sides over gamma.
    Returns:
        (B, P, S, S, D).
    """

    def __init__(self, strides, pooling=None, samples=4, gamma=0.1, aligned=False, plus_one=False, **kwargs):
        super().__init__(strides, pooling, plus_one=plus_one, **kwargs)
        self.deformation = dict(samples=samples, gamma=gamma, aligned=aligned, plus_one=plus_one)

    def call(self, pyramid, boxes, offsets):
        chosen = [pyramid[index] for index in self.chosen]
        return deform_roi_pool(
            chosen, self.strides, boxes, offsets, output_size=self.size, **self.deformation
        )

    def centers(self, boxes, offsets):
        """Centres of the bins, (B, P, S, S, 2) px; see kgarden/ops/deform_roi_pool.py."""
        how = {key: value for key, value in self.deformation.items() if key != "samples"}
        return bin_centers(boxes, offsets, output_size=self.size, **how)

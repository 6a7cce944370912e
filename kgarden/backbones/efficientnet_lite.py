"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6, for integer arithmetic.

Tan and Le 2019, arXiv:1905.11946, Table 1; the changes for Lite are those of TensorFlow's TPU models.
"""

from kgarden.backbones.mobilenet_v2 import inverted_residual_stages
from kgarden.backbones.staged import StagedBackbone
from kgarden.layers.norm import BatchNorm

# As in kgarden/backbones/mobilenet_v2.py: expansion, channels, repeats, stride, side of the depthwise kernel.
STAGES = (
    ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3)),
    ((6, 40, 2, 2, 5),),
    ((6, 80, 3, 2, 3), (6, 112, 3, 1, 5)),
    ((6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)
LAST_FILTERS = 1280
EPSILON, MOMENTUM = 1e-3, 0.99  # of the published batch norms


class EfficientNetLite0(StagedBackbone):
    """EfficientNet-Lite0; see StagedBackbone. Its batch norms have the published epsilon and momentum.

    Args:
        norm:      "frozen_bn", "bn" or "sync_bn".
        freeze_at: 0 nothing, 1 the stem, 2 the blocks up to C2 as well, ...
        last_conv: C5 is the 1x1 of 1280 channels in front of the classifier, instead of the last block.
        padding:   of the strided convolutions: "same" as in TensorFlow, for the published weights, or "half".
    """

    def __init__(self, norm="frozen_bn", freeze_at=0, last_conv=False, padding="same", **kwargs):
        super().__init__(**kwargs)
        self.last_conv, self.padding = last_conv, padding
        settings = dict(
            width=1.0, last_filters=LAST_FILTERS if last_conv else None, norm=norm, padding=padding
        )
        self._assemble(*inverted_residual_stages(STAGES, **settings), freeze_at)
        for layer in self._flatten_layers():
            if isinstance(layer, BatchNorm):
                layer.epsilon, layer.momentum = EPSILON, MOMENTUM

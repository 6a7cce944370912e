"""Faster R-CNN without a pyramid: RPN and RoIs on C4, the last stage of the ResNet on every RoI.

Ren, He, Girshick, Sun 2015, arXiv:1506.01497, with a ResNet: He et al. 2015, arXiv:1512.03385, appendix A.
The backbone ends at C4, stride 16, where RPN's one level has anchors of all sizes. RoIAlign cuts 14 x 14
cells of 1024 channels out of it, res5 makes 7 x 7 cells of 2048 channels of them, and the predictors read
their mean.

    paper / detectron2                          here
    conv1 to conv4                              backbone, `last_stage` 4
    9 anchors of a cell; 15 by now              SIZES x three ratios
    conv5 on RoIs, global average pool          Res5, in the place of BoxHead.features
    12000 / 6000 before NMS, 2000 / 1000 after  PROPOSALS, the same with all three conventions
"""

import keras
from keras import ops

from kgarden.backbones import make_backbone
from kgarden.config.instantiate import forwards_to, merge_defaults
from kgarden.layers.remat import recomputed
from kgarden.models.faster_rcnn import FasterHead, rcnn
from kgarden.necks.last_level import LastLevel

SIZES = [[32, 64, 128, 256, 512]]
PROPOSALS = {
    "train": {"per_level": 12_000, "pool": 12_000, "total": 2000, "shared_by": 1},
    "test": {"per_level": 6000, "total": 1000},
}


class Res5(keras.layers.Layer):
    """The last stage of a ResNet on the cells of each RoI, and their mean.

    Args:
        blocks: of kgarden.backbones.resnet.ResNet.stage.
    Call:
        roi_features: (B, P, S, S, D).
    Returns:
        (B, P, 2 D).
    Attributes:
        width: 2 D, once it is built.
        remat: whether the blocks are computed again on the way back instead of being kept.
    """

    remat = False

    def __init__(self, blocks, **kwargs):
        super().__init__(**kwargs)
        self.blocks = blocks

    def build(self, input_shape):
        shape = (None, *input_shape[-3:])
        for block in self.blocks:
            block.build(shape)
            shape = block.compute_output_shape(shape)
        self.width = shape[-1]

    def call(self, roi_features, training=False):
        x = ops.reshape(roi_features, (-1, *roi_features.shape[-3:]))
        if self.remat:
            x = recomputed(self.blocks, x, training)
        else:
            for block in self.blocks:
                x = block(x, training=training)
        return ops.reshape(ops.mean(x, axis=(1, 2)), (*ops.shape(roi_features)[:2], self.width))


class C4Head(FasterHead):
    """FasterHead whose features are those of a ResNet's last stage; has no layers of its own before that.

    Args:
        strides, num_classes: see FasterHead.
        features: Res5.
        settings: see FasterHead; pool_size, twice the cells along a side that the mean is taken over, is 14.
    """

    fixed_arguments = ("features", "width", "num_fcs", "num_convs", "initializer")

    def __init__(self, strides, num_classes, features, **settings):
        super().__init__(strides, num_classes, features=features, **{"pool_size": 14, **settings})


@forwards_to(rcnn, fixed=("name", "head", "head_defaults", "head_layers", "neck"))
def faster_rcnn_c4(num_classes, backbone="resnet50", rpn=None, proposals=None, **parts):
    """Faster R-CNN on C4 (35.7 AP on COCO with detectron2, ResNet-50, 1x).

    Args:
        num_classes: C.
        backbone:    a ResNet, whose last stage is the RoI head's; "bn" there is over all RoIs of a replica.
        rpn, proposals: see `rcnn`.
        parts:       seed, roi_head (settings of C4Head), selection, pixels, convention; see `rcnn`.
    Returns:
        TwoStage.
    """
    backbone = {"name": backbone} if isinstance(backbone, str) else backbone
    trunk = make_backbone({**backbone, "last_stage": 4})
    given = merge_defaults({"train": {}, "test": {}}, proposals, "model.proposals")
    return rcnn(
        num_classes,
        name="faster_rcnn_c4",
        head=C4Head,
        head_defaults={"sampling_ratio": 0},
        backbone=trunk,
        neck=LastLevel(trunk.strides[-1], trunk.channels[-1], name="neck"),
        rpn={"sizes": SIZES, **(rpn or {})},
        proposals={when: {**PROPOSALS[when], **given[when]} for when in PROPOSALS},
        head_layers={"features": Res5(trunk.stage(5), name="features")},
        **parts,
    )

"""Mask R-CNN: a fully convolutional head predicts a mask for each detected box.

He, Gkioxari, Dollár, Girshick 2017, arXiv:1703.06870. Box and class are learned as in Faster R-CNN; beside
them RoIAlign cuts 14 x 14 cells out of the pyramid for every box, four convolutions and a deconvolution make
28 x 28 cells of them, and of the masks that they hold, one for each class, the one of the box's class counts:
classes do not compete for a pixel.

    paper / detectron2                    here
    RoIAlign (3)                          kgarden/ops/roi_align.py; MaskHead.pool
    mask branch (3, Fig. 4 right)         MaskHead: conv1..conv4, deconv, classes
    K m^2 outputs, L_mask on the k-th     OwnChannel; term roi/mask
    "intersection between a RoI and its   `targets`
     associated ground-truth mask" (3.1)
    boxes first, then masks (3.1)         MaskHead.masks, after the selection
    class-agnostic masks (4.2)            `class_agnostic`

It works with any RoI head that samples its RoIs: `roi_head.name` faster, cascade or double_head, or the model
two_stage. With a cascade it is detectron2's: one mask head, which trains on the first stage's sample and
predicts in the boxes of the last; mmdetection has one for each stage and averages.
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to, instantiate, name_and_settings, take
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.roi_features import RoIFeatures, RoIPooling
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import msra_fan_out, normal
from kgarden.models.cascade_rcnn import CascadeHead
from kgarden.models.faster_rcnn import CONVENTIONS, ROI_LEVELS, FasterHead, rcnn
from kgarden.ops.box_masks import covered_area
from kgarden.ops.float32 import matmul
from kgarden.ops.gather import gather
from kgarden.ops.replicas import global_mean
from kgarden.structures import BOXES, LABELS, MASKS, VALID
from kgarden.targets.roi import OBJECT

# Settings of a convention that RoIAlign has.
OF_ROI_ALIGN = ("sampling_ratio", "aligned", "least_cells", "plus_one")
INITIALIZERS = ("normal", "c2_msra")
OF_LAST_LAYER = {
    "detectron2": "normal",
    "mmdetection": "c2_msra",
    "torchvision": "c2_msra",
    "mmdetection_1": "c2_msra",
    "maskrcnn_benchmark": "c2_msra",
}
HALF = 0.5 - 1e-4  # a cell that is half covered is set; rounding must not take it away


class OwnChannel(keras.layers.Layer):
    """A 1x1 convolution of which one output channel is computed for each RoI, that of its class.

    Args:
        channels:    C, how many there are.
        initializer: of the kernel.
    Call:
        features: (B, P, H, W, D).
        labels:   (B, P) int32 in 0..C-1.
    Returns:
        (B, P, H, W) float32 logits.
    """

    def __init__(self, channels, initializer, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.initializer = channels, initializer

    def build(self, input_shape):
        shape = (1, 1, input_shape[-1], self.channels)
        self.kernel = self.add_weight(shape=shape, initializer=self.initializer, name="kernel")
        self.bias = self.add_weight(shape=(self.channels,), initializer="zeros", name="bias")

    def call(self, features, labels):
        own = ops.one_hot(labels, self.channels, dtype=self.compute_dtype)  # (B, P, C)
        kernel = ops.matmul(own, ops.transpose(self.kernel[0, 0]))[..., None]  # (B, P, D, 1)
        rows, height, width, depth = features.shape[1:]
        cells = ops.matmul(ops.reshape(features, (-1, rows, height * width, depth)), kernel)
        logits = ops.reshape(cells, (-1, rows, height, width))
        return ops.cast(logits + matmul(own, self.bias[:, None])[..., None], "float32")


class MaskHead(keras.layers.Layer):
    """RoIAlign, [3x3 conv -> ReLU] x 4, 2x2 deconv of stride 2 -> ReLU, and a mask of each class.

    Args:
        strides:        of the pyramid.
        num_classes:    C.
        width:          channels of the convolutions.
        num_convs:      of 3x3 convolutions.
        norm, norm_groups: of them; see kgarden/layers/norm.py.
        class_agnostic: one mask for a RoI instead of one for each class.
        initializer:    of the last layer: "normal", N(0, 0.001) (detectron2), or "c2_msra", as of the others
                        (mmdetection, maskrcnn-benchmark).
        plus_one:       see kgarden/heads/roi_features.py.
        settings:       of RoIPooling, pool_size being 14. A mask has twice as many cells along a side.
        count:          N, how many RoIs of an image may learn masks: foreground of the sample that is left
                        over learns none. Builders give the number of foreground RoIs that there can be.
        weight:         of the term.
    """

    loss_names = ("roi/mask",)
    takes = (RoIPooling,)

    def __init__(
        self,
        strides,
        num_classes,
        width=256,
        num_convs=4,
        norm=None,
        norm_groups=None,
        class_agnostic=False,
        initializer="normal",
        plus_one=False,
        count=128,
        weight=1.0,
        **settings,
    ):
        pooling, kwargs = take(RoIPooling, {"pool_size": 14, **settings})
        super().__init__(autocast=False, **kwargs)  # boxes stay float32 under mixed precision
        one_of("mask_head.initializer", initializer, INITIALIZERS)
        self.class_agnostic = class_agnostic
        self.count, self.weight = count, weight
        self.pool = RoIFeatures(strides, pooling, plus_one=plus_one, name="pool")
        block = dict(norm=norm, norm_groups=norm_groups, activation="relu")
        self.convs = [
            Conv(width, 3, **block, kernel_initializer=msra_fan_out(), name=f"conv{number}")
            for number in range(1, num_convs + 1)
        ]
        self.deconv = keras.layers.Conv2DTranspose(
            width, 2, strides=2, activation="relu", kernel_initializer=msra_fan_out(), name="deconv"
        )
        of_classes = normal(0.001) if initializer == "normal" else msra_fan_out()
        self.classes = OwnChannel(1 if class_agnostic else num_classes, of_classes, name="classes")

    @property
    def side(self):
        """Cells along each side of a mask."""
        return 2 * self.pool.size

    def build(self, pyramid_shapes):
        shape = (None, self.pool.size, self.pool.size, pyramid_shapes[0][-1])
        for conv in self.convs:
            conv.build(shape)
            shape = (*shape[:3], conv.filters)
        self.deconv.build(shape)
        self.classes.build((None, None, self.side, self.side, self.deconv.filters))

    def call(self, pyramid, boxes, labels, training=False):
        """The mask of each box that belongs to its class.

        Args:
            pyramid: list of (B, H_l, W_l, D).
            boxes:   (B, P, 4) px.
            labels:  (B, P) int32; for what is negative any class answers.
        Returns:
            (B, P, S, S) float32 logits.
        """
        x = self.pool(pyramid, boxes)
        rows = x.shape[1]
        x = ops.reshape(x, (-1, *x.shape[2:]))
        for conv in self.convs:
            x = conv(x, training=training)
        x = self.deconv(x)
        x = ops.reshape(x, (-1, rows, *x.shape[1:]))
        return self.classes(x, ops.zeros_like(labels) if self.class_agnostic else ops.maximum(labels, 0))

    def losses(self, pyramid, sampled, y):
        """Term roi/mask: binary cross-entropy, the mean over the cells of all RoIs that learn a mask.

        Args:
            sampled: of `sample_rois`. RoIs of an object without a mask, whose bitmap is empty, learn none.
            y:       ground truth with masks.
        Raises:
            UserError: y has none.
        """
        if MASKS not in y:
            raise UserError(f"{self.name}: the ground truth has no masks; set data.masks: true")
        boxes, object_ = (sampled[key][:, : self.count] for key in (BOXES, OBJECT))
        labels = gather(y[LABELS], ops.maximum(object_, 0))
        target, known = targets(boxes, object_, y, self.side)
        logits = self(pyramid, boxes, ops.cast(labels, "int32"), training=True)
        loss = ops.mean(ops.softplus(logits) - ops.where(target, logits, 0.0), axis=(2, 3))
        count = ops.sum(ops.cast(known, "float32"))
        return {"roi/mask": self.weight * global_mean(ops.sum(ops.where(known, loss, 0.0)), count)}

    def masks(self, pyramid, detections):
        """Masks of detections over their boxes.

        Args:
            detections: as in kgarden.structures; boxes cut off at the image.
        Returns:
            (B, K, S, S) float32 probabilities, zeros where not valid.
        """
        logits = self(pyramid, detections[BOXES], detections[LABELS])
        return ops.where(detections[VALID][..., None, None], ops.sigmoid(logits), 0.0)


def targets(boxes, objects, y, side):
    """What RoIs must draw: the object's mask in the frame of the RoI, set where half of a cell or more is.

    The references crop a mask of the whole image: detectron2 draws the polygon into the RoI's cells
    (`rasterize_polygons_within_box`), or, like mmdetection (`crop_and_resize`), averages a bitmap of the
    image's px by RoIAlign. Here the truth is a bitmap of 112 x 112 over the object's box, whose share of
    each cell is computed exactly. What the frame costs: the bitmap knows an outline to half of its cells,
    1/224 of the box, an eighth of a cell of a RoI that lies like the box; half a px where the box is 112 px.

    Args:
        boxes:   (B, N, 4) RoIs, px.
        objects: (B, N) int32 rows of the ground truth, -1: none.
        y:       ground truth with masks.
        side:    S.
    Returns:
        target: (B, N, S, S) bool.
        known:  (B, N) bool, whether there is an object, and a mask of it.
    """
    row = ops.maximum(objects, 0)
    bitmaps = gather(y[MASKS], row)
    gt_boxes = gather(y[BOXES], row)
    known = (objects >= 0) & ops.any(bitmaps, axis=(2, 3))
    return covered_area(bitmaps, gt_boxes, boxes, side) >= HALF, known


def mask_head_on(roi_head, strides, settings):
    """Builds the mask head of a RoI head; it trains on all foreground of that head's sample.

    Args:
        roi_head: with a `sampling`, see kgarden/targets/roi.py.
        strides:  of the pyramid.
        settings: of MaskHead.
    """
    settings = {"count": roi_head.sampling.max_positives, **settings}
    fixed = dict(strides=strides, num_classes=roi_head.num_classes, name="mask_head")
    return instantiate(MaskHead, settings, "model.mask_head", **fixed)


@forwards_to(rcnn, fixed=("name", "head", "head_defaults", "head_layers"))
def mask_rcnn(num_classes, roi_head=None, mask_head=None, convention="detectron2", heads=None, **parts):
    """Mask R-CNN (38.6 box AP, 35.2 mask AP on COCO with detectron2, ResNet-50, 1x).

    Args:
        num_classes: C.
        roi_head:    {name: a key of `heads`, "faster" if left out, and settings of that head}.
        mask_head:   settings of MaskHead.
        heads:       {name: class} of further RoI heads that a mask head may follow.
        convention, parts: see `rcnn`; parts are seed, backbone, neck, rpn, proposals, selection, pixels.
    Returns:
        TwoStage.
    """
    heads = {"faster": FasterHead, "cascade": CascadeHead, **(heads or {})}
    name, settings = name_and_settings(roi_head, "model.roi_head", heads, default="faster")
    detector = rcnn(
        num_classes, name="mask_rcnn", head=heads[name], roi_head=settings, convention=convention, **parts
    )
    defaults = {key: value for key, value in CONVENTIONS[convention].items() if key in OF_ROI_ALIGN}
    defaults["initializer"] = OF_LAST_LAYER[convention]
    settings = {"roi_levels": ROI_LEVELS, **defaults, **(mask_head or {})}
    detector.mask_head = mask_head_on(detector.roi_head, detector.neck.strides, settings)
    return detector

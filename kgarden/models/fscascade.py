"""FSCascade: a Cascade R-CNN whose stages share features.

Li et al. 2019, arXiv:1907.11914. A stage also reads its RoIs with the layers of the stages before it, which
learn from its loss as well.

    paper                                    here
    W_i1, W_i2                               StageHead.fc
    C_i, and the sum of C_1 .. C_i  (Eq. 1)  FSCascadeHead.class_features
    F_i, G_i-1                               StageHead.convolved
    B_i                             (Eq. 2)  FSCascadeHead.box_features
    CFS, LFS, both                           `cfs`, `localisation`; CONFIGURATIONS

The paper is silent about activations, about what follows B_i and about the weights of the losses, and its
authors published no code: docs/fscascade.md says what is assumed here.
"""

import keras
from keras import ops

from kgarden.config.instantiate import forwards_to
from kgarden.errors import UserError
from kgarden.heads.dense import one_of
from kgarden.heads.fc_head import FCHead
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import by_name, msra_fan_out
from kgarden.models.cascade_rcnn import (
    DECREASING,
    CascadeHead,
    cascade_on_rpn,
    cascade_rcnn,
    scale_gradient,
)
from kgarden.models.faster_rcnn import box_output, class_output

CONFIGURATIONS = {  # settings of FSCascadeHead; Table 1 and Fig. 3
    "cascade": {"cfs": False, "localisation": "fc"},
    "cfs": {"cfs": True, "localisation": "fc"},
    "lfs": {"cfs": False, "localisation": "lfs"},
    "conv_loc": {"cfs": False, "localisation": "conv"},
    "fscascade": {"cfs": True, "localisation": "lfs"},
}
CHOICES = {
    "cfs_sum": ("post_relu", "pre_relu"),
    "cfs_reg_feature": ("own", "sum"),
    "localisation": ("lfs", "conv", "fc"),
    "lfs_mode": ("serial", "parallel"),
    "loc_reduce": ("flatten", "avgpool", "fc1024"),
}


class StageHead(keras.layers.Layer):
    """The layers that one stage has of its own; what passes through them, FSCascadeHead decides.

    Args:
        num_classes:     C.
        width, num_fcs, initializer: of the dense layers, see FCHead.
        sigmoid:         as in BoxHead.
        conv_sizes:      kernels of the convolutions in front of the boxes; (): none.
        last_conv_relu:  whether a ReLU follows the last of them.
        loc_reduce:      see FSCascadeHead.
        gradient_factor: on the gradients of all these weights; that of the features stays as it is.
    """

    def __init__(
        self,
        num_classes,
        width,
        num_fcs,
        initializer,
        sigmoid,
        conv_sizes,
        last_conv_relu,
        loc_reduce,
        gradient_factor,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.conv_sizes, self.last_conv_relu = tuple(conv_sizes), last_conv_relu
        self.loc_reduce, self.gradient_factor = loc_reduce, gradient_factor
        self.features = FCHead(width, num_fcs, initializer=initializer, last_relu=False, name="features")
        self.classes = class_output(num_classes, sigmoid)
        self.dense = None
        if self.conv_sizes and loc_reduce == "fc1024":
            kernel = by_name(initializer, "model.roi_head.initializer")
            self.dense = keras.layers.Dense(width, "relu", kernel_initializer=kernel, name="box_dense")
        self.boxes = box_output(groups=1)

    def build(self, input_shape):
        side, depth = input_shape[-2:]
        self.features.build(input_shape)
        self.classes.build((None, None, self.features.width))
        self.convs = []
        for number, size in enumerate(self.conv_sizes, start=1):
            relu = "relu" if number < len(self.conv_sizes) or self.last_conv_relu else None
            conv = Conv(
                depth, size, activation=relu, kernel_initializer=msra_fan_out(), name=f"box_conv{number}"
            )
            conv.build((None, *input_shape[-3:]))
            self.convs.append(conv)
        width = depth if self.loc_reduce == "avgpool" else side * side * depth
        if self.dense is not None:
            self.dense.build((None, None, width))
        if self.dense is not None or not self.convs:
            width = self.features.width
        self.boxes.build((None, None, width))

    def fc(self, roi_features):
        """W_i2 relu(W_i1 x), no ReLU behind it.   (B, P, S, S, D) -> (B, P, width)."""
        return self._own(self.features, roi_features)

    def convolved(self, x):
        """The convolutions in turn.   (B * P, S, S, D) -> the same shape."""
        for conv in self.convs:
            x = self._own(conv, x)
        return x

    def reduced(self, roi_features):
        """What the box output reads of B_i by `loc_reduce`.   (B, P, S, S, D) -> (B, P, its width)."""
        if self.loc_reduce == "avgpool":
            return ops.mean(roi_features, axis=(2, 3))
        _, _, height, width, depth = roi_features.shape
        flat = ops.reshape(roi_features, (*ops.shape(roi_features)[:2], height * width * depth))
        return flat if self.dense is None else self._own(self.dense, flat)

    def logits(self, features):
        """(B, P, width) -> (B, P, C + 1) float32."""
        return ops.cast(self._own(self.classes, features), "float32")

    def deltas(self, features):
        """(B, P, width of the box output) -> (B, P, 1, 4) float32."""
        return ops.cast(self._own(self.boxes, features), "float32")[:, :, None]

    def _own(self, layer, x):
        """layer(x), whose weights alone see `gradient_factor`."""
        x = scale_gradient(x, 1.0 / self.gradient_factor)
        return scale_gradient(layer(x), self.gradient_factor)


class FSCascadeHead(CascadeHead):
    """Box heads in a row that share their features, class-agnostic boxes.

    Args:
        strides, num_classes: as in CascadeHead.
        cfs:               classification feature sharing (3.1): a stage classifies the sum of the dense
                           features of all stages so far, each computed on its own RoIs.
        cfs_sum:           the sum is taken "post_relu" or "pre_relu" of the last dense layers.
        cfs_stop_gradient: whether later stages teach nothing to the dense layers of earlier ones.
        cfs_reg_feature:   with `localisation` "fc" boxes are regressed from the stage's "own" features or
                           from the "sum".
        localisation:      in front of the box output: "lfs", convolutions shared among stages (3.2); "conv",
                           two 3x3 convolutions of each stage; "fc", the dense layers of classification.
        lfs_mode:          "serial", Eq. 2; "parallel": B_1 and what every later stage's convolutions make of
                           the RoI features, summed.
        lfs_final_relu:    whether a ReLU follows the addition.
        loc_reduce:        from B_i to the box output: "flatten", "avgpool", or "fc1024", which is a dense
                           layer of `width`.
        head_grad_rescale: whether the gradients of a stage's own weights are divided by its loss weight, as
                           in the authors' Cascade R-CNN, so that the features alone see the loss weights.
        box_beta, stage_weights, feature_gradient, gt_rois, ensemble: as in CascadeHead.
        settings:          of CascadeHead.
    Raises:
        UserError: a setting that has no effect beside the others.
    """

    def __init__(
        self,
        strides,
        num_classes,
        cfs=True,
        cfs_sum="post_relu",
        cfs_stop_gradient=False,
        cfs_reg_feature="own",
        localisation="lfs",
        lfs_mode="serial",
        lfs_final_relu=True,
        loc_reduce="flatten",
        head_grad_rescale=False,
        box_beta=1.0,
        stage_weights=DECREASING,
        feature_gradient=1.0,
        gt_rois="readd",
        ensemble="last",
        **settings,
    ):
        chosen = dict(
            cfs_sum=cfs_sum,
            cfs_reg_feature=cfs_reg_feature,
            localisation=localisation,
            lfs_mode=lfs_mode,
            loc_reduce=loc_reduce,
        )
        for name, value in chosen.items():
            one_of(f"roi_head.{name}", value, CHOICES[name])
        _refuse_without_effect(
            **chosen, cfs=cfs, cfs_stop_gradient=cfs_stop_gradient, lfs_final_relu=lfs_final_relu
        )
        # CascadeHead makes the heads of the stages, by these settings.
        self.cfs, self.cfs_sum, self.cfs_stop_gradient = cfs, cfs_sum, cfs_stop_gradient
        self.cfs_reg_feature, self.localisation = cfs_reg_feature, localisation
        self.lfs_mode, self.lfs_final_relu, self.loc_reduce = lfs_mode, lfs_final_relu, loc_reduce
        self.head_grad_rescale = head_grad_rescale
        super().__init__(
            strides,
            num_classes,
            box_beta=box_beta,
            stage_weights=stage_weights,
            feature_gradient=feature_gradient,
            gt_rois=gt_rois,
            ensemble=ensemble,
            **settings,
        )

    def _box_head(self, stage, num_classes, **how):
        private = self.localisation == "conv" or stage == 0
        sizes = (3, 3) if private else (3, 1)
        return StageHead(
            num_classes,
            conv_sizes=() if self.localisation == "fc" else sizes,
            last_conv_relu=private,
            loc_reduce=self.loc_reduce,
            gradient_factor=self._gradient_factor(stage),
            **how,
        )

    def _gradient_factor(self, stage):
        if not self.head_grad_rescale:
            return 1.0
        if not self.stage_weights[stage] > 0:
            raise UserError("model.roi_head.head_grad_rescale divides by stage_weights: let them be above 0")
        return 1.0 / self.stage_weights[stage]

    def _outputs(self, stage, features):
        head, (total, own) = self.box_heads[stage], self.class_features(stage, features)
        if self.localisation == "fc":
            for_boxes = total if self.cfs_reg_feature == "sum" else own
        else:
            for_boxes = head.reduced(self.box_features(stage, features))
        return head.logits(total), head.deltas(for_boxes)

    def class_features(self, stage, features):
        """Sum of C_1 to C_i, or C_i without CFS; and C_i.   Eq. 1.

        Args:
            stage:    i - 1.
            features: (B, P, S, S, D) of the stage's RoIs.
        Returns:
            Two (B, P, width).
        """
        own = self.box_heads[stage].fc(features)
        if not self.cfs:
            return ops.relu(own), ops.relu(own)
        terms = [head.fc(features) for head in self.box_heads[:stage]]
        if self.cfs_stop_gradient:
            terms = [ops.stop_gradient(term) for term in terms]
        terms.append(own)
        if self.cfs_sum == "pre_relu":
            return ops.relu(sum(terms)), ops.relu(own)
        return sum(ops.relu(term) for term in terms), ops.relu(own)

    def box_features(self, stage, features):
        """B_i of Eq. 2; see `localisation`.   Arguments as in `class_features`; (B, P, S, S, D)."""
        x = ops.reshape(features, (-1, *features.shape[-3:]))
        return ops.reshape(self._convolved(stage, x), ops.shape(features))

    def _convolved(self, stage, x):
        first, *later = self.box_heads[: stage + 1]
        if self.localisation == "conv":
            return self.box_heads[stage].convolved(x)
        y = first.convolved(x)
        if self.lfs_mode == "serial":
            for head in later:
                y = self._added(x, head.convolved(y))
        elif later:
            y = self._added(y, sum(head.convolved(x) for head in later))
        return y

    def _added(self, x, y):
        total = ops.add(x, y)
        return ops.relu(total) if self.lfs_final_relu else total


def _refuse_without_effect(
    *, cfs, cfs_sum, cfs_stop_gradient, cfs_reg_feature, localisation, lfs_mode, lfs_final_relu, loc_reduce
):
    """Raises UserError for a setting that is changed although the others leave it without effect."""
    sharing, convolving = localisation == "lfs", localisation != "fc"
    for changed, name, matters, when in (
        (cfs_sum != "post_relu", "cfs_sum", cfs, "cfs true"),
        (cfs_stop_gradient, "cfs_stop_gradient", cfs, "cfs true"),
        (cfs_reg_feature != "own", "cfs_reg_feature", cfs and not convolving, "cfs true, localisation fc"),
        (lfs_mode != "serial", "lfs_mode", sharing, "localisation lfs"),
        (not lfs_final_relu, "lfs_final_relu", sharing, "localisation lfs"),
        (loc_reduce != "flatten", "loc_reduce", convolving, "localisation lfs or conv"),
    ):
        if changed and not matters:
            raise UserError(f"model.roi_head.{name} has no effect here: it needs {when}")


@forwards_to(cascade_rcnn)
def fscascade(num_classes, configuration="fscascade", convention="maskrcnn_benchmark", **parts):
    """FSCascade on a pyramid (41.7 AP on COCO test-dev in the paper, ResNet-50).

    Args:
        num_classes:   C.
        configuration: what is shared, a key of CONFIGURATIONS; `roi_head` may refine it.
        convention:    see `rcnn`; of the boxes, RoIAlign and RPN. The RoIs, losses and scores of the stages
                       are the paper's with each.
        parts:         seed, backbone, neck, rpn, proposals, roi_head (settings of FSCascadeHead), selection,
                       pixels; see `cascade_rcnn`.
    Returns:
        TwoStage.
    """
    one_of("configuration", configuration, CONFIGURATIONS)
    return cascade_on_rpn(
        num_classes,
        name="fscascade",
        head=FSCascadeHead,
        head_defaults=CONFIGURATIONS[configuration],
        convention=convention,
        **parts,
    )

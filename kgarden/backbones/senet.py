"""SENet-154 and SE-ResNeXt: residual blocks with squeeze-and-excitation.

Hu et al. 2018, arXiv:1709.01507; structure of the authors' SENet-154 as in Cadene's pretrained models.
"""

from keras import ops

from kgarden.backbones.resnet import ResNet, deep_stem


class SEResNet(ResNet):
    """ResNet or ResNeXt whose blocks end with squeeze-and-excitation.

    Args:
        reduction: of it; see `SqueezeExcite`.
        kwargs:    of ResNet; depth 50, 101 or 152.
    """

    def __init__(self, reduction=16, **kwargs):
        self.reduction = reduction
        super().__init__(**kwargs)

    def _further(self, number):
        return {"reduction": self.reduction}

    def pool(self, x):
        """3x3 at stride 2 with padding at the far ends alone (Caffe's and Cadene's `ceil_mode`)."""
        return ops.max_pool(x, 3, strides=2, padding="same")


class SENet154(SEResNet):
    """SENet-154: a stem of three 3x3 convolutions, 64 groups, a first 1x1 of half the width, 3x3 projections.

    Args:
        stem_channels: of the third convolution of the stem; the first two have half as many.
        kwargs:        of SEResNet; see there.
    """

    fixed_arguments = ("depth",)

    def __init__(self, groups=64, width_per_group=4, stem_channels=128, **kwargs):
        settings = dict(groups=groups, width_per_group=width_per_group, stem_channels=stem_channels)
        super().__init__(depth=152, **settings, **kwargs)

    def _stem(self):
        return deep_stem(self.widths[0] // 2, self.widths[0], self.norm)

    def _further(self, number):
        width = self.groups * self.width_per_group * 2 ** (number - 2)
        kernel = 1 if number == 2 else 3
        return {**super()._further(number), "first_width": width // 2, "shortcut_kernel": kernel}

"""Non-local blocks: self-attention over the cells of a feature map.

Wang, Girshick, Gupta, He, "Non-local neural networks", 2018, arXiv:1711.07971:

    z_i = x_i + W y_i,    y_i = 1 / C(x) * sum over j of f(x_i, x_j) g(x_j)         (Eqs. 1 and 6)
"""

import math

import keras
from keras import ops

from kgarden.errors import UserError
from kgarden.layers.conv import Conv
from kgarden.layers.initializers import normal, torch_bias, torch_uniform

INITIALIZERS = ("normal", "torch")
MODES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")


class NonLocal(keras.layers.Layer):
    """Non-local block: z = x + W y.

    Args:
        width:     channels of theta, phi and g; None: half of x's ("gaussian": all of them).
        mode:      f and C. "gaussian": softmax of x_i x_j (Eq. 2); "embedded_gaussian": the same with the
                   projections theta and phi (Eq. 3); "dot_product": theta_i phi_j over the number of cells
                   (Eq. 4); "concatenation": relu(w [theta_i, phi_j]) over that number (Eq. 5).
        groups:    of channels of theta, phi and g, with separate attention each.
        scaled:    of "embedded_gaussian": theta_i phi_j is divided by the square root of the channels.
        norm:      after W, see kgarden/layers/norm.py, or None.
        out_bias:  of W; None: only without a norm.
        post_relu: ReLU after the sum.
        subsample: 2x2 max pooling of phi and g.
        initializer: of theta, phi and g: "normal", N(0, 0.01), biases 0 (mmcv); "torch", PyTorch's default
                   for kernels and biases (the Double-Head release).
    Call:
        x:     (B, H, W, D).
        valid: (B,) bool, see BatchNorm.
    Returns:
        (B, H, W, D). W is initialised to 0, so that it starts as x, or the ReLU of x.
    """

    def __init__(
        self,
        width=None,
        mode="embedded_gaussian",
        groups=1,
        scaled=False,
        norm=None,
        out_bias=None,
        post_relu=False,
        subsample=False,
        initializer="normal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if mode not in MODES:
            raise UserError(f"non-local mode {mode!r}: one of {', '.join(MODES)}")
        self.width, self.mode, self.groups, self.scaled = width, mode, groups, scaled
        self.norm, self.out_bias = norm, out_bias
        self.post_relu, self.subsample = post_relu, subsample
        if initializer not in INITIALIZERS:
            raise UserError(f"non-local initializer {initializer!r}: one of {', '.join(INITIALIZERS)}")
        self.initializer = initializer

    def build(self, input_shape):
        depth = input_shape[-1]
        self.width = self.width or (depth if self.mode == "gaussian" else depth // 2)
        if self.width % self.groups:
            raise UserError(f"non-local: {self.width} channels are not divisible by {self.groups} groups")
        projected = ("g",) if self.mode == "gaussian" else ("g", "theta", "phi")
        for name in projected:
            conv = Conv(self.width, **self._initializers(depth), name=name)
            conv.build(input_shape)
            setattr(self, name, conv)
        self.concatenated = None
        if self.mode == "concatenation":
            self.concatenated = self.add_weight(
                shape=(2, self.width // self.groups), initializer=normal(0.01), name="concatenated"
            )
        self.out = Conv(depth, norm=self.norm, use_bias=self.out_bias, kernel_initializer="zeros", name="out")
        self.out.build((None, None, None, self.width))

    def _initializers(self, depth):
        if self.initializer == "torch":
            return {"kernel_initializer": torch_uniform(), "bias_initializer": torch_bias(depth)}
        return {"kernel_initializer": normal(0.01)}

    def call(self, x, training=False, valid=None):
        theta, phi = (x, x) if self.mode == "gaussian" else (self.theta(x), self.phi(x))
        g = self.g(x)
        if self.subsample:
            phi, g = (ops.max_pool(part, 2, strides=2, padding="valid") for part in (phi, g))
        affinity = self._affinity(self._cells(theta), self._cells(phi))
        y = ops.einsum("bgnm,bmgd->bngd", ops.cast(affinity, g.dtype), self._cells(g))
        y = ops.reshape(y, (-1, *x.shape[1:3], self.width))
        z = x + self.out(y, training=training, valid=valid)
        return ops.relu(z) if self.post_relu else z

    def _cells(self, x):
        """(B, H, W, channels) -> (B, N cells, G, channels / G), channels of a group contiguous."""
        return ops.reshape(x, (-1, math.prod(x.shape[1:3]), self.groups, x.shape[3] // self.groups))

    def _affinity(self, theta, phi):
        """Attention weights f / C.   (B, G, N, M)."""
        if self.mode == "concatenation":
            of_theta = ops.einsum("bngd,d->bgn", theta, self.concatenated[0])
            of_phi = ops.einsum("bmgd,d->bgm", phi, self.concatenated[1])
            return ops.relu(of_theta[..., None] + of_phi[..., None, :]) / phi.shape[1]
        product = ops.einsum("bngd,bmgd->bgnm", theta, phi)
        if self.mode == "dot_product":
            return product / phi.shape[1]
        scale = 1 / math.sqrt(theta.shape[-1]) if self.scaled else 1.0
        return ops.softmax(ops.cast(product, "float32") * scale, axis=-1)

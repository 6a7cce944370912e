"""Memory of a backbone's training in a process of its own: `python -m support.programs.remat REMAT`.

Prints the largest resident memory in GiB before the first step and after the second.
"""

import sys

import keras
import numpy as np
from keras import ops

from kgarden.backbones import make_backbone
from kgarden.bench.timing import peak_memory


class Sums(keras.Model):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def call(self, x, training=False):
        return self.backbone(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return sum(ops.mean(ops.square(features)) for features in y_pred)


def main(remat):
    model = Sums(make_backbone({"name": "resnet34", "norm": "bn"}))
    model.backbone.remat = remat == "1"
    model.backbone.build((None, None, None, 3))
    model.built = True
    model.compile(optimizer=keras.optimizers.SGD(1e-6), jit_compile=False)
    x = np.random.default_rng(0).normal(size=(4, 512, 512, 3)).astype("float32")
    before = peak_memory()
    for _ in range(2):
        model.train_on_batch(x, np.zeros(4))
    print(before, peak_memory())


if __name__ == "__main__":
    main(sys.argv[1])

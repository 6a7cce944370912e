"""Inference time of CenterNet2's table 1, and of 1,203 classes over 80: ratios of one interleaved run.

    python benchmarks/two_stages.py [HEIGHT WIDTH ROUNDS] > benchmarks/two_stages.json

Random weights on noise; ResNet-50 in float32, one image. With random weights all classes score alike, so
that the selection sees as many pairs above its threshold as it can.
"""

import json
import sys

import keras
import numpy as np
from keras import ops

from kgarden.bench.timing import compiled, peak_memory, quartiles, rounds
from kgarden.config.loading import load_recipe
from kgarden.models import build_detector

MODELS = {  # recipe, row, classes
    "faster_rpn": ("faster_rcnn", None, 80),  # P2 to P6
    "faster_rpn_p3_p7": ("centernet2", "table4.p3_p7", 80),
    "faster_centernet": ("centernet2", "table1.f_centernet", 80),
    "cascade_rpn": ("cascade_rcnn", None, 80),
    "cascade_rpn_p3_p7": ("centernet2", "table5.rpn_without_prob", 80),
    "centernet2": ("centernet2", "table1.c_centernet", 80),
    "centernet2_1203": ("centernet2", "table1.c_centernet", 1203),
    "centernet": ("centernet2", "table1.centernet", 80),
    "centernet_1203": ("centernet2", "table1.centernet", 1203),
}
RATIOS = [  # and what the paper reports, on a Titan Xp
    ("faster_centernet", "faster_rpn", 50 / 55),
    ("faster_centernet", "faster_rpn_p3_p7", 50 / 45),
    ("centernet2", "cascade_rpn", 57 / 78),
    ("centernet2", "cascade_rpn_p3_p7", 57 / 66),
    ("centernet2_1203", "centernet2", 1.05),
    ("centernet_1203", "centernet", 1.3),
]


def detector(recipe, row, classes):
    keras.utils.set_random_seed(0)
    settings = load_recipe(recipe, row=row).model.model_dump(exclude={"num_classes"})
    return build_detector(settings, classes).inference_model()


def main(height=800, width=1344, repeats=5):
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype="uint8")
    x = {"images": ops.convert_to_tensor(image), "size_hw": ops.convert_to_tensor([[height, width]])}
    seconds = rounds({name: compiled(detector(*model), x) for name, model in MODELS.items()}, repeats)
    ratios = {
        f"{one} / {other}": {"here": quartiles(seconds[one] / seconds[other]), "paper": round(paper, 2)}
        for one, other, paper in RATIOS
    }
    medians = {name: round(float(np.median(values)), 3) for name, values in seconds.items()}
    found = {"canvas": [height, width], "rounds": repeats, "s": medians, "ratios": ratios}
    print(json.dumps({**found, "peak_memory_gib": peak_memory()}, indent=1))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

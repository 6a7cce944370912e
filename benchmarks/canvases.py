"""What few large canvases cost a multi-scale training, and many small ones: time, and group-norm statistics.

    python benchmarks/canvases.py > benchmarks/canvases.json

A narrow FCOS on landscape images of six short sides, half of 640 to 800 px, at 4:3: on one canvas that holds
all of them (one of a recipe's four) and on a canvas for each short side (six of 24). "padded" is the fraction
of the canvas without image. Statistics are those of every group norm on random weights and noise of 8 px: how
far standard deviations over the canvas are from those over the image alone.
"""

import json
import statistics
import sys
import time

import keras
import numpy as np

from kgarden.config.canvases import round_up
from kgarden.layers.norm import GroupNorm
from kgarden.models import build_detector
from kgarden.optimizers.optimizers import SGD

SHORT_SIDES = [320, 336, 352, 368, 384, 400]
LARGEST = (round_up(400, 32), round_up(533, 32))
PADDED = {"25 %": 0.25, "39 %": 0.39}
ROUNDS = 2


def detector():
    keras.utils.set_random_seed(0)
    settings = {
        "name": "fcos",
        "backbone": {"name": "resnet18", "norm": "frozen_bn", "stem_channels": 8, "res2_channels": 8},
        "neck": {"channels": 32},
    }
    made = build_detector(settings, 20)
    made.compile(optimizer=SGD(0.001), jit_compile=False)
    return made


def photo(rng, height, width):
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return np.kron(coarse, np.ones((8, 8, 1)))[:height, :width].astype("uint8")


def batch(short, canvas, images=1):
    rng = np.random.default_rng(short)
    size = short, short * 4 // 3
    pixels = np.zeros((images, *canvas, 3), "uint8")
    pixels[:, : size[0], : size[1]] = photo(rng, *size)
    boxes = np.tile(np.float32([[20, 30, 120, 160], [150, 60, 290, 280]]), (images, 1, 1))
    x = {"images": pixels, "size_hw": np.tile(np.int32(size), (images, 1))}
    y = {"boxes": boxes, "labels": np.zeros((images, 2), "int32"), "crowd": np.zeros((images, 2), bool)}
    return x, {**y, "image_id": np.arange(images, dtype="int32")}


def times(canvas_of):
    """CPU seconds of first and later steps on the six short sides, and the padded fraction."""
    model, seconds = detector(), {}
    batches = [(short, canvas_of(short)) for short in SHORT_SIDES]
    for round_ in range(ROUNDS + 1):
        for short, canvas in batches:
            began = time.process_time()
            model.fit(*batch(short, canvas), batch_size=1, verbose=0, shuffle=False)
            seconds[round_, short] = time.process_time() - began
    later = [statistics.median(seconds[n, short] for n in range(1, ROUNDS + 1)) for short in SHORT_SIDES]
    first = [seconds[0, short] for short in SHORT_SIDES]
    areas = [(short * (short * 4 // 3), np.prod(canvas)) for short, canvas in batches]
    canvases = len({canvas for _, canvas in batches})
    return {
        "canvases": canvases,
        "padded": round(1 - sum(image for image, _ in areas) / float(sum(area for _, area in areas)), 3),
        "step_cpu_s": round(statistics.mean(later), 3),
        "tracing_cpu_s_per_canvas": round((sum(first) - sum(later)) / canvases, 2),
        "traces": model.traces,
    }


def deviations(model, short, canvas):
    """Standard deviation of each group of each group norm, on every level."""
    found, call = [], GroupNorm.call

    def recording(self, x):
        values = np.asarray(x).reshape(-1, self.groups, x.shape[-1] // self.groups)
        found.append(values.std(axis=(0, 2)))
        return call(self, x)

    GroupNorm.call = recording
    try:
        model(batch(short, canvas)[0])
    finally:
        GroupNorm.call = call
    return found


def statistics_of_padding(fraction):
    """Ratio of deviations over a padded canvas to those over the image alone, of all layers and levels."""
    model, short = detector(), 384
    alone = short, short * 4 // 3
    side = (1 / (1 - fraction)) ** 0.5
    canvas = tuple(round_up(int(one * side), 32) for one in alone)
    pairs = zip(deviations(model, short, alone), deviations(model, short, canvas), strict=True)
    ratios = [padded / image for image, padded in pairs]
    everything = np.concatenate(ratios)
    return {
        "canvas": canvas,
        "padded": round(1 - float(np.prod(alone) / np.prod(canvas)), 3),
        "ratio_quartiles": np.round(np.quantile(everything, [0.25, 0.5, 0.75]), 3).tolist(),
        "ratio_range": np.round([everything.min(), everything.max()], 3).tolist(),
    }


def main():
    return {
        "group_norm": {name: statistics_of_padding(fraction) for name, fraction in PADDED.items()},
        "one_canvas": times(lambda short: LARGEST),
        "canvas_of_each": times(lambda short: (round_up(short, 32), round_up(short * 4 // 3, 32))),
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=1)
    print()

"""Benchmark of deformable RoI pooling relative to RoIAlign of the same boxes, in one run."""

import keras
import numpy as np
from keras import ops

from kgarden.bench.timing import compiled, quartiles, rounds
from kgarden.config.recipe import Recipe
from kgarden.ops.deform_roi_pool import deform_roi_pool
from kgarden.ops.roi_align import roi_align

STRIDES, CHANNELS, BOXES, SIDE = (4, 8, 16, 32), 256, 1000, 7


def pooling_over_roi_align(recipe: Recipe, repeats: int, data) -> dict:
    """Times RoIAlign (2 x 2 samples) and TSD's pooling (4 x 4) of 1000 boxes on P2..P5 of the first canvas.

    Sides of the boxes are spread evenly over octaves, offsets are a tenth of the box with a deviation of 1.

    Returns:
        {"canvas": [H, W], "boxes": P, "forward": {"roi_align_s", "deformable_s", "over_roi_align": quartiles
        of the rounds' ratios}, "forward_and_gradients": the same, with the gradients of the pyramid and of
        the offsets}.
    """
    from kgarden.build import canvases

    height, width = canvases(recipe)[0]
    rng = np.random.default_rng(0)
    pyramid = [
        ops.convert_to_tensor(
            rng.normal(size=(1, height // stride, width // stride, CHANNELS)).astype("float32")
        )
        for stride in STRIDES
    ]
    boxes = ops.convert_to_tensor(spread_boxes(rng, (height, width), BOXES))
    offsets = ops.convert_to_tensor(rng.normal(size=(1, BOXES, SIDE, SIDE, 2)).astype("float32"))

    def align(boxes, offsets, *pyramid):
        return roi_align(pyramid, STRIDES, boxes, SIDE, sampling_ratio=2, aligned=False)

    def deformable(boxes, offsets, *pyramid):
        return deform_roi_pool(pyramid, STRIDES, boxes, offsets, output_size=SIDE)

    both = {"roi_align": align, "deformable": deformable}
    inputs = (boxes, offsets, *pyramid)
    return {
        "canvas": [height, width],
        "boxes": BOXES,
        "forward": _ratio({name: compiled(pool, *inputs) for name, pool in both.items()}, repeats),
        "forward_and_gradients": _ratio(
            {
                "roi_align": compiled(_gradients(align, 2), *inputs),
                "deformable": compiled(_gradients(deformable, 1), *inputs),
            },
            repeats,
        ),
    }


def spread_boxes(rng: np.random.Generator, canvas: tuple[int, int], count: int) -> np.ndarray:
    """Returns boxes within a canvas (height, width), sides spread evenly over octaves.   (1, count, 4) px"""
    size = np.float64(canvas[::-1])
    sides = np.minimum(2 ** rng.uniform(4, 9.5, (count, 1)) * 2 ** rng.uniform(-0.5, 0.5, (count, 2)), size)
    corner = rng.uniform(0, 1, (count, 2)) * (size - sides)
    return np.concatenate([corner, corner + sides], axis=1)[None].astype("float32")


def _ratio(functions, repeats):
    seconds = rounds(functions, repeats)
    medians = {f"{name}_s": round(float(np.median(times)), 4) for name, times in seconds.items()}
    return {**medians, "over_roi_align": quartiles(seconds["deformable"] / seconds["roi_align"])}


def _gradients(pool, first):
    """A function of the inputs: gradients of mean(pool ** 2) by those from number `first` on."""
    if keras.backend.backend() == "jax":
        import jax

        def loss(differentiated, rest):
            return ops.mean(ops.square(pool(*rest, *differentiated)))

        return lambda *inputs: jax.grad(loss)(inputs[first:], inputs[:first])
    import tensorflow as tf

    def gradients(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs[first:])
            loss = ops.mean(ops.square(pool(*inputs)))
        return tape.gradient(loss, inputs[first:])

    return gradients

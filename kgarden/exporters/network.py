"""Exported network: the detector's graph on one canvas, common to all export formats.

    images          (B, H, W, 3) uint8 RGB, the image in the upper left corner; normalisation is inside
    size_hw         (B, 2) int32, height and width of the image inside the canvas
    ->
    boxes           (B, K, 4) float32 xyxy, px of the canvas, clipped to the image
    scores          (B, K) float32, best first
    labels          (B, K) int32, 0..C-1, rows of labels.txt
    num_detections  (B,) int32; rows beyond it hold zeros and label -1
    masks           (B, K, S, S) float32, probabilities over the boxes; only of a model with a mask head

For a detector without NMS, the graph has no loop, no NMS and no pairwise IoU.
"""

import tensorflow as tf

from kgarden.structures import IMAGES, LABELS, PAD_LABEL, SCORES, SIZE_HW, SOURCE, VALID

COUNT = "num_detections"


class Network(tf.Module):
    """A detector's graphs and variables.

    Args:
        detector: a Detector with its weights.
    """

    def __init__(self, detector):
        super().__init__(name="kgarden")
        self._model = detector.inference_model()
        self.weights = [variable.value for variable in detector.variables]

    def on(self, canvas: tuple[int, int], batch: int | None = None):
        """Builds the graph for one canvas.

        Args:
            canvas: (height, width) px.
            batch:  B; None: any.
        Returns:
            tf.function of (images, size_hw) -> dict, see the head of this file.
        """
        height, width = canvas

        def network(images, size_hw):
            return ranked(self._model({IMAGES: images, SIZE_HW: size_hw}, training=False))

        network.__name__ = f"network_{height}x{width}"
        signature = [
            tf.TensorSpec((batch, height, width, 3), tf.uint8, name=IMAGES),
            tf.TensorSpec((batch, 2), tf.int32, name=SIZE_HW),
        ]
        return tf.function(network, input_signature=signature, autograph=False)


def ranked(detections):
    """Sorts detections by score, valid rows first, and adds the number of valid rows."""
    scores = tf.where(detections[VALID], detections[SCORES], -1.0)
    order = tf.math.top_k(scores, scores.shape[1])[1]
    valid = tf.gather(detections[VALID], order, batch_dims=1)
    outputs = {}
    for key in detections.keys() - {VALID, SOURCE}:
        value = tf.gather(detections[key], order, batch_dims=1)
        real = tf.reshape(valid, (-1, *value.shape[1:2], *[1] * (len(value.shape) - 2)))
        outputs[key] = tf.where(real, value, tf.constant(PAD_LABEL if key == LABELS else 0, value.dtype))
    return {**outputs, COUNT: tf.reduce_sum(tf.cast(valid, tf.int32), axis=1)}

"""Results of a training in TensorBoard: hyperparameters, precision-recall curves, validation photos."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from kgarden.config.recipe import Recipe
from kgarden.training.loggers import parameters
from kgarden.utils.files import read_json


def write_results(
    run: str | os.PathLike, recipe: Recipe, photos: Sequence[tuple[int, np.ndarray]] = ()
) -> None:
    """Writes an event file beside those of the training, in `tensorboard/` of the run.

    It fills the tabs HPARAMS (settings of the recipe with the final metrics), PR CURVES (of each class at IoU
    0.5 and 0.75) and IMAGES (ground truth on the left, detections on the right).

    Args:
        run:    run directory with evaluation.json and evaluation/analysis.json.
        recipe: its keys are the parameters.
        photos: (image id, (H, W, 3) uint8), ...
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    run = pathlib.Path(run)
    evaluation, analysis = (read_json(run / name) for name in ("evaluation.json", "evaluation/analysis.json"))
    writer = tf.summary.create_file_writer(str(run / "tensorboard"), filename_suffix=".results")
    with writer.as_default(step=evaluation["step"]):
        api.hparams(parameters(recipe), trial_id=run.resolve().name)
        for name, value in evaluation["metrics"].items():
            if value is not None:
                tf.summary.scalar(f"final/{name}", value)
        for tag, curve in _curves(analysis):
            tf.summary.experimental.write_raw_pb(_curve_summary(tag, **curve).SerializeToString())
        for image_id, photo in photos:
            tf.summary.image(f"validation/{image_id}", photo[None], description="ground truth, detections")
    writer.close()


def _curves(analysis):
    """(tag, {"precision", "recall" fractions, "objects"}) of each class at each IoU."""
    classes = {str(one["id"]): one for one in analysis["per_class"]}
    recall = np.array(analysis["curves"]["recall"]) / 100
    for key in (key for key in analysis["curves"] if key.startswith("iou")):
        for number, precision in analysis["curves"][key]["per_class"].items():
            one = classes[number]
            curve = {"precision": np.array(precision) / 100, "recall": recall, "objects": one["objects"]}
            yield f"{key}/{one['name']}", curve


def _curve_summary(tag, precision, recall, objects):
    """A summary of TensorBoard's plugin: thresholds rise, so recall falls; there are no true negatives."""
    from tensorboard.plugins.pr_curve import summary

    precision, recall = precision[::-1], recall[::-1]
    hits = np.where(precision > 0, recall * objects, 0.0)
    wrong = np.divide(hits * (1 - precision), precision, out=np.zeros_like(hits), where=precision > 0)
    return summary.raw_data_pb(
        tag,
        true_positive_counts=hits.round(),
        false_positive_counts=wrong.round(),
        true_negative_counts=np.zeros_like(hits),
        false_negative_counts=(objects - hits).round(),
        precision=precision,
        recall=recall,
        num_thresholds=len(recall),
    )

"""Evaluation of detectors: runs inference on all validation images and computes the recipe's metrics."""

import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
from keras import ops

from kgarden.build import Data
from kgarden.config.recipe import Recipe
from kgarden.inference.batching import pad_batch
from kgarden.inference.postprocess import to_original
from kgarden.inference.predictor import inference_of
from kgarden.metrics.evaluation_table import EvaluationTable
from kgarden.metrics.open_images import Rules
from kgarden.metrics.report import (
    analyse_errors,
    diagnosis_of,
    evaluate_boxes,
    evaluate_masks,
    report_folder,
    write_folder,
)
from kgarden.structures import BOXES, CROWD, IMAGE_ID, LABELS, MASKS, ORIGINAL_HW, SCORES, SIZE_HW, VALID
from kgarden.utils.files import read_json
from kgarden.utils.fonts import shown_name
from kgarden.utils.output_folder import OutputFolder
from kgarden.utils.paste_masks import run_lengths_of
from kgarden.visualization.draw import draw_detections, draw_truth
from tfrecords.data_statistics import facts_in

MIN_SHORT_SIDE = 480  # px; smaller images are enlarged before detections are drawn


def detect(
    model,
    batches: Iterable,
    categories: list[dict],
    on_batch: Callable[[int], None] | None = None,
) -> tuple[list[dict], list[int], bool]:
    """Runs an inference model on all images and returns COCO results.

    Args:
        model:      of `inference_of`.
        batches:    of (x, meta), as `build_datasets` yields them for validation; a negative image_id marks
                    padding.
        categories: [{"id", "name"}, ...] in label order.
        on_batch:   called with the number of images processed so far.
    Returns:
        (results, image_ids, has_masks): results in COCO form, boxes xywh in px of the original image, with
        the data set's own category ids and, if the model predicts masks, their run lengths as `segmentation`;
        the ids of all images, also of those without detections; whether the model predicts masks.
    """
    results, image_ids, size, has_masks = [], [], None, False
    for x, meta in batches:
        ids = np.asarray(meta[IMAGE_ID])
        size = size or len(ids)
        # The last batch of a canvas may be short. Padded, it does not cause another trace.
        x = pad_batch(x, size)
        detections = model.predict_on_batch(x)
        detections = {key: value[: len(ids)] for key, value in detections.items()}
        original_hw = np.asarray(meta[ORIGINAL_HW])
        detections = to_original(detections, x[SIZE_HW][: len(ids)], original_hw)
        detections = {key: ops.convert_to_numpy(value) for key, value in detections.items()}
        results += results_of(detections, ids, original_hw, categories)
        has_masks = MASKS in detections
        image_ids += [int(one) for one in ids if one >= 0]
        if on_batch:
            on_batch(len(image_ids))
    return results, image_ids, has_masks


def results_of(detections, ids, original_hw, categories):
    """One batch of detections in COCO results form.

    Args:
        detections: numpy, boxes in px of the original image.
        ids:        (B,) of the images; negative: padding.
        original_hw: (B, 2) px.
        categories: [{"id", "name"}, ...] in label order.
    """
    kept = detections[VALID].astype(bool) & (ids >= 0)[:, None]
    image, row = np.nonzero(kept)
    x0, y0, x1, y1 = (detections[BOXES][image, row, side].astype("float64") for side in range(4))
    boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=-1).round(3).tolist()
    labels, scores = detections[LABELS][image, row].tolist(), detections[SCORES][image, row].tolist()
    results = [
        {"image_id": int(ids[i]), "category_id": categories[label]["id"], "bbox": box, "score": score}
        for i, label, box, score in zip(image.tolist(), labels, boxes, scores, strict=True)
    ]
    if MASKS in detections:
        masks, boxes = detections[MASKS], detections[BOXES]
        for result, i, k in zip(results, image, row, strict=True):
            result["segmentation"] = run_lengths_of(masks[i, k], boxes[i, k], original_hw[i])
    return results


def batches_of(data: Data, recipe: Recipe, detector: keras.Model, limit: int | None = None) -> Iterable:
    """Returns the validation batches of the recipe's evaluation, with one view or several views.

    Args:
        data:     kgarden.build.Data.
        recipe:   gives the views.
        detector: gives the divisor of canvas sides.
        limit:    number of images, from the first; None: all.
    """
    if recipe.evaluate.views is None:
        return data.val_batches(limit)
    return data.view_batches(limit, detector.divisor)


def evaluate(
    detector: keras.Model,
    recipe: Recipe,
    batches: Iterable,
    categories: list[dict],
    annotations: str | os.PathLike,
    model=None,
    on_batch: Callable[[int], None] | None = None,
    folder: str | os.PathLike | OutputFolder | None = None,
    explained: bool = True,
    diagnosed: bool = False,
) -> tuple[dict, list[dict]]:
    """Runs inference and computes the recipe's metrics for boxes and, if the model predicts them, masks.

    Args:
        detector, recipe: the detector and the recipe that it was trained with.
        batches:          of (x, meta), see `detect` and `batches_of`.
        categories:       [{"id", "name"}, ...] in label order.
        annotations:      path of the ground truth in COCO form.
        model:            of `inference_of(detector, recipe)`; None: a new one.
        on_batch:         called with the number of images processed so far.
        folder:           for the error analysis and its figures; None: none are written.
        explained:        whether to diagnose a near-zero headline metric.
        diagnosed:        whether errors and thresholds are part of the evaluation, also without a folder.
    Returns:
        (evaluation, results): contents of `evaluation.json` and `detections.json`.
    """
    folder = report_folder(folder) if folder is not None else None
    model = model or inference_of(detector, recipe)
    started = time.perf_counter()
    results, image_ids, has_masks = detect(model, batches, categories, on_batch)
    seconds = time.perf_counter() - started
    table = EvaluationTable(
        read_json(annotations),
        results,
        image_ids,
        max_detections=recipe.evaluate.max_detections,
        per_image=detector.selection.total,
        open_images=Rules(**recipe.evaluate.open_images.model_dump()),
        facts=_facts_beside(annotations),
    )
    metrics = recipe.evaluate.metrics
    evaluation = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "step": int(ops.convert_to_numpy(detector.step.value)),
        **evaluate_boxes(table, metrics, explained=explained),
        **({"views": views.number} if (views := recipe.evaluate.views) else {}),
        **({"masks": evaluate_masks(table, metrics)} if has_masks else {}),
        "images_per_s": round(len(image_ids) / seconds, 2),
        "backend": keras.backend.backend(),
    }
    if folder is not None or diagnosed:
        analysis = analyse_errors(table)
        evaluation |= diagnosis_of(analysis)
        if folder is not None:
            write_folder(folder, evaluation, analysis)
    return evaluation, results


def _facts_beside(annotations):
    """Facts of the data set that annotations.json belongs to, from before its boxes were clipped; or None."""
    folder = pathlib.Path(annotations).parent
    return facts_in(folder) if (folder / "manifest.json").is_file() else None


def first_images(model, batches: Iterable, count: int) -> Iterator[tuple[int, dict, dict]]:
    """Yields (image_id, x of one image, its detections) of the first images of validation batches."""
    for x, meta in batches:
        x = keras.tree.map_structure(np.asarray, x)
        detections = {key: ops.convert_to_numpy(value) for key, value in model.predict_on_batch(x).items()}
        for row in np.flatnonzero(np.asarray(meta[IMAGE_ID]) >= 0):
            if count == 0:
                return
            count -= 1
            of_image = keras.tree.map_structure(lambda value, row=row: value[row], (x, detections))
            yield int(meta[IMAGE_ID][row]), *of_image


def draw_examples(
    inference, batches: Iterable, data: Data, *, count: int, folder: pathlib.Path
) -> list[tuple[int, np.ndarray]]:
    """Draws detections on the first images of validation batches and saves one PNG for each.

    The folder is one of a run: earlier drawings are replaced.

    Args:
        data:  gives classes and ground truth.
        count: number of images.
    Returns:
        [(image_id, (H, 2W, 3) uint8: the image with its objects, and with its detections), ...].
    """
    categories, pairs = data.categories, []
    truth = _objects_by_image(read_json(data.annotations), categories)
    folder = OutputFolder(folder, owned=True)
    names = [shown_name(category) for category in categories]
    for image_id, x, detections in first_images(inference, batches, count):
        height, width = (int(side) for side in x[SIZE_HW])
        factor = max(1, math.ceil(MIN_SHORT_SIDE / min(height, width)))
        image = x["images"][:height, :width].repeat(factor, axis=0).repeat(factor, axis=1)
        drawing = draw_detections(image, {**detections, BOXES: detections[BOXES] * factor}, names)
        with folder.replacing(f"{image_id}.png") as temporary:
            drawing.save(temporary)
        left = image
        if image_id in truth:
            objects, (full_height, full_width) = truth[image_id]
            scale = np.divide(image.shape[1::-1], (full_width, full_height))
            left = draw_truth(image, {**objects, BOXES: objects[BOXES] * np.tile(scale, 2)}, names)
        pairs.append((image_id, np.hstack([np.asarray(left), np.asarray(drawing)])))
    return pairs


def _objects_by_image(truth, categories):
    """{image_id: ({"boxes": (N, 4) xyxy px, "labels": (N,), "crowd": (N,)}, (height, width) px)}

    Images whose size the ground truth does not tell are left out.
    """
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    rows = {one["id"]: [] for one in truth["images"]}
    for one in truth["annotations"]:
        if one["image_id"] in rows:
            rows[one["image_id"]].append(one)
    objects = {}
    for image in (one for one in truth["images"] if one.get("height") and one.get("width")):
        mine = rows[image["id"]]
        boxes = np.array([one["bbox"] for one in mine], "float64").reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([label_of.get(one["category_id"], -1) for one in mine], int)
        crowd = np.array([bool(one.get("iscrowd")) for one in mine], bool)
        size = image["height"], image["width"]
        objects[image["id"]] = {BOXES: boxes, LABELS: labels, CROWD: crowd}, size
    return objects

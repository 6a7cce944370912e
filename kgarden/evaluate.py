"""Numbers of a detector: every picture once, boxes in px of the original picture."""

import functools
import math
import pathlib
import time

import keras
import numpy as np
from keras import ops

from kgarden.build import load_run, prepare_data
from kgarden.errors import UserError
from kgarden.inference.paste_masks import run_lengths_of
from kgarden.inference.postprocess import to_original
from kgarden.inference.predictor import inference_of
from kgarden.metrics.report import analysed, judged, judged_masks, write_folder
from kgarden.runs import best_weights
from kgarden.structures import BOXES, IMAGE_ID, LABELS, MASKS, ORIGINAL_HW, SCORES, SIZE_HW, VALID
from kgarden.utils.files import read_json
from kgarden.visualization.draw import draw_detections

SMALLEST_PICTURE = 480  # px; drawn pictures are enlarged to this short side


def detect(model, batches, categories, on_batch=None):
    """Run an InferenceModel over all pictures.

    Args:
        model:      of `inference_of`.
        batches:    of (x, meta), as `build_datasets` yields them for validation; a negative image_id marks
                    padding.
        categories: [{"id", "name"}, ...] in label order.
        on_batch:   called with the number of pictures done so far.
    Returns:
        (results, image_ids, masked): COCO results form, boxes xywh in px of the original picture, the data
        set's own category ids and, where the model gives masks, their run lengths as `segmentation`; the ids
        of all pictures seen, also those without detections; whether the model gives masks.
    """
    results, image_ids, size, masked = [], [], None, False
    for x, meta in batches:
        ids = np.asarray(meta[IMAGE_ID])
        size = size or len(ids)
        # the last batch of a canvas may be short: filled up, nothing is traced again
        x = keras.tree.map_structure(functools.partial(_filled, size=size), x)
        found = model.predict_on_batch(x)
        found = {key: value[: len(ids)] for key, value in found.items()}
        original_hw = np.asarray(meta[ORIGINAL_HW])
        found = to_original(found, x[SIZE_HW][: len(ids)], original_hw)
        found = {key: ops.convert_to_numpy(value) for key, value in found.items()}
        results += _results(found, ids, original_hw, categories)
        masked = MASKS in found
        image_ids += [int(one) for one in ids if one >= 0]
        if on_batch:
            on_batch(len(image_ids))
    return results, image_ids, masked


def _filled(array, size):
    """The last row again until there are `size` of them."""
    array = np.asarray(array)
    return np.concatenate([array, array[-1:].repeat(size - len(array), axis=0)])


def _results(found, ids, original_hw, categories):
    """One batch of detections in COCO results form."""
    kept = found[VALID].astype(bool) & (ids >= 0)[:, None]
    image, row = np.nonzero(kept)
    x0, y0, x1, y1 = (found[BOXES][image, row, side].astype("float64") for side in range(4))
    boxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=-1).round(3).tolist()
    labels, scores = found[LABELS][image, row].tolist(), found[SCORES][image, row].tolist()
    results = [
        {"image_id": int(ids[i]), "category_id": categories[label]["id"], "bbox": box, "score": score}
        for i, label, box, score in zip(image.tolist(), labels, boxes, scores, strict=True)
    ]
    if MASKS in found:
        for one, i, k in zip(results, image, row, strict=True):
            one["segmentation"] = run_lengths_of(found[MASKS][i, k], found[BOXES][i, k], original_hw[i])
    return results


def batches_of(data, recipe, detector, limit=None):
    """Validation batches as the recipe's evaluation sees them: of one view, or of several.

    Args:
        data:  kgarden.build.Data.
        limit: only the first so many pictures.
    """
    if recipe.evaluate.views is None:
        return data.val_batches(limit)
    return data.view_batches(limit, detector.divisor)


def evaluate(
    detector,
    recipe,
    batches,
    categories,
    annotations,
    model=None,
    on_batch=None,
    folder=None,
    explained=True,
):
    """Detect and judge by the recipe's metrics: boxes, and masks beside them where the model gives masks.

    Args:
        detector, recipe: what is evaluated.
        batches:          of (x, meta), see `detect` and `batches_of`.
        categories:       [{"id", "name"}, ...] in label order.
        annotations:      path of the ground truth in COCO form.
        model:            of `inference_of(detector, recipe)`, to use one again.
        folder:           for the analysis and its figures, which are left out without it.
        explained:        a headline of nearly 0 comes with the cause.
    Returns:
        (evaluation, results): what `evaluation.json` and `detections.json` hold.
    """
    model = model or inference_of(detector, recipe)
    started = time.perf_counter()
    results, image_ids, masked = detect(model, batches, categories, on_batch)
    seconds = time.perf_counter() - started
    truth = read_json(annotations)
    evaluation = {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "step": int(ops.convert_to_numpy(detector.step.value)),
        **judged(truth, results, image_ids, recipe.evaluate.metrics, explained=explained),
        **({"views": views.number} if (views := recipe.evaluate.views) else {}),
        **({"masks": judged_masks(truth, results, image_ids, recipe.evaluate.metrics)} if masked else {}),
        "images_per_s": round(len(image_ids) / seconds, 2),
        "backend": keras.backend.backend(),
    }
    if folder is not None:
        analysis = analysed(truth, results, image_ids)
        write_folder(folder, evaluation, analysis)
        evaluation["errors"] = analysis["errors"]
    return evaluation, results


def evaluate_run(run, data=None, weights=None, overrides=None, on_batch=None, folder=None):
    """Measure a run's weights on all pictures of its validation data.

    Args:
        run:       directory.
        data:      other shards than the recipe's `data.val`.
        weights:   another file than the run's best weights.
        overrides: other settings at inference, {"model.proposer.test": 128, ...}.
        folder:    for the analysis and its figures, which are left out without it.
    Returns:
        (evaluation, results), see `evaluate`.
    """
    overrides = {**(overrides or {}), **({"data.val": data} if data else {})}
    recipe, detector, categories = load_run(run, weights, overrides)
    prepared = prepare_data(recipe, cache=pathlib.Path(run) / "data", splits=("val",))
    if prepared.categories != categories:
        raise UserError(f"the classes of {recipe.data.val[0].glob or 'data.val'} are not those of {run}")
    evaluation, results = evaluate(
        detector,
        recipe,
        batches_of(prepared, recipe, detector),
        categories,
        prepared.annotations,
        on_batch=on_batch,
        folder=folder,
    )
    return {**evaluation, "weights": pathlib.Path(weights or best_weights(run)).name}, results


def first_pictures(model, batches, count):
    """The first pictures of validation batches: (image_id, x of one picture, detections of one picture)."""
    for x, meta in batches:
        x = keras.tree.map_structure(np.asarray, x)
        found = {key: ops.convert_to_numpy(value) for key, value in model.predict_on_batch(x).items()}
        for row in np.flatnonzero(np.asarray(meta[IMAGE_ID]) >= 0):
            if count == 0:
                return
            count -= 1
            alone = keras.tree.map_structure(lambda value, row=row: value[row], (x, found))
            yield int(meta[IMAGE_ID][row]), *alone


def draw_examples(inference, batches, categories, count, folder):
    """Detections painted on the first pictures of validation batches, one PNG each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [category["name"] for category in categories]
    for image_id, x, found in first_pictures(inference, batches, count):
        height, width = (int(side) for side in x[SIZE_HW])
        factor = max(1, math.ceil(SMALLEST_PICTURE / min(height, width)))
        image = x["images"][:height, :width].repeat(factor, axis=0).repeat(factor, axis=1)
        picture = draw_detections(image, {**found, BOXES: found[BOXES] * factor}, names)
        picture.save(folder / f"{image_id}.png")

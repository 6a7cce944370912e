"""Benchmarks of the input pipeline (relative to decoding alone), its memory, and COCO evaluation."""

import dataclasses
import importlib.util
import json
import pathlib
import time

import numpy as np

from kgarden.bench.timing import median, resident_memory
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError

WAYS = {  # settings that give the same images, except for the blur of scaled decoding
    "recipe": {},
    "exact": {"scaled_decode": False, "cache": "none"},
    "scaled": {"scaled_decode": True, "cache": "none"},
    "encoded": {"scaled_decode": False, "cache": "encoded"},
    "scaled_encoded": {"scaled_decode": True, "cache": "encoded"},
    "decoded": {"scaled_decode": False, "cache": "decoded"},
}


def data_rates(recipe: Recipe, repeats: int, data, seconds: float = 3.0) -> dict:
    """Measures images per second of the training pipeline, and of reading and decoding the same shards alone.

    The streams are interleaved. `over_decode_only` is relative to decoding at full size, `over_its_decoding`
    to decoding at the ratio that scaled decoding uses for the recipe's largest size.
    """
    from kgarden.data.pipeline import decode_only, decoder_ratio

    _check_data("data", data)
    settings, batch_size = recipe.data, recipe.data.batch_size
    ratio = decoder_ratio(data.train, max(settings.short_side_px), settings.long_side_px)
    streams = {"decode_only": decode_only(data.train, batch_size=batch_size)}
    streams["decode_only_scaled"] = decode_only(data.train, batch_size=batch_size, ratio=ratio)
    for name, changes in WAYS.items():
        changed = recipe.model_copy(update={"data": settings.model_copy(update=changes)})
        streams[name] = dataclasses.replace(data, recipe=changed).train_batches()
    rates = {name: [] for name in streams}
    for _ in range(repeats):
        for name, stream in streams.items():
            rates[name].append(_rate(stream, batch_size, seconds))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    full, scaled = medians.pop("decode_only"), medians.pop("decode_only_scaled")
    ways = {
        name: {
            "images_per_s": round(rate, 1),
            "over_decode_only": round(rate / full, 3),
            "over_its_decoding": round(rate / (scaled if "scaled" in name else full), 3),
        }
        for name, rate in medians.items()
    }
    return {
        "short_side_px": list(settings.short_side_px),
        "decode_only_images_per_s": round(full, 1),
        "decoder_ratio": ratio,
        "decode_only_scaled_images_per_s": round(scaled, 1),
        "pipeline_over_decode_only": ways["recipe"]["over_decode_only"],
        **{f"{name}_images_per_s": way["images_per_s"] for name, way in ways.items()},
        "ways": ways,
    }


def _rate(batches, batch_size, seconds):
    stream = iter(batches)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds / 6:  # warm-up: autotuning of threads and buffers
        next(stream)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(stream)
        count += batch_size
    return count / (time.perf_counter() - started)


def data_memory(recipe: Recipe, repeats: int, data, images: int = 20_000, points: int = 10) -> dict:
    """Measures the resident memory of this process during iteration over the training pipeline, MiB."""
    _check_data("memory", data)
    stream, batch_size = iter(data.train_batches()), recipe.data.batch_size
    memory, count = {}, 0
    for point in range(1, points + 1):
        while count < images * point // points:
            next(stream)
            count += batch_size
        memory[count] = resident_memory()
    later = list(memory.values())[points // 5 :]
    return {"grown_mib": round(later[-1] - later[0], 1), "last_mib": later[-1], "mib_after_pictures": memory}


def _check_data(kind, data):
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"bench --what {kind}: the pipeline needs TensorFlow")
    if data is None:
        raise UserError(f"bench --what {kind} needs the recipe's data; set data.train and data.val")


def evaluation(recipe: Recipe, repeats: int, data) -> dict:
    """Times COCO evaluation with the ground truth of the recipe's validation set as detections."""
    if data is None:
        raise UserError("bench --what eval needs the recipe's data; set data.val")
    from kgarden.metrics.coco import coco_metrics

    truth = json.loads(pathlib.Path(data.annotations).read_text())
    keys = ("image_id", "category_id", "bbox")
    results = [{key: one[key] for key in keys} | {"score": 1.0} for one in truth["annotations"]]
    seconds = median(lambda: coco_metrics(truth, results), max(1, repeats // 2))
    return {"boxes": len(results), "images": len(truth["images"]), "evaluation_s": round(seconds, 3)}

"""How long a recipe's steps take, part by part, beside a yardstick measured in the same run.

Absolute seconds belong to one machine on one day. So every report carries ratios: inference over
keras.applications' ResNet-50 trunk on the same canvas, the input pipeline over decoding alone.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import resource
import time

import keras
import numpy as np

from kgarden.schema import BOXES, CROWD, IMAGE_ID, IMAGES, LABELS, SIZE_HW, UserError

KINDS = ("train", "infer", "data", "memory", "eval")
REPEATS = 5


def bench(recipe, what=("train", "infer"), repeats=REPEATS, data=None, report=None):
    """Measure a recipe.

    Args:
        recipe:  kgarden.recipe.Recipe.
        what:    some of "train" (a step on made-up pictures), "infer" (whole and by part), "data" (the
                 input pipeline over decoding alone), "memory" (of the input pipeline over 20,000 pictures),
                 "eval" (COCO evaluation of made-up detections).
        repeats: timed runs of each, after one that is not counted.
        data:    kgarden.build.Data, needed for "data", "memory" and "eval".
        report:  called with one line of text as each figure arrives.
    Returns:
        {"machine": {...}, "train": {...}, ...}: medians in seconds, ratios, peak memory in GiB.
    Raises:
        UserError: an unknown kind, or one that needs TensorFlow or data where there is none.
    """
    unknown = [kind for kind in what if kind not in KINDS]
    if unknown:
        raise UserError(f"bench: {unknown[0]!r} cannot be measured; one of {', '.join(KINDS)}")
    measures = {"train": _train, "infer": _infer, "data": _data, "memory": _memory, "eval": _eval}
    found = {"recipe": recipe.name, "recipe_sha256": recipe.digest(), "machine": machine()}
    for kind in what:
        found[kind] = measures[kind](recipe, repeats, data)
        for key, value in found[kind].items():
            if report and not isinstance(value, dict | list):
                report(f"{kind}: {key} {value}")
    return found


def machine():
    """What the figures were measured on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "backend": keras.backend.backend(),
        "devices": _devices(),
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def _devices():
    if keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.devices()]
    import tensorflow as tf

    return [device.device_type for device in tf.config.list_physical_devices()]


def made_up_batch(recipe, num_classes, batch_size, objects=8, seed=0):
    """A batch of noise with plausible boxes on the recipe's first canvas; content hardly changes times.

    Returns:
        x, y as in kgarden.schema, numpy.
    """
    from kgarden.build import canvases

    height, width = canvases(recipe)[0]
    rng = np.random.default_rng(seed)
    rows = recipe.data.max_objects
    corner = rng.uniform(0, 0.6, (batch_size, rows, 2)) * [width, height]
    side = rng.uniform(0.05, 0.4, (batch_size, rows, 2)) * [width, height]
    labels = np.where(np.arange(rows) < objects, rng.integers(0, num_classes, (batch_size, rows)), -1)
    x = {
        IMAGES: rng.integers(0, 256, (batch_size, height, width, 3), dtype="uint8"),
        SIZE_HW: np.tile(np.int32([height, width]), (batch_size, 1)),
    }
    y = {
        BOXES: np.concatenate([corner, corner + side], axis=-1).astype("float32"),
        LABELS: labels.astype("int32"),
        CROWD: np.zeros((batch_size, rows), bool),
        IMAGE_ID: np.arange(batch_size, dtype="int32"),
    }
    return x, y


# Training and inference.


def _train(recipe, repeats, data):
    from kgarden.build import build_model, build_optimizer

    num_classes = _num_classes(recipe, data)
    detector = build_model(recipe, num_classes)
    jit = keras.backend.backend() == "jax" or recipe.jit
    detector.compile(optimizer=build_optimizer(recipe), jit_compile=jit)
    x, y = made_up_batch(recipe, num_classes, recipe.data.batch_size)
    started = time.perf_counter()
    detector.train_on_batch(x, y)
    first = time.perf_counter() - started
    seconds = _median(lambda: detector.train_on_batch(x, y), repeats)
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "batch_size": recipe.data.batch_size,
        "precision": recipe.precision,
        "first_step_s": round(first, 2),
        "step_s": round(seconds, 4),
        "images_per_s": round(recipe.data.batch_size / seconds, 2),
        "peak_memory_gib": peak_memory(),
    }


def _infer(recipe, repeats, data):
    from kgarden.build import build_model

    num_classes = _num_classes(recipe, data)
    detector = build_model(recipe, num_classes)
    x, _ = made_up_batch(recipe, num_classes, 1)
    x = {key: keras.ops.convert_to_tensor(value) for key, value in x.items()}
    yardstick = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(*x[IMAGES].shape[1:3], 3)
    )
    pixels = keras.ops.cast(x[IMAGES], "float32")
    whole = detector.inference_model()
    calls = {"resnet50_trunk": (yardstick, pixels), "whole": (whole, x), **_parts(detector, x)}
    medians = _alternate({name: _compiled(*call) for name, call in calls.items()}, repeats)
    trunk, total = medians.pop("resnet50_trunk"), medians.pop("whole")
    shares = {name: {"s": round(s, 4), "share": round(s / total, 3)} for name, s in medians.items()}
    return {
        "canvas": list(x[IMAGES].shape[1:3]),
        "whole_s": round(total, 4),
        "resnet50_trunk_s": round(trunk, 4),
        "trunks": round(total / trunk, 2),
        "parts": shares,
        "peak_memory_gib": peak_memory(),
    }


def _parts(detector, x):
    """Every part on the outputs of the one before it.   dict name -> (function, its arguments ...)."""
    size_hw = x[SIZE_HW]
    images = detector.pixels(x[IMAGES], size_hw)
    features = detector.backbone(images)
    pyramid = detector.neck(features)
    parts = {
        "pixels": (detector.pixels, x[IMAGES], size_hw),
        "backbone": (detector.backbone, images),
        "neck": (detector.neck, features),
    }
    if "dense_head" in detector.parts():
        raw = detector.dense_head(pyramid)
        return parts | {
            "dense_head": (detector.dense_head, pyramid),
            "candidates_and_selection": (lambda raw: detector.detect(x, raw), raw),
        }
    raw = detector.proposer(pyramid)

    def propose(raw):
        return detector.proposer.proposals(raw, size_hw, training=False)

    def refine(pyramid, proposals):
        return detector.roi_head(pyramid, proposals, size_hw)

    def select(refined, proposals):
        return detector.selection(detector.roi_head.candidates(refined, proposals, size_hw))

    proposals = propose(raw)
    return parts | {
        "proposer_head": (detector.proposer, pyramid),
        "proposals": (propose, raw),
        "roi_head": (refine, pyramid, proposals),
        "roi_align_once": (detector.roi_head.pool, pyramid, proposals[BOXES]),
        "selection": (select, refine(pyramid, proposals), proposals),
    }


# Data and evaluation.


WAYS = {  # to the same pictures, but for the softness of scaled decoding
    "recipe": {},
    "exact": {"scaled_decode": False, "cache": "none"},
    "scaled": {"scaled_decode": True, "cache": "none"},
    "encoded": {"scaled_decode": False, "cache": "encoded"},
    "scaled_encoded": {"scaled_decode": True, "cache": "encoded"},
    "decoded": {"scaled_decode": False, "cache": "decoded"},
}


def _data(recipe, repeats, data, seconds=3.0):
    """Pictures per second of the training pipeline, and of reading and decoding the same shards alone.

    All in turn, several rounds of it. `over_decode_only` compares with whole decoding, `over_its_decoding`
    with decoding at the ratio that scaled decoding uses for the recipe's largest size.
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
    median = {name: float(np.median(values)) for name, values in rates.items()}
    whole, scaled = median.pop("decode_only"), median.pop("decode_only_scaled")
    ways = {
        name: {
            "images_per_s": round(rate, 1),
            "over_decode_only": round(rate / whole, 3),
            "over_its_decoding": round(rate / (scaled if "scaled" in name else whole), 3),
        }
        for name, rate in median.items()
    }
    return {
        "short_side_px": list(settings.short_side_px),
        "decode_only_images_per_s": round(whole, 1),
        "decoder_ratio": ratio,
        "decode_only_scaled_images_per_s": round(scaled, 1),
        "pipeline_over_decode_only": ways["recipe"]["over_decode_only"],
        **{f"{name}_images_per_s": way["images_per_s"] for name, way in ways.items()},
        "ways": ways,
    }


def _rate(batches, batch_size, seconds):
    stream = iter(batches)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds / 6:  # threads and buffers find their numbers
        next(stream)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(stream)
        count += batch_size
    return count / (time.perf_counter() - started)


def _memory(recipe, repeats, data, pictures=20_000, points=10):
    """Resident memory of this process while the training pipeline hands out pictures, MiB."""
    _check_data("memory", data)
    stream, batch_size = iter(data.train_batches()), recipe.data.batch_size
    found, seen = {}, 0
    for point in range(1, points + 1):
        while seen < pictures * point // points:
            next(stream)
            seen += batch_size
        found[seen] = resident_memory()
    later = list(found.values())[points // 5 :]
    return {"grown_mib": round(later[-1] - later[0], 1), "last_mib": later[-1], "mib_after_pictures": found}


def _check_data(kind, data):
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"bench --what {kind}: the pipeline needs TensorFlow")
    if data is None:
        raise UserError(f"bench --what {kind}: the recipe's data is needed")


def _eval(recipe, repeats, data):
    """pycocotools on the truth of the recipe's validation set, given back as detections."""
    if data is None:
        raise UserError("bench --what eval: the recipe's data is needed")
    from kgarden.metrics.coco import coco_metrics

    truth = json.loads(pathlib.Path(data.annotations).read_text())
    keys = ("image_id", "category_id", "bbox")
    results = [{key: one[key] for key in keys} | {"score": 1.0} for one in truth["annotations"]]
    seconds = _median(lambda: coco_metrics(truth, results), max(1, repeats // 2))
    return {"boxes": len(results), "images": len(truth["images"]), "evaluation_s": round(seconds, 3)}


# Clockwork.


def _num_classes(recipe, data):
    if recipe.model.num_classes:
        return recipe.model.num_classes
    return len(data.categories) if data is not None else 80


def _compiled(function, *arguments):
    """The call compiled as the backend does it; it returns when the work is done.

    Tensors are arguments and not constants of the graph, which a compiler would compute beforehand.
    """
    if keras.backend.backend() == "jax":
        import jax

        jitted = jax.jit(lambda *tensors: function(*tensors))
        return lambda: jax.block_until_ready(jitted(*arguments))
    import tensorflow as tf

    graph = tf.function(lambda *tensors: function(*tensors))
    return lambda: [tensor.numpy() for tensor in tf.nest.flatten(graph(*arguments))]


def _median(function, repeats):
    return _alternate({"one": function}, repeats)["one"]


def _alternate(functions, repeats):
    """Median seconds of each, run in turn so that a machine's moods meet all alike."""
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def peak_memory():
    """Largest resident size of this process so far, GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def resident_memory():
    """Resident size of this process now, MiB; where the system does not say, the largest so far."""
    status = pathlib.Path("/proc/self/statm")
    if not status.is_file():
        return round(1024 * peak_memory(), 1)
    return round(int(status.read_text().split()[1]) * resource.getpagesize() / 2**20, 1)

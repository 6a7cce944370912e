"""Mutated images, annotations, recipes and checkpoints: each is read, or refused in one line, and soon.

    python tests/support/programs/fuzz.py [COUNT] [SEED] [KIND ...]

Prints one line of JSON for each kind; exits with 1 if anything but a refusal was raised. A case that takes
more than SECONDS ends the process with the traceback of where it is.
"""

import contextlib
import copy
import faulthandler
import io
import json
import os
import pathlib
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings

SECONDS = 20
ODD = [None, True, -1, 0, 0.5, 7.0, 1e308, -1e308, float("nan"), float("inf"), 2**63, 10**400, "", "7", "cat"]
ODD += ["../../etc/passwd", "a\0b", "\ud800", "é", "[/red]", "$x$$", "x" * 5000, [], {}, [[]], [1, 2, 3, 4]]
ODD += [{"size": [1, 1], "counts": "00"}, {"size": [30, 40], "counts": [-1, 1201]}, [[0, 0, 9e5, 9e5] * 9]]
ODD += [{"size": [30, 40], "counts": "o" * 40}, {"size": [10**6, 10**6], "counts": [10**12]}]
SCRAPS = [
    "",
    "{",
    "}",
    "[",
    "]",
    ":",
    "- ",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!set ",
    "? ",
    "|",
    "'",
    '"',
    "\t",
]
SCRAPS += ["\n", "\n  ", "#", "1e999", ".nan", "9" * 50, "2001-99-99", "~", "\0", "\ufeff", "é", "null", "-1"]
SCRAPS += ["[[[["]
HW = 30, 40


def mutated_bytes(content, draw):
    """Bytes with one to eight changes, most of them near the start, where headers are."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        at = (
            draw.randrange(len(content)) if draw.random() < 0.5 else min(draw.randrange(64), len(content) - 1)
        )
        action = draw.randrange(5)
        if action == 0:
            content[at] = draw.randrange(256)
        elif action == 1:
            content[at : at + 4] = draw.choice(
                [b"\xff" * 4, b"\0" * 4, struct.pack(">I", 2**20), b"\x7f\xff\xff\xff"]
            )
        elif action == 2:
            del content[at : at + draw.choice([1, 4, 50])]
        elif action == 3:
            content[at:at] = content[at : at + draw.choice([1, 8, 100])]
        elif len(content) > 10:
            del content[max(10, at) :]
        content = content or bytearray(b"\0")
    return bytes(content)


def mutated_tree(tree, draw):
    """A tree of JSON with one to four parts replaced, taken out or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 4)):
        parent, key, here = None, None, tree
        while isinstance(here, dict | list) and here and (parent is None or draw.random() < 0.8):
            parent, key = here, draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
            here = here[key]
        if parent is None:
            continue
        action = draw.randrange(4)
        if action < 2:
            parent[key] = copy.deepcopy(draw.choice(ODD))
        elif action == 2:
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(here))
    return tree


def mutated_text(text, draw):
    """A text with one to four scraps put in, taken out or over others, or cut off."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(text))
        text = text[:at] + draw.choice(SCRAPS) + text[at + draw.choice([0, 0, 1, 3, 20]) :]
    return text[: draw.randint(0, len(text))] if draw.random() < 0.1 else text


def images(draw, folder):
    """Cases of `tfrecords.images`: Pillow from a file, TensorFlow from bytes."""
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from tfrecords.images import decode, decode_mask, encode, read, read_pixels
    from tfrecords.schema import DataError

    noise = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype="uint8")
    colour, seeds = Image.fromarray(noise), []
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode, form, options in (
        *[(mode, "PNG", {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")],
        *[("RGB", "JPEG", options) for options in ({}, {"progressive": True}, {"exif": exif})],
        *[("CMYK", "JPEG", {}), ("L", "JPEG", {}), ("P", "GIF", {}), ("RGB", "BMP", {}), ("P", "BMP", {})],
        *[("RGB", "WEBP", options) for options in ({}, {"lossless": True}, {"exif": exif})],
        *[
            ("RGB", "TIFF", {"compression": one})
            for one in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits")
        ],
        *[("F", "TIFF", {}), ("I", "TIFF", {}), ("1", "TIFF", {"compression": "group4"})],
        *[
            ("RGB", "JPEG2000", {}),
            ("RGB", "AVIF", {}),
            ("RGB", "PPM", {}),
            ("RGB", "MPO", {}),
            ("RGB", "DIB", {}),
        ],
    ):
        file = io.BytesIO()
        colour.convert(mode).save(file, form, **options)
        seeds.append(file.getvalue())
    path = folder / "image.jpg"

    def case():
        content = mutated_bytes(draw.choice(seeds), draw)
        path.write_bytes(content)
        outcomes = []
        for function, argument, refusal in (
            (read, path, DataError),
            (lambda one: encode(read_pixels(one), "png"), path, DataError),
            (lambda one: decode(one).numpy(), content, tf.errors.OpError),
            (lambda one: decode_mask(one).numpy(), content, tf.errors.OpError),
        ):
            try:
                function(argument)
                outcomes.append(True)
            except refusal as error:
                assert refusal is not DataError or "\n" not in str(error)
                outcomes.append(False)
        return any(outcomes)

    return case


def annotations(draw, folder):
    """Cases of the COCO converter and of scoring, boxes and masks."""
    import tensorflow  # noqa: F401, its import would count as the first case's time
    from PIL import Image

    from kgarden.errors import UserError
    from kgarden.metrics.report import score_file
    from tfrecords.converters import coco
    from tfrecords.schema import DataError

    polygon = [[4.0, 3, 20, 3, 4, 25]]
    codes = [
        polygon,
        {"size": list(HW), "counts": [600, 300, 300]},
        {"size": list(HW), "counts": "hb0\\90\\9"},
    ]
    truth = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": HW[1], "height": HW[0]} for n in (1, 2)],
        "annotations": [
            {"id": n + 1, "image_id": 1 + n % 2, "category_id": 3 + 4 * (n % 2), "bbox": [1, 2, 10, 20],
             "area": 90.5, "iscrowd": n % 2, "segmentation": code}
            for n, code in enumerate(codes)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }  # fmt: skip
    found = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": [1, 2, 10, 20], "score": 0.5,
         "segmentation": one["segmentation"]}
        for one in truth["annotations"]
    ]  # fmt: skip
    for n in (1, 2):
        Image.new("RGB", HW[::-1]).save(folder / f"{n}.png")

    def written(name, tree, change):
        text = json.dumps(mutated_tree(tree, draw) if change else tree)
        text = mutated_text(text, draw) if change and draw.random() < 0.1 else text
        (folder / name).write_text(text, encoding="utf-8", errors="replace")
        return folder / name

    def case():
        which = draw.randrange(3)
        annotated = written("truth.json", truth, which != 1)
        try:
            if which == 0:
                with tempfile.TemporaryDirectory(dir=folder) as to:
                    coco.build(pathlib.Path(to, "to"), images=folder, annotations=annotated, shards=1)
            else:
                detections = written("found.json", found, which == 1)
                score_file(detections, annotated, ("coco", "voc07"), draw.choice(["bbox", "segm"]))
            return True
        except (DataError, UserError) as error:
            assert "\n" not in str(error).strip()
            return False

    return case


def recipes(draw, folder):
    """Cases of `load_recipe`, with the rows of a recipe."""
    import yaml

    from kgarden.config.loading import load_recipe, packaged_recipes
    from kgarden.errors import UserError

    texts = [path.read_text() for path in packaged_recipes().values()]
    path = folder / "recipe.yaml"

    def case():
        text = draw.choice(texts)
        if draw.random() < 0.5:
            text = mutated_text(text, draw)
        else:
            with contextlib.suppress(ValueError, OverflowError):
                text = yaml.safe_dump(mutated_tree(yaml.safe_load(text), draw))
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            rows = list(load_recipe(path).rows)
            load_recipe(path, row=draw.choice([*rows, "none"]))
            return True
        except UserError as error:
            assert "\n" not in str(error)
            return False

    return case


def checkpoints(draw, folder):
    """Cases of `load_checkpoint`: damaged archives."""
    import keras

    from kgarden.errors import UserError
    from kgarden.training.checkpoint import LATEST, load_checkpoint, save_checkpoint

    detector = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    optimizer = keras.optimizers.SGD(momentum=0.9)
    optimizer.build(detector.trainable_variables)
    save_checkpoint(folder, detector, optimizer, None, {"step": 3})
    content = (folder / LATEST).read_bytes()

    def case():
        for other in folder.iterdir():
            other.unlink()
        (folder / LATEST).write_bytes(mutated_bytes(content, draw))
        try:
            load_checkpoint(folder, detector, optimizer, None)
            return True
        except UserError as error:
            assert "\n" not in str(error)
            return False

    return case


KINDS = {"images": images, "annotations": annotations, "recipes": recipes, "checkpoints": checkpoints}
SHARES = {"images": 0.4, "annotations": 0.2, "recipes": 0.2, "checkpoints": 0.2}


def run(kind, count, seed):
    """One kind -> what happened, as a dictionary."""
    draw, accepted, failures, slowest, started = random.Random(seed), 0, [], 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        case = KINDS[kind](draw, pathlib.Path(folder))
        for number in range(count):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            begun = time.perf_counter()
            try:
                accepted += case()
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                failures.append(
                    f"{number}: {error!r:.200} ({pathlib.Path(where.filename).name}:{where.lineno})"
                )
            slowest = max(slowest, time.perf_counter() - begun)
        faulthandler.cancel_dump_traceback_later()
    seconds = round(time.perf_counter() - started, 1)
    outcome = {"kind": kind, "cases": count, "read": accepted, "refused": count - accepted - len(failures)}
    return {**outcome, "failures": failures, "slowest_s": round(slowest, 2), "seconds": seconds}


def main(arguments):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    count, seed = (int(one) for one in [*arguments, *(5000, 0)[len(arguments) :]][:2])
    failed = False
    for kind in arguments[2:] or KINDS:
        outcome = run(kind, round(count * SHARES[kind]), seed)
        print(json.dumps(outcome), flush=True)
        failed |= bool(outcome["failures"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

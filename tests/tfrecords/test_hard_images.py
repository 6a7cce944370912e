"""Images that trip up readers, each as its manifest expects; the manifest's facts are Pillow's."""

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from PIL import Image, ImageOps  # noqa: E402
from support import real_data  # noqa: E402
from support.programs import run  # noqa: E402

from tfrecords.images import decode, read  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

FOLDER = real_data.DATA / "hard_images"
MANIFEST = FOLDER / "manifest.json"
FILES = json.loads(MANIFEST.read_text()) if MANIFEST.is_file() else []
MEMORY = 2**30  # bytes that refusing an image may take beside TensorFlow; the headers claim many times that


def named(*expectations):
    return [pytest.param(one, id=one["file"]) for one in FILES if one["expect"] in expectations]


def test_hard_images_exist():
    real_data.folder("hard_images")
    assert len(FILES) == len({one["file"] for one in FILES}) > 0


@pytest.mark.parametrize("one", named("decode"))
def test_readable_images_are_read(one):
    image = read(FOLDER / "images" / one["file"])
    pixels = decode(image.encoded).numpy()
    width, height = one["upright_size"]
    assert (image.height, image.width) == (height, width)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    with Image.open(FOLDER / "images" / one["file"]) as opened:
        if opened.mode.startswith("I"):
            return  # 16 bits: tests/tfrecords/test_images.py has made ones
        shown = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), "float32")
    # what was turned or of another kind is JPEG again: not exact, but the same image
    assert np.abs(pixels - shown).mean() < 3


@pytest.mark.parametrize("one", named("reject"))
def test_unreadable_images_are_rejected(one):
    with pytest.raises(DataError) as refusal:
        read(FOLDER / "images" / one["file"])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("one", named("decoder-dependent"))
def test_ambiguous_images_are_read_or_rejected(one):
    try:
        image = read(FOLDER / "images" / one["file"])
    except DataError:
        return
    assert decode(image.encoded).shape == (image.height, image.width, 3)


def test_rejecting_takes_little_memory():
    """All of them in one process whose memory grows by no more than MEMORY."""
    real_data.folder("hard_images")
    program = f"""
import pathlib
import tensorflow as tf
from kgarden.bench.timing import peak_memory
from tfrecords.images import decode, read
from tfrecords.schema import DataError
decode(tf.io.encode_jpeg(tf.zeros((8, 8, 3), tf.uint8)))  # what TensorFlow needs anyway
peak = peak_memory()
for path in sorted(pathlib.Path({str(FOLDER / "images")!r}).iterdir()):
    try:
        read(path)
    except DataError:
        pass
print(peak_memory() - peak)
"""
    assert float(run("-c", program).split()[-1]) * 2**30 < MEMORY

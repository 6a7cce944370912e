import io
import os

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from tfrecords import images  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

SCENE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype="uint8").repeat(8, 0).repeat(8, 1)  # 48x64


def save(path, mode="RGB", **options):
    Image.fromarray(SCENE).convert(mode).save(path, **options)
    return path


def shown(path):
    """The pixels as Pillow shows them."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "name,mode",
    [
        ("a.jpg", "RGB"),
        ("a.jpg", "L"),
        ("a.png", "RGB"),
        ("a.png", "RGBA"),
        ("a.png", "P"),
        ("a.png", "L"),
        ("a.png", "LA"),
        ("a.png", "1"),
    ],
)
def test_bytes_that_tensorflow_decodes_are_kept(tmp_path, name, mode):
    path = save(tmp_path / name, mode)
    image = images.read(path)
    assert image.encoded == path.read_bytes()
    assert (image.height, image.width) == (48, 64)
    np.testing.assert_array_equal(images.decode(image.encoded), shown(path))


def test_progressive_jpeg_is_kept(tmp_path):
    path = save(tmp_path / "a.jpg", progressive=True)
    assert images.read(path).encoded == path.read_bytes()


@pytest.mark.parametrize(
    "name,mode,image_format",
    [
        ("a.bmp", "RGB", "png"),
        ("a.webp", "RGB", "png"),
        ("a.tif", "CMYK", "png"),
        ("a.gif", "P", "png"),
        ("a.jpg", "CMYK", "jpeg"),
    ],
)
def test_other_formats_are_reencoded(tmp_path, name, mode, image_format):
    path = save(tmp_path / name, mode)
    image = images.read(path)
    assert image.format == image_format
    difference = np.abs(images.decode(image.encoded).numpy().astype(int) - shown(path))
    assert difference.mean() < (3 if image_format == "jpeg" else 1e-9)


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    gray = np.arange(64, dtype="uint16").reshape(8, 8) * 1000
    Image.fromarray(gray).save(tmp_path / "a.png")
    decoded = images.decode(images.read(tmp_path / "a.png").encoded).numpy()
    np.testing.assert_array_equal(decoded[..., 0], gray // 256)


def turned(path, orientation):
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    return save(path, exif=exif, quality=95, subsampling=0)


@pytest.mark.parametrize("expected_hw", [None, (64, 48)])
def test_exif_orientation_is_applied(tmp_path, expected_hw):
    image = images.read(turned(tmp_path / "a.jpg", 6), expected_hw)
    assert (image.height, image.width) == (64, 48)
    difference = np.abs(images.decode(image.encoded).numpy().astype(int) - np.rot90(SCENE, -1))
    assert difference.mean() < 5


def test_exif_orientation_is_ignored_if_the_annotated_size_is_the_stored_one(tmp_path):
    path = turned(tmp_path / "a.jpg", 6)
    assert images.read(path, (48, 64)).encoded == path.read_bytes()


@pytest.mark.parametrize(
    "content,message", [(None, "no such file"), (b"", "not an image"), (b"hello", "not an image")]
)
def test_invalid_images(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=message):
        images.read(tmp_path / "a.jpg")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_paths_that_are_not_files(tmp_path, make):
    make(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="not a file"):
        images.read(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_truncated_file_is_damaged(tmp_path, name):
    path = save(tmp_path / name)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    with pytest.raises(DataError, match="damaged"):
        images.read(path)


def test_size_that_differs_from_the_annotations(tmp_path):
    with pytest.raises(DataError, match="64x48, its annotations say 640x480"):
        images.read(save(tmp_path / "a.jpg"), (480, 640))


@pytest.mark.parametrize("ratio,hw", [(2, (24, 32)), (4, (12, 16)), (8, (6, 8))])
def test_downsampled_decoding(ratio, hw):
    encoded = images.encode(SCENE, "jpeg").encoded
    small = images.decode(encoded, ratio).numpy()
    assert small.shape == (*hw, 3)
    means = SCENE.reshape(hw[0], ratio, hw[1], ratio, 3).mean(axis=(1, 3))
    assert np.abs(small - means).mean() < 3


def test_decoding_equals_pillow_on_a_photo_like_jpeg():
    y, x = np.mgrid[:120, :161]
    smooth = np.stack([y + x, 2 * y, 255 - x], axis=-1) % 256
    for options in ({"quality": 75}, {"quality": 90, "subsampling": 0}, {"quality": 60, "progressive": True}):
        file = io.BytesIO()
        Image.fromarray(smooth.astype("uint8")).save(file, "jpeg", **options)
        np.testing.assert_array_equal(images.decode(file.getvalue()), shown(file))

import contextlib
import io
import os
import struct
import zlib

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
    "content,message", [(None, "no such file"), (b"", "the file is empty"), (b"hello", "not an image")]
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


def header(image_format, width, height):
    """The first bytes of a file that claims a size; nothing follows."""
    if image_format == "png":
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return start + struct.pack(">I", 99) + b"IDAT"
    if image_format == "gif":
        return (
            b"GIF89a"
            + struct.pack("<HHBBB", width, height, 0, 0, 0)
            + b","
            + struct.pack("<HHHHBB", 0, 0, 1, 1, 0, 8)
        )
    if image_format == "bmp":
        return b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    if image_format == "jpeg":
        frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
        return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0"
    size = {
        "webp VP8 ": b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height),
        "webp VP8L": b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14),
        "webp VP8X": bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
    }[image_format]
    return (
        b"RIFF" + struct.pack("<I", 100) + b"WEBP" + image_format[5:].encode() + struct.pack("<I", 80) + size
    )


HEADERS = ["png", "gif", "bmp", "jpeg", "webp VP8 ", "webp VP8L", "webp VP8X"]


@pytest.mark.parametrize("image_format", HEADERS)
def test_no_decoder_sees_an_image_that_claims_too_many_pixels(tmp_path, image_format):
    """10001 x 10000 is refused for its size; 10000 x 10000, where nothing follows, for another reason."""
    for width, claims in ((10001, True), (10000, False)):
        encoded = header(image_format, width, 10000)
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            images.decode(encoded)
        assert ("claims more than 100000000 px" in str(caught.value)) == claims, image_format
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            images.decode_mask(encoded)
        assert ("claims more than 100000000 px" in str(caught.value)) == claims
        (tmp_path / "a").write_bytes(encoded)
        if "webp" not in image_format:  # Pillow decodes WebP when it opens it
            with pytest.raises(DataError) as refusal:
                images.read_pixels(tmp_path / "a")
            assert ("claims more than 100,000,000 px" in str(refusal.value)) == claims


def test_a_bmp_that_starts_at_the_top_has_a_size_too():
    with pytest.raises(tf.errors.InvalidArgumentError, match="claims more"):
        images.decode(header("bmp", 10001, -10000))


ERRORS = [
    SyntaxError,
    struct.error,
    MemoryError,
    zlib.error,
    RecursionError,
    AssertionError,
    KeyError,
    OSError,
]


@pytest.mark.parametrize("error", [*ERRORS, Image.DecompressionBombError])
def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch, error):
    path = save(tmp_path / "a.bmp")

    def load(self):
        raise error("one\ntwo")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for read in (images.read, images.read_pixels):
        with pytest.raises(DataError) as caught:
            read(path)
        assert "\n" not in str(caught.value) and ("one" in str(caught.value) or "claims" in str(caught.value))


def test_no_program_is_started_for_postscript(tmp_path, monkeypatch):
    """A `gs` on the path would be started by Pillow; the file is named as a photo."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n")
    with contextlib.suppress(Exception), Image.open(photo) as image:
        image.load()
    assert (tmp_path / "started").exists()  # this is what would happen
    (tmp_path / "started").unlink()
    for read in (images.read, images.read_pixels):
        with pytest.raises(DataError, match="not an image in a format that is read here: JPEG, PNG"):
            read(photo)
    assert not (tmp_path / "started").exists()


def tiff(path, bits, data, width, height):
    """A grey TIFF of one strip with samples of any number of bits."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    path.write_bytes(start + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def test_grey_of_more_than_8_bits_is_scaled_by_what_is_declared(tmp_path):
    """12 bits, packed: 0xabc and 0xfff; both are divided by 16."""
    twelve = tiff(tmp_path / "12.tif", 12, bytes.fromhex("abcfff"), 2, 1)
    assert images.read_pixels(twelve)[0, :, 0].tolist() == [0xAB, 0xFF]
    sixteen = tiff(tmp_path / "16.tif", 16, struct.pack("<HH", 0xABCD, 256), 2, 1)
    assert images.read_pixels(sixteen)[0, :, 0].tolist() == [0xAB, 1]
    for read in (images.read, images.read_pixels):
        with pytest.raises(DataError, match="stay below 4096 of 65536"):
            read(tiff(tmp_path / "dark.tif", 16, struct.pack("<HH", 4095, 0), 2, 1))
    assert images.read_pixels(tiff(tmp_path / "dim.tif", 16, struct.pack("<HH", 4096, 0), 2, 1)).max() == 16


@pytest.mark.parametrize(
    "values,expected",
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 255.0], None),
        ([-0.1, 0.5], None),
        ([0.1, float("nan")], None),
    ],
)
def test_floating_point_values_are_taken_from_0_to_1(tmp_path, values, expected):
    Image.fromarray(np.array([values], "float32")).save(tmp_path / "a.tif")
    if expected is None:
        with pytest.raises(DataError, match="leave 0..1"):
            images.read_pixels(tmp_path / "a.tif")
    else:
        assert images.read_pixels(tmp_path / "a.tif")[0, :, 0].tolist() == expected


def test_32_bit_integers_are_taken_for_16_bits_where_they_fit(tmp_path):
    for value, fits in ((65535, True), (65536, False), (-1, False)):
        Image.fromarray(np.array([[0, value]], "int32")).save(tmp_path / "a.tif")
        if fits:
            assert images.read_pixels(tmp_path / "a.tif").max() == 255
        else:
            with pytest.raises(DataError, match="leave the range of 16 bits"):
                images.read_pixels(tmp_path / "a.tif")


def test_a_file_is_not_read_beyond_a_bound(tmp_path, monkeypatch):
    path = save(tmp_path / "a.bmp")
    monkeypatch.setattr(images, "MAX_BYTES", path.stat().st_size)
    images.read(path)
    monkeypatch.setattr(images, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(DataError, match="bytes"):
        images.read(path)


def test_a_damaged_exif_block_is_no_reason_to_refuse(tmp_path, monkeypatch):
    def getexif(self):
        raise SyntaxError("not a TIFF file")

    path = save(tmp_path / "a.jpg")
    monkeypatch.setattr("PIL.Image.Image.getexif", getexif)
    assert images.read(path).encoded == path.read_bytes()
    np.testing.assert_array_equal(images.read_pixels(path), shown(path))


@pytest.mark.parametrize("ending", ["jfif", "jp2", "avif", "webp", "tiff", "ppm", "mpo"])
def test_other_endings_are_images(tmp_path, ending):
    assert {f".{ending}", ".jpg", ".png"} <= images.suffixes() and ".eps" not in images.suffixes()
    path = save(tmp_path / f"a.{ending}")
    assert images.read_pixels(path).shape == SCENE.shape


def test_heic_asks_for_its_plug_in(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    if "HEIF" in images._installed(images.FORMATS):
        pytest.skip("pillow-heif is installed")
    with pytest.raises(DataError, match="pip install pillow-heif"):
        images.read_pixels(tmp_path / "a.heic")

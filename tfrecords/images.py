"""Image files: reading as bytes that TensorFlow decodes, encoding, decoding."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageOps

from tfrecords.schema import DataError

# Formats and modes that TensorFlow decodes to the pixels of Pillow's convert("RGB"): their bytes are kept.
KEPT = {"JPEG": {"L", "RGB"}, "PNG": {"1", "L", "LA", "P", "RGB", "RGBA"}}
MAX_PIXELS = 100_000_000  # of an image or a mask
ORIENTATION = 0x0112  # the EXIF tag


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    encoded: bytes
    format: str  # jpeg or png
    height: int  # px
    width: int


def read(path, expected_hw=None):
    """Read an image file in the encoding that a record stores.

    The bytes of JPEG and PNG files are kept; other formats, and images that need rotation, are
    re-encoded: JPEG at high quality if they were JPEG, else PNG.

    An EXIF orientation is applied, because boxes are drawn on the displayed image, unless only the stored
    size agrees with `expected_hw`.

    Args:
        path:        pathlib.Path.
        expected_hw: (height, width) px according to the annotations, or None.
    Raises:
        DataError: missing, damaged, or of another size; the message is the reason alone.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError("not a file")  # reading a pipe would block forever
        stored = path.read_bytes()
        with Image.open(io.BytesIO(stored)) as image:
            turned = _is_turned(image, expected_hw)
            height, width = _shown_hw(image) if turned else image.size[::-1]
            if expected_hw is not None and (height, width) != tuple(expected_hw):
                raise DataError(
                    f"the image is {width}x{height}, its annotations say {expected_hw[1]}x{expected_hw[0]}"
                )
            known = image.mode in KEPT.get(image.format, ())
            if known and not turned and _decodes(stored, height, width):
                return EncodedImage(stored, image.format.lower(), height, width)
            was_jpeg = image.format == "JPEG"
            pixels = _to_rgb(ImageOps.exif_transpose(image) if turned else image)
    except FileNotFoundError:
        raise DataError("no such file") from None
    except Image.UnidentifiedImageError:
        raise DataError("not an image in a format that Pillow reads") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"damaged: {error}") from None
    return encode(pixels, "jpeg" if was_jpeg else "png")


def encode(pixels, image_format):
    """(H, W, 3) uint8 or a Pillow image -> EncodedImage; JPEG without chroma subsampling."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if image_format == "jpeg" else {}
    image.save(file, image_format, **options)
    return EncodedImage(file.getvalue(), image_format, image.height, image.width)


def decode(encoded, ratio=1):
    """JPEG or PNG bytes -> (H, W, 3) uint8 RGB; runs in eager mode, in graphs and in a SavedModel.

    JPEG is decoded with the accurate integer DCT, so that TensorFlow and Pillow give equal pixels.

    Args:
        encoded: () string.
        ratio:   1, 2, 4 or 8: factor by which the JPEG decoder downsamples, sides rounded up. Other
                 formats are decoded at full size.
    """
    import tensorflow as tf

    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _is_turned(image, expected_hw):
    if image.getexif().get(ORIENTATION, 1) not in range(2, 9):
        return False
    shown, stored = _shown_hw(image), image.size[::-1]
    return expected_hw is None or shown == stored or tuple(expected_hw) != stored


def _shown_hw(image):
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) >= 5 else (height, width)


def _decodes(encoded, height, width):
    import tensorflow as tf

    try:
        return tuple(decode(encoded).shape) == (height, width, 3)
    except tf.errors.InvalidArgumentError:
        return False


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype("uint8")).convert("RGB")
    return image.convert("RGB")

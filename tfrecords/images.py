"""Image files: reading as bytes that TensorFlow decodes, encoding, decoding.

Every image of a stranger is opened by `opened` (Pillow) or decoded by `decode` and `decode_mask` (TensorFlow,
also in a SavedModel). Both take the formats of a list and compare the size that the header claims with
MAX_PIXELS before anything is decoded.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import warnings

import numpy as np
from PIL import Image

from tfrecords.schema import DataError

MISSING = "no such file"  # the reason of an image whose file does not exist
# What is opened, MPO as JPEG. Pillow knows more; for PostScript it would start an interpreter.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "JPEG2000", "AVIF", "PPM", "HEIF")
PLUGINS = {"HEIF": ("pillow_heif", "register_heif_opener")}  # formats of other packages: used if installed
IN_RECORDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # formats that TensorFlow decodes

# Formats and modes that TensorFlow decodes to the pixels of Pillow's convert("RGB"): their bytes are kept.
KEPT = {"JPEG": {"L", "RGB"}, "PNG": {"1", "L", "LA", "P", "RGB", "RGBA"}}
MAX_PIXELS = 100_000_000  # of an image or a mask
MAX_BYTES = 8 * MAX_PIXELS  # of a file
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS_PER_SAMPLE = 258  # the TIFF tag
# Endings of images in formats that are not read: in a folder they are faults, not other files.
UNREAD_SUFFIXES = {".heic", ".heif", ".jxl", ".psd", ".xcf", ".svg", ".eps", ".ico", ".tga", ".exr", ".hdr"}
UNREAD_SUFFIXES |= {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}  # cameras' raw files


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    encoded: bytes
    format: str  # jpeg or png
    height: int  # px
    width: int
    as_stored: bool = False  # it has an EXIF orientation, which was not applied


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
    stored = read_bytes(path)
    with opened(stored) as image:
        turned = _is_turned(image, expected_hw)
        height, width = _shown_hw(image) if turned else image.size[::-1]
        if expected_hw is not None and (height, width) != tuple(expected_hw):
            raise DataError(
                f"the image is {width}x{height}, its annotations say {expected_hw[1]}x{expected_hw[0]}"
            )
        known = image.mode in KEPT.get(image.format, ())
        if known and not turned and _decodes(stored, height, width):
            encoded = EncodedImage(stored, image.format.lower(), height, width)
        else:
            kind = "jpeg" if image.format in ("JPEG", "MPO") else "png"
            encoded = encode(to_rgb(upright(image) if turned else image), kind)
        return dataclasses.replace(encoded, as_stored=not turned and _orientation(image) in UPRIGHT)


def read_pixels(path):
    """Read an image file upright, as it is displayed -> (H, W, 3) uint8 RGB.

    Args:
        path: pathlib.Path.
    Raises:
        DataError: missing, damaged or too large; the message is the reason alone.
    """
    return decoded_pixels(read_bytes(path))


def decoded_pixels(stored):
    """Decode the bytes of an image file as `read_pixels` does -> (H, W, 3) uint8 RGB.

    Args:
        stored: bytes.
    Raises:
        DataError: as `opened`.
    """
    with opened(stored) as image:
        return np.asarray(to_rgb(upright(image)))


def pixels_of(image):
    """A Pillow image upright -> (H, W, 3) uint8 RGB; it is not changed.

    Raises:
        DataError: it cannot be decoded, or is too large; the message is the reason alone.
    """
    with _decoding():
        _check_size(image)
        return np.asarray(to_rgb(upright(image)))


def read_bytes(path):
    """The bytes of a file that may be an image.

    Raises:
        DataError: there are none, or more than MAX_BYTES; the message is the reason alone.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError("not a file")  # reading a pipe would block forever
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"the file has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(MISSING) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


@contextlib.contextmanager
def opened(stored, formats=FORMATS):
    """Open an encoded image with Pillow; whatever fails while it is open is a DataError.

    Decoders raise errors of every kind for damaged files. Their warnings are kept away.

    Args:
        stored:  bytes.
        formats: those that are accepted, as Pillow names them.
    Yields:
        PIL.Image.Image of at most MAX_PIXELS, not yet decoded.
    Raises:
        DataError: empty, of no such format, too large, or damaged; the message is the reason alone.
    """
    if not stored:
        raise DataError("not an image: the file is empty")
    with _decoding(stored, formats), Image.open(io.BytesIO(stored), formats=_installed(formats)) as image:
        _check_size(image)
        yield image


def _check_size(image):
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


@contextlib.contextmanager
def _decoding(stored=b"", formats=FORMATS):
    """Whatever fails in the block is a DataError; warnings are kept away."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"the image claims more than {MAX_PIXELS:,} px: make it smaller") from None
    except Image.UnidentifiedImageError:
        raise DataError(_unidentified(stored, formats)) from None
    except Exception as error:
        raise DataError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None


@functools.cache
def suffixes():
    """Endings of the files that `opened` accepts: frozenset of ".jpg", ".png", ..."""
    formats = {*_installed(FORMATS), "MPO"}
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


@functools.cache
def _installed(formats):
    """Those of the formats that this Pillow reads, plug-ins included."""
    Image.init()
    for name, (module, register) in PLUGINS.items():
        if name in formats:
            with contextlib.suppress(ImportError):
                getattr(importlib.import_module(module), register)()
    return tuple(name for name in formats if name in Image.OPEN)


def _unidentified(stored, formats):
    if stored[4:8] == b"ftyp" and stored[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "HEIC needs a package that is not installed: pip install pillow-heif"
    return f"not an image in a format that is read here: {', '.join(_installed(formats))}"


def to_rgb(image):
    """A Pillow image -> RGB, 8 bits.

    Grey images of more than 8 bits are divided by 2 to the power of their further bits: those that a TIFF
    declares, else 16. Floating-point values are taken from 0..1.

    Raises:
        DataError: values leave that range; or those of a TIFF fill so little of it (12 bits in 16) that the
                   result would be black.
    """
    image.load()  # raises what NumPy and Pillow's own save would pass over
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise DataError("its floating-point values leave 0..1: scale them first")
        return Image.fromarray((values * 255 + 0.5).astype("uint8")).convert("RGB")
    if image.mode.startswith("I"):
        bits, values = _bits(image), np.asarray(image)
        if values.min() < 0 or values.max() >= 2**bits:
            raise DataError(f"its values leave the range of {bits} bits: scale them first")
        if image.format == "TIFF" and values.max() < 2 ** (bits - 4):
            raise DataError(
                f"its values stay below {2 ** (bits - 4)} of {2**bits} and would be black: scale them first"
            )
        return Image.fromarray((values >> (bits - 8)).astype("uint8")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _bits(image):
    """Bits of a sample: declared by a TIFF, if it is no 32-bit container; else 16."""
    declared = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
    bits = int(declared[0] if isinstance(declared, tuple) else declared)
    return bits if 8 < bits < 16 else 16


def upright(image):
    """A Pillow image as it is displayed, with its EXIF orientation applied."""
    turn = UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def encode(pixels, image_format):
    """(H, W, 3) uint8 or a Pillow image -> EncodedImage; JPEG without chroma subsampling."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if image_format == "jpeg" else {}
    image.save(file, image_format, **options)
    return EncodedImage(file.getvalue(), image_format, image.height, image.width)


def decode(encoded, ratio=1):
    """Image bytes -> (H, W, 3) uint8 RGB; runs in eager mode, in graphs and in a SavedModel.

    JPEG is decoded with the accurate integer DCT, so that TensorFlow and Pillow give equal pixels.

    Args:
        encoded: () string, one of IN_RECORDS.
        ratio:   1, 2, 4 or 8: factor by which the JPEG decoder downsamples, sides rounded up. Other
                 formats are decoded at full size.
    Raises:
        tf.errors.InvalidArgumentError: it is no image, damaged, or claims more than MAX_PIXELS.
    """
    import tensorflow as tf

    encoded = _bounded(encoded)
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def decode_mask(encoded):
    """Bytes of a PNG -> (H, W) uint8; as `decode`."""
    import tensorflow as tf

    return tf.io.decode_png(_bounded(encoded), channels=1)[..., 0]


def _bounded(encoded):
    """The same bytes, after a look at the size in their header: decoders would allocate it."""
    return _bound()(encoded)


@functools.cache
def _bound():
    """`_bounded` as a graph of its own, traced once for all graphs that decode images."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
    def bound(encoded):
        pixels = tf.cond(
            tf.io.is_jpeg(encoded), lambda: _jpeg_pixels(encoded), lambda: _other_pixels(encoded)
        )
        message = f"the image claims more than {MAX_PIXELS} px"
        with tf.control_dependencies([tf.debugging.Assert(pixels <= MAX_PIXELS, [message])]):
            return tf.identity(encoded)

    return bound


def _jpeg_pixels(encoded):
    import tensorflow as tf

    height, width, _ = tf.unstack(tf.cast(tf.image.extract_jpeg_shape(encoded), tf.int64))
    return height * width


def _other_pixels(encoded):
    """Height x width in the header of PNG, GIF, BMP or WebP, () int64; 0 for anything else."""
    import tensorflow as tf

    start = tf.strings.join([tf.strings.substr(encoded, 0, 32), tf.constant(b"\0" * 32)])
    raw = tf.cast(tf.io.decode_raw(start, tf.uint8)[:32], tf.int64)

    def number(at, count, order):
        """An unsigned integer of `count` bytes, little or big end first."""
        places = range(count) if order == "little" else range(count - 1, -1, -1)
        return tf.reduce_sum(raw[at : at + count] * [256**place for place in places])

    def starts(text, at=0):
        return tf.reduce_all(raw[at : at + len(text)] == list(text))

    def area(at, count, order="little", mask=2**31 - 1, plus=0):
        first, second = number(at, count, order) & mask, number(at + count, count, order) & mask
        return (first + plus) * (second + plus)

    lossless = number(21, 4, "little")
    signed = number(22, 4, "little")  # a BMP of negative height starts at the top
    high = tf.minimum(signed, 2**32 - signed)
    sizes = (
        (starts(b"\x89PNG"), area(16, 4, "big")),
        (starts(b"GIF"), area(6, 2)),
        (starts(b"BM"), (number(18, 4, "little") & (2**31 - 1)) * high),
        (starts(b"WEBPVP8 ", 8), area(26, 2, mask=0x3FFF)),
        (starts(b"WEBPVP8L", 8), ((lossless & 0x3FFF) + 1) * ((lossless // 2**14 & 0x3FFF) + 1)),
        (starts(b"WEBPVP8X", 8), area(24, 3, plus=1)),
    )
    return sum(tf.where(found, pixels, tf.constant(0, tf.int64)) for found, pixels in sizes)


def _orientation(image):
    if image.format == "PNG":
        image.load()  # `getexif` does so too, and damaged pixels are no damaged EXIF
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block is no reason to refuse the image
        return 1


def _is_turned(image, expected_hw):
    if _orientation(image) not in UPRIGHT:
        return False
    shown, stored = _shown_hw(image), image.size[::-1]
    return expected_hw is None or shown == stored or tuple(expected_hw) != stored


def _shown_hw(image):
    width, height = image.size
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


def _decodes(encoded, height, width):
    import tensorflow as tf

    try:
        return tuple(decode(encoded).shape) == (height, width, 3)
    except tf.errors.OpError:
        return False

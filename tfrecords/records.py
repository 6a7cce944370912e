"""Reads the records of a TFRecord file one by one and skips damaged ones.

A record is its length (8 bytes), a checksum of the length, the data, and a checksum of the data. TensorFlow's
reader checks both and stops at the first mismatch; as long as the length is intact, the next record can
still be found.
"""

import gzip
import struct
import zlib

from tfrecords.files import replacing
from tfrecords.schema import DataError

HEAD = 8 + 4  # bytes
FOOT = 4
MAX_UNFOLDED = 100  # times the size of a compressed file; encoded images hardly shrink
ALWAYS_UNFOLDED = 2**26  # bytes that any file may unfold to
PART = 2**20  # bytes
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x78\x01": "zlib", b"\x78\x9c": "zlib", b"\x78\xda": "zlib"}


def walk(file):
    """Iterate over the records of a file, damaged ones included.

    Args:
        file: pathlib.Path of an uncompressed file.
    Yields:
        (offset, data, fault): byte offset; the bytes, or None if damaged; the fault, or None. A record with
        a damaged length is the last.
    """
    import tensorflow as tf

    size, offset, reader = file.stat().st_size, 0, None
    with file.open("rb") as stream:
        while offset < size:
            length = _length(stream, offset)
            if length is None:
                yield offset, None, "the length of the record is damaged: what follows cannot be found"
                return
            after = offset + HEAD + length + FOOT
            if after > size:
                yield offset, None, f"the file ends {after - size} bytes before the record does"
                return
            reader = reader or reader_at(file, offset).as_numpy_iterator()
            try:
                data, fault = next(reader), None
            except (tf.errors.DataLossError, tf.errors.OutOfRangeError, StopIteration):
                data, fault, reader = None, "the checksum of the record is wrong", None
            yield offset, data, fault
            offset = after


def reader_at(file, offset):
    """tf.data.Dataset of the records from a byte offset on."""
    import tensorflow as tf

    def records(start):
        # the op can start at any byte; the Python class TFRecordDataset does not expose it
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[str(file)], compression_type="", buffer_size=1 << 18, byte_offsets=start[None]
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))

    return tf.data.Dataset.from_tensors(tf.constant(offset, tf.int64)).flat_map(records)


def compression_of(file):
    """ "gzip", "zlib" or None: by the magic bytes, unless they start a valid record."""
    with file.open("rb") as stream:
        magic = stream.read(2)
        return None if _length(stream, 0) is not None else COMPRESSED.get(magic)


def unpack(file, to):
    """Decompress a gzip shard.

    Raises:
        DataError: it is damaged, or unfolds to more than MAX_UNFOLDED times its size.
    """
    left = max(MAX_UNFOLDED * file.stat().st_size, ALWAYS_UNFOLDED)
    try:
        with replacing(to) as [aside], gzip.open(file) as packed, aside.open("wb") as plain:
            while part := packed.read(PART):
                left -= len(part)
                if left < 0:
                    raise DataError(
                        f"{file}: unfolds to more than {MAX_UNFOLDED} times its size, as no shard of images "
                        "does: decompress it yourself if you trust it"
                    )
                plain.write(part)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: cannot be decompressed: {error}") from None


def _length(stream, offset):
    """Length in bytes of the record at `offset`; None if there is none or its checksum is wrong."""
    stream.seek(offset)
    head = stream.read(HEAD)
    if len(head) < HEAD or struct.unpack("<I", head[8:])[0] != masked_crc(head[:8]):
        return None
    return struct.unpack("<Q", head[:8])[0]


def masked_crc(data):
    """Masked CRC-32C, the checksum of TFRecord files. Slow: for a few bytes only."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table():
    """Lookup table of CRC-32C (Castagnoli, reflected) for every byte value."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()

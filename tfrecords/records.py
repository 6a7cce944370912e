"""Reads the records of a TFRecord file one by one and skips damaged ones.

A record is its length (8 bytes), a checksum of the length, the data, and a checksum of the data. TensorFlow's
reader checks both sums and stops at the first that fails; where the length can be trusted, the next record
can still be found.
"""

import gzip
import shutil
import struct

from tfrecords.files import replacing
from tfrecords.schema import DataError

HEAD = 8 + 4  # bytes
FOOT = 4
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x78\x01": "zlib", b"\x78\x9c": "zlib", b"\x78\xda": "zlib"}


def walk(file):
    """Every record of a file.

    Args:
        file: pathlib.Path of a file that is not compressed.
    Yields:
        (offset, data, fault): bytes where it begins, its bytes or None, and what is wrong with it or None.
        After a record whose length is damaged there are no more.
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
    """tf.data.Dataset of the records from a byte on."""
    import tensorflow as tf

    def records(start):
        # TFRecordDataset can begin at any byte, only its Python class does not say so
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[str(file)], compression_type="", buffer_size=1 << 18, byte_offsets=start[None]
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))

    return tf.data.Dataset.from_tensors(tf.constant(offset, tf.int64)).flat_map(records)


def compression_of(file):
    """ "gzip", "zlib" or None: by the first bytes, unless they begin a record as they are."""
    with file.open("rb") as stream:
        magic = stream.read(2)
        return None if _length(stream, 0) is not None else COMPRESSED.get(magic)


def unpack(file, to):
    """Unpacks a shard packed with gzip."""
    try:
        with replacing(to) as [aside], gzip.open(file) as packed, aside.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise DataError(f"{file}: cannot be unpacked: {error}") from None


def _length(stream, offset):
    """Of the record that begins here, bytes; None if there is none or its checksum is wrong."""
    stream.seek(offset)
    head = stream.read(HEAD)
    if len(head) < HEAD or struct.unpack("<I", head[8:])[0] != masked_crc(head[:8]):
        return None
    return struct.unpack("<Q", head[:8])[0]


def masked_crc(data):
    """The checksum of TFRecord files: CRC-32C, turned and shifted.   For a few bytes; it is slow."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table():
    """CRC-32C (Castagnoli), reflected: what each value of a byte adds."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()

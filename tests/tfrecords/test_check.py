"""`check` finds each fault that is put into a sound data set, and nothing in a sound one."""

import gzip
import json
import zlib

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from support import real_data  # noqa: E402

from tfrecords.check import check  # noqa: E402
from tfrecords.converters import shapes  # noqa: E402
from tfrecords.index import record_bytes  # noqa: E402
from tfrecords.schema import DataError  # noqa: E402

BOX = "image/object/bbox/"


@pytest.fixture
def folder(tmp_path):
    """Twelve drawn images in three shards."""
    shapes.build(tmp_path / "drawn", count=12, seed=3, size_hw=(64, 64), shards=3)
    return tmp_path / "drawn"


def shard_of(folder, number=1):
    return sorted(folder.glob("*.tfrecord"))[number]


def records_of(shard):
    return [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]


def with_objects(records):
    """The first record that has an object, and its place."""
    for place, record in enumerate(records):
        example = tf.train.Example.FromString(record)
        if example.features.feature[f"{BOX}xmin"].float_list.value:
            return place, example
    raise AssertionError("no image with an object")


def rewritten(folder, change):
    """Let `change(features)` work on one record of the second shard, and write the shard again."""
    shard = shard_of(folder)
    records = records_of(shard)
    place, example = with_objects(records)
    change(example.features.feature)
    records[place] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in records:
            writer.write(record)
    return check(folder).faults


def put(key, kind, *values):
    def change(features):
        part = getattr(features[key], kind).value
        del part[:]
        part.extend(values)

    return change


def one(key, kind, value):
    """Change the first value of a list alone."""

    def change(features):
        getattr(features[key], kind).value[0] = value

    return change


def no_right_side(features):
    xmin = features[f"{BOX}xmin"].float_list.value[0]
    features[f"{BOX}xmax"].float_list.value[0] = xmin


def test_valid_data_set_has_no_faults(folder):
    found = check(folder)
    truth = json.loads((folder / "annotations.json").read_text())
    assert not found.faults
    assert (found.shards, found.records, found.objects) == (3, 12, len(truth["annotations"]))


@pytest.mark.parametrize(
    "change, kind",
    [
        (put("image/encoded", "bytes_list", b"<html>"), "image does not decode"),
        (put("image/encoded", "bytes_list", b"<html>"), "image differs from image/key/sha256"),
        (put("image/encoded", "bytes_list"), "no image in image/encoded"),
        (
            put("image/height", "int64_list", 65),
            "image of another size than image/height and image/width",
        ),
        (one(f"{BOX}ymin", "float_list", float("nan")), "box that is not finite"),
        (one(f"{BOX}xmin", "float_list", -0.01), "box outside of the image"),
        (no_right_side, "box without area"),
        (put(f"{BOX}xmin", "float_list"), "xmin, ymin, xmax, ymax of different lengths"),
        (put("image/object/class/label", "int64_list"), "more or fewer class/label than boxes"),
        (one("image/object/class/label", "int64_list", 99), "category id that the manifest does not list"),
        (
            one("image/object/class/text", "bytes_list", b"dog"),
            "class/text that is not the name of class/label",
        ),
        (one("image/object/area", "float_list", -1.0), "area that is negative or not finite"),
        (one("image/object/is_crowd", "int64_list", 2), "is_crowd that is not one 0 or 1 for each box"),
        (put("image/object/mask", "bytes_list", b"", b"", b"", b""), "more or fewer masks than boxes"),
        (put("image/source_id", "bytes_list", b"photo.jpg"), "image/source_id is not a decimal number"),
        (one(f"{BOX}ymax", "float_list", 1.0), "annotations.json has other objects than the record"),
    ],
)
def test_a_fault_in_a_record(folder, change, kind):
    faults = rewritten(folder, change)
    assert kind in faults and len(faults[kind]) == 1
    assert shard_of(folder).name in faults[kind][0]


def test_a_mask_of_another_size(folder):
    def change(features):
        count = len(features["image/object/class/label"].int64_list.value)
        mask = tf.io.encode_png(np.ones((63, 64, 1), "uint8")).numpy()
        features["image/object/mask"].bytes_list.value.extend([mask] * count)

    assert "mask of another size than the image" in rewritten(folder, change)


def test_changed_byte_is_found_and_later_records_are_read(folder):
    shard = shard_of(folder)
    records, content = records_of(shard), bytearray(shard.read_bytes())
    second = record_bytes(records[0])
    content[second + 12 + len(records[1]) // 2] ^= 1  # in the middle of the second record's data
    shard.write_bytes(content)
    found = check(folder)
    assert found.faults["the checksum of the record is wrong"] == [f"{shard.name}, byte {second}"]
    assert "shard with another digest than in the manifest" in found.faults
    assert found.records == 11


def test_truncated_shard(folder):
    shard = shard_of(folder)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) - 20])
    found = check(folder)
    [place] = found.faults["the file ends 20 bytes before the record does"]
    assert place.startswith(f"{shard.name}, byte ")
    assert found.faults["shard of another length than in the manifest"] == [shard.name]
    assert found.records == 11


def test_damaged_record_length_ends_a_shard(folder):
    """Its checksum tells; what a wrong length would lead to is not taken for records."""
    shard = shard_of(folder)
    records, content = records_of(shard), bytearray(shard.read_bytes())
    second = record_bytes(records[0])
    content[second] ^= 1
    shard.write_bytes(content)
    found = check(folder)
    kind = "the length of the record is damaged: what follows cannot be found"
    assert found.faults[kind] == [f"{shard.name}, byte {second}"]
    assert found.records == 12 - len(records) + 1


def test_gzip_shard(folder):
    shard = shard_of(folder, 0)
    packed = folder.parent / "packed.tfrecord.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    assert check(packed).records == len(records_of(shard)) and not check(packed).faults
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be decompressed"):
        check(packed)


@pytest.mark.parametrize("content", ["[]", "{}", '{"annotations": [1], "images": []}', '{"annotations": 3}'])
def test_annotations_of_another_form(folder, content):
    (folder / "annotations.json").write_text(content)
    assert list(check(folder).faults) == ["annotations.json is of another form"]


def test_missing_and_unlisted_shards(folder):
    shard = shard_of(folder)
    shard.rename(folder / "other.tfrecord")
    faults = check(folder).faults
    assert faults["shard of the manifest that is not there"] == [str(shard)]
    assert faults["shard that the manifest does not list"] == ["other.tfrecord"]


@pytest.mark.parametrize("key", ["offset", "image_id", "height", "width", "objects"])
def test_index_that_differs_from_the_records(folder, key):
    path, shard = folder / "index.json", shard_of(folder)
    index = json.loads(path.read_text())
    index[shard.name][key][-1] += 1
    path.write_text(json.dumps(index))
    assert check(folder).faults == {f"index.json has another {key} than the records": [shard.name]}


def test_annotations_of_other_images(folder):
    path = folder / "annotations.json"
    truth = json.loads(path.read_text())
    gone = truth["images"].pop()["id"]
    path.write_text(json.dumps(truth))
    assert check(folder).faults == {
        "image that is missing in annotations.json": [f"{folder.name}, image {gone}"]
    }


def test_duplicate_image_id(folder):
    shard = shard_of(folder)
    records = records_of(shard)
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in (*records, records[0]):
            writer.write(record)
    assert len(check(folder).faults["image id in drawn given to two images"]) == 1


def test_files_that_cannot_be_checked(tmp_path):
    with pytest.raises(DataError, match="no shards found"):
        check(tmp_path)
    packed = tmp_path / "x.tfrecord"
    packed.write_bytes(zlib.compress(b"zlib"))
    with pytest.raises(DataError, match="compressed with zlib"):
        check(packed)


def test_check_of_shards_of_other_tools():
    """Records of the TF Object Detection API's tutorial are sound; those of voc100 hold no image."""
    raccoon = check(real_data.folder("raccoon", "data", "test.record"))
    assert (raccoon.records, raccoon.objects, raccoon.faults) == (40, 44, {})
    (file,) = real_data.folder("voc100", "other_formats", "tfrecord").glob("*.tfrecord")
    voc = check(file)
    assert (voc.records, voc.objects) == (100, 273)
    assert (
        sum(len(voc.faults.get(kind, ())) for kind in ("image does not decode", "no image in image/encoded"))
        == 100
    )


def test_a_shard_of_no_bytes_is_a_fault_unless_the_manifest_knows_it(folder):
    empty = folder.parent / "other" / "empty.tfrecord"
    empty.parent.mkdir()
    empty.write_bytes(b"")
    assert check(empty).faults == {"shard without a record: the file is empty": ["empty.tfrecord"]}
    shard = shard_of(folder)
    shard.write_bytes(b"")
    assert shard.name in check(folder).faults["shard without a record: the file is empty"]
    manifest = json.loads((folder / "manifest.json").read_text())
    for one in manifest["shards"]:
        one["records"] *= one["file"] != shard.name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "shard without a record: the file is empty" not in check(folder).faults


def test_a_gzip_shard_that_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    """A MB of zeros in a kB; below the bound it is only no TFRecord."""
    bomb = tmp_path / "bomb.tfrecord.gz"
    bomb.write_bytes(gzip.compress(bytes(2**20)))
    assert check(bomb).records == 0
    monkeypatch.setattr("tfrecords.records.ALWAYS_UNFOLDED", 2**20)
    assert check(bomb).records == 0
    monkeypatch.setattr("tfrecords.records.ALWAYS_UNFOLDED", 2**20 - 1)
    with pytest.raises(DataError, match="unfolds to more than 100 times its size"):
        check(bomb)
    assert sorted(tmp_path.iterdir()) == [bomb]


def test_a_damaged_gzip_shard_is_one_line(tmp_path):
    packed = bytearray(gzip.compress(bytes(range(256)) * 40))
    packed[20:30] = b"\xff" * 10
    (tmp_path / "a.tfrecord.gz").write_bytes(packed)
    with pytest.raises(DataError, match="cannot be decompressed"):
        check(tmp_path / "a.tfrecord.gz")

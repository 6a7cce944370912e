"""Shards as others write them: what is missing is found, what cannot be used is named."""

import gzip
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

tf = pytest.importorskip("tensorflow")

from support import real_data  # noqa: E402

from tfrecords import adopt  # noqa: E402
from tfrecords.index import index_of, open_index  # noqa: E402
from tfrecords.schema import SIDES, DataError  # noqa: E402
from tfrecords.write import read_manifest  # noqa: E402


def picture(color=0, form="jpeg", size=(40, 20)):
    file = io.BytesIO()
    Image.new("RGB", size, (color, 0, 0)).save(file, form)
    return file.getvalue()


def png(rows):
    file = io.BytesIO()
    mask = np.zeros((20, 40), "uint8")
    mask[:rows] = 255
    Image.fromarray(mask).save(file, "png")
    return file.getvalue()


def example(boxes=(), labels=(), **more):
    """A record with the keys that every writer has; more: {"object/area": [1.0]} and the like."""
    lists = {"encoded": [picture()], "height": [20], "width": [40]}
    for side, values in zip(SIDES, np.transpose(boxes).tolist() if len(boxes) else [], strict=False):
        lists[f"object/bbox/{side}"] = values
    lists["object/class/label"] = list(labels)
    record = tf.train.Example()
    for key, values in {**lists, **more}.items():
        if len(values):
            kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])]
            getattr(record.features.feature[f"image/{key}"], kind).value.extend(values)
    return record.SerializeToString()


@pytest.fixture
def shards(tmp_path):
    """shards([records of a file], ...) -> the paths of the files, in a folder of their own."""

    def make(*files):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        paths = [tmp_path / f"theirs/x.record-{n:05d}-of-{len(files):05d}" for n in range(len(files))]
        for path, records in zip(paths, files, strict=True):
            with tf.io.TFRecordWriter(str(path)) as writer:
                for record in records:
                    writer.write(record)
        return paths

    return make


HALF, WHOLE = [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]


def test_categories_index_and_ground_truth_of_adopted_shards(shards, tmp_path):
    files = shards(
        [example([HALF, WHOLE], [7, 3], **{"object/class/text": [b"cat\n", b"dog"], "source_id": [b"5"]})],
        [
            example(source_id=[b"9"], filename=[b"empty.jpg"]),
            example([WHOLE], [7], **{"source_id": [b"2"], "object/is_crowd": [1], "object/area": [99.0]}),
        ],
    )
    before = [file.read_bytes() for file in files]
    folder = adopt.adopt(files, tmp_path / "cache")
    assert read_manifest(folder)["categories"] == [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    index = index_of(folder)
    assert index.files == tuple(map(str, files)) and index.shard.tolist() == [0, 1, 1]
    assert index.image_id.tolist() == [5, 9, 2] and index.objects.tolist() == [2, 0, 0]
    assert [int(index.height[0]), int(index.width[0])] == [20, 40]
    truth = COCO(folder / "annotations.json")
    assert [
        (a["category_id"], a["bbox"], a["area"], a["iscrowd"]) for a in truth.loadAnns(truth.getAnnIds())
    ] == [
        (7, [0, 0, 20, 20], 400, 0),
        (3, [0, 0, 40, 20], 800, 0),
        (7, [0, 0, 40, 20], 99, 1),
    ]
    assert [file.read_bytes() for file in files] == before
    assert adopt.adopt(files, tmp_path / "cache") == folder  # found again


@pytest.mark.parametrize("source_ids", [[b"a.jpg", b"7"], [b"", b""], [b"7", b"7"]])
def test_invalid_source_ids_become_running_numbers(shards, tmp_path, source_ids):
    files = shards(*[[example([WHOLE], [1], source_id=[one])] for one in source_ids])
    assert index_of(adopt.adopt(files, tmp_path / "cache")).image_id.tolist() == [1, 2]
    assert open_index(tmp_path / "theirs").image_id.tolist() == [1, 2]


def test_class_list_fixes_the_categories(shards, tmp_path):
    files = shards([example([HALF, WHOLE], [7, 3])])
    (tmp_path / "map.pbtxt").write_text("item { id: 7 name: 'cat' } item { id: 9 name: 'cow' }")
    folder = adopt.adopt(files, tmp_path / "cache", tmp_path / "map.pbtxt")
    manifest = read_manifest(folder)
    assert manifest["categories"] == [{"id": 7, "name": "cat"}, {"id": 9, "name": "cow"}]
    assert manifest["dropped"] == {"class/label is not in the list of classes": 1}
    assert index_of(folder).objects.tolist() == [1]


def test_lists_of_unequal_length(shards, tmp_path):
    more = {
        "object/area": [5.0],
        "object/is_crowd": [1],
        "object/difficult": [1],
        "object/class/text": [b"a"],
    }
    folder = adopt.adopt(shards([example([HALF, WHOLE], [1, 2], **more)]), tmp_path / "cache")
    truth = json.loads((folder / "annotations.json").read_text())
    found = [(a["area"], a["iscrowd"], a["difficult"]) for a in truth["annotations"]]
    assert found == [(5.0, 1, 1), (800.0, 0, 0)]
    assert [c["name"] for c in truth["categories"]] == ["a", "2"]


def test_masks_become_run_lengths(shards, tmp_path):
    folder = adopt.adopt(shards([example([HALF], [1], **{"object/mask": [png(3)]})]), tmp_path / "cache")
    truth = COCO(folder / "annotations.json")
    assert truth.annToMask(truth.anns[1]).sum() == 3 * 40


@pytest.mark.parametrize(
    "record,reason",
    [
        (example([HALF], [1], encoded=[b""]), "holds no image"),
        (example([HALF], [1], encoded=[b"<html>"]), "holds no image"),
        (example([HALF], [1, 2]), "2 image/object/class/label for 1 boxes"),
        (example([HALF], []), "0 image/object/class/label for 1 boxes"),
        (example([HALF], [1], **{"object/area": [3]}), "image/object/area is a int64_list"),
        (example([HALF], [1], **{"object/bbox/xmin": [0.0, 0.1]}), "different lengths"),
        (b"no example", "not a tf.train.Example"),
    ],
)
def test_unusable_record_is_reported_and_skipped(shards, tmp_path, record, reason):
    good = example([WHOLE], [1])
    [file] = shards([good, record, good])
    folder = adopt.adopt([file], tmp_path / "cache")
    manifest = read_manifest(folder)
    assert (manifest["images_total"], manifest["images"], manifest["faulty_pictures"]) == (3, 2, 1)
    [fault] = manifest["faults"]
    assert reason in fault["reason"] and f"byte {len(good) + 16}" in fault["where"]
    assert len(index_of(folder)) == 2
    [file] = shards([record])
    with pytest.raises(DataError, match="no usable record"):
        adopt.adopt([file], tmp_path / "cache")
    with pytest.raises(DataError, match=reason):
        open_index(file)


def test_boxes_are_clipped_and_empty_ones_counted(shards, tmp_path):
    nan = float("nan")
    boxes = [[-0.5, 0.0, 0.5, 1.0], [0.5, 0.0, 0.5, 1.0], [1.5, 0.0, 2.0, 1.0], [nan, 0.0, 1.0, 1.0]]
    folder = adopt.adopt(shards([example(boxes, [1, 1, 1, 1])]), tmp_path / "cache")
    manifest = read_manifest(folder)
    assert (manifest["boxes"], manifest["boxes_total"], manifest["clipped"]) == (1, 4, 1)
    assert json.loads((folder / "annotations.json").read_text())["annotations"][0]["bbox"] == [0, 0, 20, 20]


def test_declared_size_that_differs_from_the_image(shards, tmp_path):
    folder = adopt.adopt(shards([example([WHOLE], [1], height=[99], width=[1])]), tmp_path / "cache")
    assert (index_of(folder).height[0], index_of(folder).width[0]) == (20, 40)
    assert sum(read_manifest(folder)["remarks"].values()) == 1


def test_compressed_shards_are_decompressed_once_into_the_cache(shards, tmp_path):
    [file] = shards([example([WHOLE], [1]), example([HALF], [1])])
    packed = file.with_name(file.name + ".gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    plain = file.read_bytes()
    os.remove(file)
    folder = adopt.adopt([packed], tmp_path / "cache")
    [unpacked] = index_of(folder).files
    assert str(tmp_path / "cache") in unpacked and open(unpacked, "rb").read() == plain
    written = os.stat(unpacked).st_mtime_ns
    adopt.adopt([packed], tmp_path / "cache")
    assert os.stat(unpacked).st_mtime_ns == written
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be decompressed"):
        adopt.adopt([packed], tmp_path / "cache")


def test_shards_without_objects_need_a_class_list(shards, tmp_path):
    files = shards([example()])
    with pytest.raises(DataError, match="give the classes"):
        adopt.adopt(files, tmp_path / "cache")
    (tmp_path / "names.txt").write_text("cat")
    assert len(index_of(adopt.adopt(files, tmp_path / "cache", tmp_path / "names.txt"))) == 1


def test_damaged_shard_is_used_up_to_the_damage(shards, tmp_path):
    [file] = shards([example([WHOLE], [1])] * 3)
    content = bytearray(file.read_bytes())
    size = len(content) // 3
    content[size + 40] ^= 1  # in the data of the second record
    file.write_bytes(content[:-5])  # the third is cut short
    manifest = read_manifest(adopt.adopt([file], tmp_path / "cache"))
    assert manifest["images"] == 1
    assert [fault["reason"] for fault in manifest["faults"]] == [
        "the checksum of the record is wrong",
        "the file ends 5 bytes before the record does",
    ]


def test_records_of_the_object_detection_api(tmp_path):
    """40 records of its tutorial: the boxes are those of the table that they were made from."""
    file = real_data.folder("raccoon", "data") / "test.record"
    folder = adopt.adopt([file], tmp_path)
    manifest = read_manifest(folder)
    assert (manifest["images"], manifest["boxes"], manifest["faulty_pictures"]) == (40, 44, 0)
    assert manifest["categories"] == [{"id": 1, "name": "raccoon"}]
    truth = json.loads((folder / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    got = sorted((names[a["image_id"]], *np.round(a["bbox"], 2).tolist()) for a in truth["annotations"])
    lines = [line.split(",") for line in (file.parent / "test_labels.csv").read_text().split()[1:]]
    corners = [(name, *map(int, numbers)) for name, _, _, _, *numbers in lines]
    assert got == sorted((name, x0, y0, x1 - x0, y1 - y0) for name, x0, y0, x1, y1 in corners)


def test_records_without_images_are_rejected_in_one_line(tmp_path):
    file = real_data.folder("voc100", "other_formats", "tfrecord") / "default.tfrecord"
    with pytest.raises(DataError, match="default.tfrecord.*holds no image") as caught:
        adopt.adopt([file], tmp_path)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if (path / "manifest.json").is_file()]

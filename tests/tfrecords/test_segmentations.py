"""Masks in records: every form that COCO has, against pycocotools; what is no mask is told."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

tf = pytest.importorskip("tensorflow")

from tfrecords import segmentations  # noqa: E402
from tfrecords.converters import coco  # noqa: E402
from tfrecords.images import ORIENTATION  # noqa: E402
from tfrecords.schema import DataError, parse  # noqa: E402

HW = (30, 40)
TRIANGLE = [4.0, 3, 20, 3, 4, 25]
POLYGONS = [TRIANGLE, [30.0, 20, 45, 20, 45, 35, 30, 35]]  # the second reaches out of the image


def blob(seed=0):
    """(30, 40) uint8: a disc with a hole."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    distance = np.hypot(y - 12 - seed, x - 17)
    return ((distance < 9) & (distance > 4)).astype("uint8")


def run_lengths(mask):
    """By definition: column by column, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return ([0] if flat[0] else []) + np.diff([0, *edges, flat.size]).tolist()


def compressed(mask):
    code = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(HW), "counts": code["counts"].decode()}


FORMS = {
    "polygons": (POLYGONS, coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(POLYGONS, *HW)))),
    "one flat polygon": (TRIANGLE, coco_mask.decode(coco_mask.frPyObjects([TRIANGLE], *HW))[..., 0]),
    "run lengths": ({"size": list(HW), "counts": run_lengths(blob())}, blob()),
    "compressed": (compressed(blob()), blob()),
}


def test_run_lengths_decode_as_in_pycocotools():
    code = coco_mask.frPyObjects({"size": list(HW), "counts": run_lengths(blob())}, *HW)
    np.testing.assert_array_equal(coco_mask.decode(code), blob())


@pytest.mark.parametrize("form", FORMS)
def test_masks_go_into_records_and_stay_valid_for_pycocotools(tmp_path, form):
    segmentation, expected = FORMS[form]
    build(tmp_path, [segmentation, []])
    [record] = tf.data.TFRecordDataset([str(p) for p in (tmp_path / "to").glob("*.tfrecord")])
    stored = parse(record, masks=True)["masks"].numpy()
    decoded = tf.io.decode_png(stored[0]).numpy()
    assert decoded.shape == (*HW, 1) and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded[..., 0], expected)
    assert stored[1] == b""
    truth = COCO(tmp_path / "to/annotations.json")
    np.testing.assert_array_equal(truth.annToMask(truth.anns[1]), expected)
    assert "segmentation" not in truth.anns[2]
    assert truth.anns[1]["area"] == expected.sum()  # the json gave none


@pytest.mark.parametrize("seed", range(20))
def test_compressed_codes_are_read_as_pycocotools_reads_them(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random(HW) < rng.choice([0.01, 0.3, 0.9])).astype("uint8")
    mask[0, 0] |= not mask.any()
    assert segmentations.run_lengths(compressed(mask)).tolist() == run_lengths(mask)


@pytest.mark.parametrize(
    "segmentation,reason",
    [
        ([[1, 1, 5, 5]], "fewer than three points"),
        ([[1, 1, 5, 5, 9, 9, 3]], "half a point"),
        ([[1, 1, 5, 5, float("nan"), 9]], "no number"),
        ([[1, 1, 5, 5, "nine", 9]], "no number"),
        ([[1, 1, 5, 5, 1e300, 9]], "no number"),
        ([[50, 50, 60, 50, 60, 60]], "covers no pixel"),
        ("polygon", "neither polygons"),
        (0.5, "neither polygons"),
        ([None], "fewer than three points"),
        ({"size": [30, 41], "counts": [1230]}, "another size"),
        ({"size": [30, 40], "counts": [1000, 300]}, "do not sum up"),
        ({"size": [30, 40], "counts": [1300, -100]}, "no run lengths"),
        ({"size": [30, 40], "counts": [1200.5]}, "no run lengths"),
        ({"size": [30, 40], "counts": [1200.0]}, "covers no pixel"),
        ({"size": [30, 40], "counts": compressed(blob())["counts"] + "0"}, "do not sum up"),
        ({"size": [30, 40], "counts": "\u20ac"}, "no run lengths"),
        ({"size": [30, 40], "counts": "oooooooooooooooooooooooo"}, "cut short"),
        ({"size": [30, 40]}, "no run lengths"),
    ],
)
def test_invalid_masks_are_reported_and_the_box_is_kept(tmp_path, segmentation, reason):
    report = build(tmp_path, [segmentation])
    assert report.boxes == 1 and report.masks == 0
    [(remark, count)] = report.remarks.items()
    assert count == 1 and reason in remark
    assert "segmentation" not in json.loads((tmp_path / "to/annotations.json").read_text())["annotations"][0]


def test_masks_of_an_exif_rotated_image_follow_the_upright_image(tmp_path):
    """Stored 40x30, shown 30x40 as the json says: the mask has the size of what is shown."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    build(tmp_path, [[[0, 0, 30, 0, 30, 10, 0, 10]]], size_hw=(40, 30), exif=exif)
    [record] = tf.data.TFRecordDataset([str(p) for p in (tmp_path / "to").glob("*.tfrecord")])
    read = parse(record, masks=True)
    mask = tf.io.decode_png(read["masks"][0]).numpy()[..., 0]
    assert mask.shape == (40, 30) == (read["height"], read["width"])
    assert mask[:10].all() and not mask[10:].any()


def test_masks_can_be_left_out(tmp_path):
    build(tmp_path, [POLYGONS], with_masks=False)
    [record] = tf.data.TFRecordDataset([str(p) for p in (tmp_path / "to").glob("*.tfrecord")])
    assert parse(record, masks=True)["masks"].numpy().tolist() == [b""]
    assert "segmentation" in json.loads((tmp_path / "to/annotations.json").read_text())["annotations"][0]


def test_encode_rejects_before_calling_pycocotools():
    with pytest.raises(DataError, match="do not sum up"):
        segmentations.encode({"size": [2, 2], "counts": [2**31 - 1, 2**31 - 1]}, 2, 2)


def build(folder, segmentations, size_hw=HW, exif=None, **options):
    (folder / "images").mkdir()
    Image.new("RGB", HW[::-1]).save(folder / "images/1.jpg", **({"exif": exif} if exif else {}))
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20], "segmentation": one}
        for n, one in enumerate(segmentations, 1)
    ]
    tree = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": size_hw[0], "width": size_hw[1]}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "a.json").write_text(json.dumps(tree))
    return coco.build(folder / "to", images=folder / "images", annotations=folder / "a.json", **options)


@pytest.mark.parametrize("seed", range(3))
def test_compressed_run_lengths_unpack_to_the_runs(seed):
    """Also with an odd and an even number of runs, and with runs of every number of characters."""
    rng = np.random.default_rng(seed)
    runs = [int(one) for one in rng.integers(0, 10 ** rng.integers(1, 5, 40 + seed))]
    size = [1, sum(runs)]
    packed = coco_mask.frPyObjects({"size": size, "counts": runs}, *size)["counts"].decode()
    assert segmentations.run_lengths({"size": size, "counts": packed}).tolist() == runs


BAD_CODES = {
    "too short": {"size": [30, 40], "counts": [100]},
    "too long": {"size": [30, 40], "counts": [1000, 1000]},
    "negative": {"size": [30, 40], "counts": [-5, 1205]},
    "huge": {"size": [30, 40], "counts": [10**400]},
    "fractions": {"size": [30, 40], "counts": [600.5, 599.5]},
    "flags": {"size": [30, 40], "counts": [True] * 1200},
    "no counts": {"size": [30, 40]},
    "empty": {"size": [30, 40], "counts": ""},
    "cut": {"size": [30, 40], "counts": "P"},
    "other letters": {"size": [30, 40], "counts": "\u00e9\ud800"},
    "long number": {"size": [30, 40], "counts": "o" * 20 + "0"},
    "minus": {"size": [30, 40], "counts": "O1"},
    "size of one": {"size": [1200], "counts": [1200]},
    "size of a flag": {"size": [True, 1200], "counts": [1200]},
    "size of fractions": {"size": [30.5, 40], "counts": [1200]},
    "size of nothing": {"size": [0, 40], "counts": []},
    "a billion pixels": {"size": [10**5, 10**4], "counts": [10**9]},
}
BAD_POLYGONS = {
    "outline": [[0, 0, 9e5, 9e5] * 4],
    "infinite": [[0, 0, float("inf"), 1, 1, 1]],
    "two points": [[0, 0, 1, 1]],
    "text": [["zero", 0, 1, 1, 2, 2]],
}


@pytest.mark.parametrize(
    "segmentation", [*BAD_CODES.values(), *BAD_POLYGONS.values()], ids=[*BAD_CODES, *BAD_POLYGONS]
)
def test_what_pycocotools_must_not_see(segmentation):
    with pytest.raises(DataError) as caught:
        segmentations.checked(segmentation)
    assert "mask" in str(caught.value) and "\n" not in str(caught.value)


def test_a_mask_of_another_size_is_refused_where_the_size_is_known():
    code = {"size": [40, 30], "counts": [1200]}
    assert segmentations.checked(code) == code
    with pytest.raises(DataError, match="another size"):
        segmentations.checked(code, 30, 40)


def characters(number):
    """A number as COCO's compressed run lengths have it: 5 bits a character, the lowest first."""
    low, rest = number & 31, number >> 5
    if rest == (-1 if low & 16 else 0):
        return chr(low + 48)
    return chr((low | 32) + 48) + characters(rest)


def test_runs_whose_sum_wraps_to_the_size():
    """70,000 runs of growing length that sum up to 2^64 + 1200: in int64 this is 1200."""
    count, left, differences = 70_000, 2**64 + 1200, [0]
    for place in range(1, count):
        following = (count + 1 - place) // 2  # a run is its difference and the last run but one
        differences.append(min(2**34 - 1, left // following))
        left -= differences[-1] * following
    assert not left
    with pytest.raises(DataError, match="do not sum up to the image"):
        segmentations.checked({"size": [30, 40], "counts": "".join(map(characters, differences))})

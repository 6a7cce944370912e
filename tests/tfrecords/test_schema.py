import io

import numpy as np
import pytest
from PIL import Image

tf = pytest.importorskip("tensorflow")

from tfrecords.schema import SIDES, parse, serialize  # noqa: E402


def example(**lists):
    """A record as someone else may have written it."""
    kinds = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
    features = tf.train.Example()
    for key, values in lists.items():
        kind = kinds[type(values[0])]
        getattr(features.features.feature["image/" + key.replace("__", "/")], kind).value.extend(values)
    return features.SerializeToString()


ONE_BOX = {f"object__bbox__{side}": [0.0 if "min" in side else 1.0] for side in SIDES}
ONE_BOX |= {"object__class__label": [1]}


def test_serialize_and_parse_round_trip():
    serialized = serialize(
        encoded=b"pixels",
        image_format="png",
        image_id=397133,
        file_name="a/b.png",
        height=100,
        width=200,
        boxes=[[10, 20, 60, 70], [0, 0, 200, 100]],
        category_ids=[90, 1],
        names=["toothbrush", "person"],
        areas=[1234.5, 20000],
        crowd=[0, 1],
    )
    read = parse(serialized)
    assert read["encoded"] == b"pixels" and read["image_id"] == 397133
    assert (read["height"], read["width"]) == (100, 200)
    np.testing.assert_allclose(read["boxes"], [[0.05, 0.2, 0.3, 0.7], [0, 0, 1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(read["category_ids"], [90, 1])
    np.testing.assert_allclose(read["area"], [1234.5, 20000])
    np.testing.assert_array_equal(read["crowd"], [False, True])


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype("uint8")).save(file, "png")
    return file.getvalue()


def test_masks_and_difficult_objects():
    mask = np.arange(12 * 9).reshape(9, 12) % 5 == 0
    serialized = serialize(
        encoded=b"pixels",
        image_format="png",
        image_id=1,
        file_name="",
        height=9,
        width=12,
        boxes=[[0, 0, 12, 9], [1, 1, 2, 2]],
        category_ids=[1, 1],
        names=["a", "a"],
        areas=[21, 1],
        crowd=[0, 0],
        difficult=[False, True],
        masks=[png(mask), b""],
    )
    read = parse(serialized, masks=True)
    np.testing.assert_array_equal(read["difficult"], [False, True])
    np.testing.assert_array_equal(tf.io.decode_png(read["masks"][0])[..., 0], mask)
    assert read["masks"][1] == b""
    assert "masks" not in parse(serialized)
    kinds = tf.train.Example.FromString(serialized).features.feature
    assert kinds["image/object/mask"].WhichOneof("kind") == "bytes_list"
    assert kinds["image/object/difficult"].WhichOneof("kind") == "int64_list"


def test_a_source_without_masks_and_difficult_leaves_the_keys_out():
    read = parse(example(encoded=[b"x"], **ONE_BOX), masks=True)
    np.testing.assert_array_equal(read["difficult"], [False])
    np.testing.assert_array_equal(read["masks"], [b""])


def test_the_keys_are_those_of_the_object_detection_api():
    record = tf.train.Example.FromString(
        serialize(
            encoded=b"x",
            image_format="jpeg",
            image_id=7,
            file_name="b.jpg",
            height=10,
            width=20,
            boxes=[[5, 2, 10, 4]],
            category_ids=[3],
            names=["car"],
            areas=[10],
            crowd=[0],
        )
    )
    got = {
        key: list(getattr(feature, feature.WhichOneof("kind")).value)
        for key, feature in record.features.feature.items()
    }
    [digest] = got.pop("image/key/sha256")  # of "x", as sha256sum says
    assert digest == b"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert got == {
        "image/encoded": [b"x"],
        "image/format": [b"jpeg"],
        "image/filename": [b"b.jpg"],
        "image/source_id": [b"7"],
        "image/height": [10],
        "image/width": [20],
        "image/object/bbox/xmin": [0.25],
        "image/object/bbox/xmax": [0.5],
        "image/object/bbox/ymin": [pytest.approx(0.2)],
        "image/object/bbox/ymax": [pytest.approx(0.4)],
        "image/object/class/label": [3],
        "image/object/class/text": [b"car"],
        "image/object/area": [10.0],
        "image/object/is_crowd": [0],
    }
    kinds = {key: feature.WhichOneof("kind") for key, feature in record.features.feature.items()}
    assert kinds["image/object/area"] == "float_list"  # readers fail on integers there
    assert kinds["image/object/is_crowd"] == "int64_list"


@pytest.mark.parametrize(
    "record",
    [
        serialize(encoded=b"x", image_format="jpeg", image_id=7, file_name="", height=10, width=20),
        example(encoded=[b"x"], source_id=[b"7"], height=[10], width=[20]),
    ],
    ids=["ours", "without object keys"],
)
def test_no_objects(record):
    read = parse(record)
    assert read["boxes"].shape == (0, 4) and read["boxes"].dtype == tf.float32
    for key in ("category_ids", "area", "crowd", "difficult"):
        assert read[key].shape == (0,)


def test_image_without_objects_has_lists_of_the_right_types():
    """As the Model Garden's decoder asks for them: parsing fails where an empty list has another type."""
    serialized = serialize(encoded=b"x", image_format="jpeg", image_id=7, file_name="", height=10, width=20)
    keys = {"bbox/xmin": tf.float32, "class/text": tf.string, "class/label": tf.int64, "area": tf.float32}
    asked = {f"image/object/{key}": tf.io.VarLenFeature(dtype) for key, dtype in keys.items()}
    found = tf.io.parse_single_example(serialized, asked)
    assert all(tf.size(value.values) == 0 for value in found.values())


def test_short_lists_are_padded():
    read = parse(
        example(
            encoded=[b"x"],
            height=[100],
            width=[200],
            source_id=[b"1"],
            object__bbox__xmin=[0.0, 0.5],
            object__bbox__xmax=[0.5, 1.0],
            object__bbox__ymin=[0.0, 0.0],
            object__bbox__ymax=[0.5, 1.0],
            object__class__label=[1, 2],
            object__area=[77.0],
            object__is_crowd=[1],
        )
    )
    np.testing.assert_allclose(read["area"], [77, 100 * 100])
    np.testing.assert_array_equal(read["crowd"], [True, False])


def test_missing_size_is_minus_one():
    read = parse(example(encoded=[b"x"]))
    assert read["height"] == -1 and read["width"] == -1


def test_non_numeric_image_id_is_minus_one():
    ids = [
        int(parse(example(encoded=[b"x"], source_id=[name]))["image_id"])
        for name in (b"000012", b"a.jpg", b"-4", b"", b"1234567890123456789012")
    ]
    assert ids == [12, -1, -1, -1, -1]


def test_boxes_are_clipped_and_empty_ones_removed():
    """Of five boxes the first and the last stay; what belongs to the others goes with them."""
    nan = float("nan")
    read = parse(
        example(
            encoded=[b"x"],
            height=[10],
            width=[10],
            object__bbox__xmin=[-0.5, 0.5, 1.1, nan, 0.2],
            object__bbox__xmax=[0.5, 0.5, 1.2, 0.5, 0.4],
            object__bbox__ymin=[0.0, 0.0, 0.0, 0.0, 0.5],
            object__bbox__ymax=[1.0, 1.0, 1.0, 0.5, 1.5],
            object__class__label=[1, 2, 3, 4, 5],
            object__is_crowd=[0, 0, 0, 0, 1],
            object__area=[1.0, 2.0, 3.0, 4.0, 5.0],
            object__mask=[b"a", b"b", b"c", b"d", b"e"],
        ),
        masks=True,
    )
    np.testing.assert_allclose(read["boxes"], [[0, 0, 0.5, 1], [0.2, 0.5, 0.4, 1]])
    for key, kept in {"category_ids": [1, 5], "crowd": [0, 1], "area": [1, 5], "masks": [b"a", b"e"]}.items():
        np.testing.assert_array_equal(read[key], kept)


def test_labels_that_do_not_match_the_boxes_are_an_error():
    record = example(
        encoded=[b"x"],
        object__class__label=[1, 2],
        object__bbox__xmin=[0.0],
        object__bbox__xmax=[0.5],
        object__bbox__ymin=[0.0],
        object__bbox__ymax=[0.5],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="class/label"):
        parse(record)


def test_importing_the_package_does_not_import_tensorflow():
    import subprocess
    import sys

    code = (
        "import sys; import tfrecords.converters.coco, tfrecords.converters.shapes; "
        "assert not {'tensorflow', 'keras', 'kgarden'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

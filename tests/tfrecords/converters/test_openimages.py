"""Open Images: real rows of versions 4 and 6 on blank images, the real class tree, faults by reason."""

import itertools
import json

import pytest
from PIL import Image
from support import real_data

pytest.importorskip("tensorflow")

from tfrecords import check  # noqa: E402
from tfrecords.adopt import adopt  # noqa: E402
from tfrecords.converters import openimages  # noqa: E402
from tfrecords.records import walk  # noqa: E402
from tfrecords.schema import DataError, parse  # noqa: E402

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsInside\n"
LABELS = "ImageID,Source,LabelName,Confidence\n"
NAMES = "/m/01,Animal\n/m/02,Cat\n/m/03,Dog\n/m/04,Tail\n/m/05,Puppy\n"
# Puppy is under Dog, and Dog hangs under Animal and Toy, which has no description; a tail is part of a cat
TREE = {
    "LabelName": "/m/root",
    "Subcategory": [
        {
            "LabelName": "/m/01",
            "Subcategory": [
                {"LabelName": "/m/02", "Part": [{"LabelName": "/m/04"}]},
                {"LabelName": "/m/03", "Subcategory": [{"LabelName": "/m/05"}]},
            ],
        },
        {"LabelName": "/m/09", "Subcategory": [{"LabelName": "/m/03"}]},
    ],
}


@pytest.fixture
def build(tmp_path):
    """build(boxes, image_labels, **options) on a folder with images a, b (below it) and c of 40x30 px."""
    (tmp_path / "images/train_0").mkdir(parents=True)
    for name in ("a", "train_0/b", "c"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"images/{name}.jpg")
    (tmp_path / "names.csv").write_text(NAMES)
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    numbers = itertools.count()

    def of(boxes, image_labels=None, **options):
        (tmp_path / "boxes.csv").write_text(boxes)
        if image_labels is not None:
            (tmp_path / "labels.csv").write_text(image_labels)
            options["image_labels"] = tmp_path / "labels.csv"
        files = {"annotations": tmp_path / "boxes.csv", "descriptions": tmp_path / "names.csv"}
        return openimages.build(
            tmp_path / f"to{next(numbers)}", images=tmp_path / "images", **files, **options
        )

    return of


BOXES = HEADER + (
    "a,xclick,/m/02,1,0.25,0.75,0.5,1.0,0,0,0,0\n"
    "b,xclick,/m/05,1,0.0,0.1,0.2,0.3,0,0,1,0\n"
    "b,activemil,/m/03,1,0.5,0.6,0.2,0.3,-1,-1,-1,-1\n"
)
VERIFIED = (
    LABELS
    + "a,verification,/m/03,0\na,verification,/m/01,1\nc,verification,/m/02,0\nz,verification,/m/02,1\n"
)


def truth(report):
    return json.loads((report.to / "annotations.json").read_text())


def test_boxes_flags_and_image_labels(build, tmp_path):
    report = build(BOXES, VERIFIED, hierarchy=tmp_path / "tree.json")
    tree = truth(report)
    assert [
        (one["file_name"], one["pos_category_ids"], one["neg_category_ids"]) for one in tree["images"]
    ] == [
        ("a.jpg", [1], [3]),
        ("train_0/b.jpg", [], []),
        ("c.jpg", [], [2]),
    ]
    kept = [(one["image_id"], one["category_id"], one["is_group_of"]) for one in tree["annotations"]]
    assert kept == [(1, 2, 0), (2, 5, 1), (2, 3, 0)]  # -1: not known to be a group
    assert tree["annotations"][0]["bbox"] == [10, 15, 20, 15]
    assert (report.images, report.boxes, report.groups, report.verified) == (3, 3, 1, 3)
    assert [str(one) for one in report.faults] == [f"labels.csv: 1 images: {openimages.NO_FILE}"]
    assert not check.check(report.to).faults


def test_classes_and_their_ancestors(build, tmp_path):
    def ancestors(**options):
        report = build(BOXES, hierarchy=tmp_path / "tree.json", **options)
        return {one["name"]: (one["id"], one["ancestors"], one["source_id"]) for one in report.categories}

    assert ancestors() == {
        "Animal": (1, [], "/m/01"),
        "Cat": (2, [1], "/m/02"),
        "Dog": (3, [1], "/m/03"),
        "Tail": (4, [], "/m/04"),  # a part: no subclass
        "Puppy": (5, [1, 3], "/m/05"),
    }
    # without Dog, a puppy is still an animal
    (tmp_path / "codes.csv").write_text("LabelName,DisplayName\n/m/05,Puppy\n/m/01,Animal\n")
    assert ancestors(classes=tmp_path / "codes.csv") == {
        "Puppy": (1, [2], "/m/05"),
        "Animal": (2, [], "/m/01"),
    }
    (tmp_path / "challenge.csv").write_text("Puppy,/m/05,7\nAnimal,/m/01,3\n")
    assert ancestors(classes=tmp_path / "challenge.csv") == {
        "Animal": (3, [], "/m/01"),
        "Puppy": (7, [3], "/m/05"),
    }
    (tmp_path / "names.txt").write_text("Puppy\nPet\n")
    pets = ancestors(classes=tmp_path / "names.txt", rename={"Cat": "Pet", "Dog": "Pet"})
    assert pets == {"Puppy": (1, [2], "/m/05"), "Pet": (2, [], "/m/02")}
    # Puppy and Dog as one class, which is not above itself; the root is above nothing, even if it is listed
    (tmp_path / "codes.csv").write_text("/m/05,Puppy\n/m/03,Dog\n/m/01,Animal\n/m/root,Entity\n")
    joined = ancestors(classes=tmp_path / "codes.csv", rename={"Puppy": "Pup", "Dog": "Pup"})
    assert joined == {
        "Pup": (1, [3], "/m/05"),
        "Animal": (3, [], "/m/01"),
        "Entity": (4, [], "/m/root"),
    }
    (tmp_path / "names.csv").write_text("/m/77,Mood\n" + NAMES)  # of no box: not in the tree
    assert "Mood" not in ancestors() and ancestors()["Animal"][0] == 1


def test_ancestors_by_a_way_that_comes_later(tmp_path):
    """x hangs under a, and again under d, which is under c, which is under b."""

    def node(name, *below):
        return {"LabelName": f"/m/{name}", "Subcategory": list(below)}

    tree = node("r", node("a", node("x")), node("b", node("c", node("d", node("x")))))
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    (tmp_path / "names.csv").write_text("".join(f"/m/{name},{name}\n" for name in "abcdx"))
    found = openimages.categories_of(tmp_path / "names.csv", tmp_path / "tree.json")
    assert [one["ancestors"] for one in found] == [[], [], [2], [2, 3], [1, 2, 3, 4]]


def test_without_a_tree_and_labels(build):
    report = build(BOXES)
    assert [one["name"] for one in report.categories] == ["Animal", "Cat", "Dog", "Tail", "Puppy"]
    assert "ancestors" not in report.categories[0] and "pos_category_ids" not in truth(report)["images"][0]
    assert report.images == 2 and not check.check(report.to).faults


def test_faults_are_counted_by_reason(build, tmp_path):
    (tmp_path / "one.txt").write_text("Cat\n")
    rows = [
        "a,x,/m/02,1,0.25,0.75,0.5,1.0,0,0,0,0",
        "a,x,/m/02,1,0.25,nan,0.5,1.0,0,0,0,0",
        "a,x,/m/02,1,0.25,0.75,0.5,1.0,0,0",
        "a,x,/m/02,1,0.25,0.25,0.5,1.0,0,0,0,0",
        "a,x,/m/03,1,0.25,0.75,0.5,1.0,0,0,0,0",
        "a,x,/m/99,1,0.25,0.75,0.5,1.0,0,0,0,0",
        "none,x,/m/02,1,0.25,0.75,0.5,1.0,0,0,0,0",
    ]
    labels = LABELS + "a,machine,/m/02,0.7\na,x,/m/02,1\na,y,/m/02,0\n"
    report = build(HEADER + "\n".join(rows), labels, classes=tmp_path / "one.txt")
    assert (report.images, report.images_total, report.boxes, report.boxes_total) == (1, 2, 1, 7)
    assert report.dropped == {
        "its box is not four finite numbers": 1,
        "the line names no image, or has other columns": 1,
        "box without area": 1,
        "its class is not in the list": 1,
        openimages.UNKNOWN_CLASS: 1,
        "its image is left out": 1,
    }
    assert report.remarks == {openimages.NOT_VERIFIED: 1, openimages.BOTH: 1}
    assert truth(report)["images"][0]["pos_category_ids"] == [1]
    assert truth(report)["images"][0]["neg_category_ids"] == []


@pytest.mark.parametrize(
    "files,message",
    [
        ({"boxes.csv": "ImageID,XMin\n"}, "no column LabelName, YMin, XMax, YMax in its first line"),
        ({"names.csv": "Animal\nCat\n"}, "no line has the code of a class"),
        ({"names.csv": "/m/01,Animal\nCat\n"}, "line 2: no code of a class"),
        ({"names.csv": "/m/01,Animal\n/m/01,Cat\n"}, "line 2: /m/01 is listed twice"),
        ({"names.csv": "/m/01\n"}, "a line is not /m/code,name"),
        ({"tree.json": '{"name": "Entity", "children": []}'}, "not a class tree"),
        ({"tree.json": '{"LabelName": "/m/01", "Subcategory": [3]}'}, "not a class tree"),
        ({"labels.csv": "ImageID,LabelName\n"}, "no column Confidence"),
    ],
)
def test_what_is_no_data_set(build, tmp_path, files, message):
    build_it = {"boxes.csv": BOXES, "labels.csv": VERIFIED} | files
    for name in files:
        (tmp_path / name).write_text(files[name])
    with pytest.raises(DataError, match=message) as caught:
        build(build_it["boxes.csv"], build_it["labels.csv"], hierarchy=tmp_path / "tree.json")
    assert "\n" not in str(caught.value)


def test_records_keep_flags_and_labels(build, tmp_path):
    """Read by the parser, and by `adopt`, which takes records of other tools."""
    report = build(BOXES, VERIFIED, hierarchy=tmp_path / "tree.json", shards=1)
    (shard,) = report.to.glob("*.tfrecord")
    groups = [parse(data)["group_of"].numpy().tolist() for _, data, _ in walk(shard)]
    assert groups == [[False], [True, False], []]
    other, ours = (
        json.loads((adopt([shard], tmp_path / "cache") / "annotations.json").read_text()),
        truth(report),
    )
    classes = {2, 3, 5}  # those that boxes have
    for image, original in zip(other["images"], ours["images"], strict=True):
        for key in ("pos_category_ids", "neg_category_ids"):
            assert image.get(key, []) == [one for one in original[key] if one in classes]
    assert [one["is_group_of"] for one in other["annotations"]] == [0, 1, 0]
    ours["annotations"][0]["is_group_of"], ours["images"][2]["neg_category_ids"] = 1, []
    (report.to / "annotations.json").write_text(json.dumps(ours))
    assert set(check.check(report.to).faults) == {
        "annotations.json has other objects than the record",
        "annotations.json has other image-level labels than the record",
    }


def test_real_rows(tmp_path):
    """Genuine rows of version 4, four of them groups, and of version 6; images are blank."""
    root = real_data.folder("openimages_samples")
    (tmp_path / "images").mkdir()
    for name in ("000026e7ee790996", "000062a39995e348", "0000c64e1253d68f", "000002b66c9c498e"):
        Image.new("RGB", (100, 80)).save(tmp_path / f"images/{name}.jpg")
    shared = {
        "images": tmp_path / "images",
        "descriptions": root / "class-descriptions-boxable.csv",
        "hierarchy": root / "bbox_labels_600_hierarchy.json",
        "strict": True,
    }
    report = openimages.build(
        tmp_path / "val",
        annotations=root / "validation-annotations-bbox.sample.csv",
        image_labels=root / "validation-annotations-human-imagelabels.sample.csv",
        **shared,
    )
    assert (report.images, report.boxes, report.groups, report.verified) == (
        3,
        9,
        4,
        2,
    )  # labels of boxable classes
    assert len(report.categories) == 601 and report.categories[0]["name"] == "Tortoise"
    assert not check.check(report.to).faults
    newer = openimages.build(
        tmp_path / "train",
        annotations=root / "oidv6-train-annotations-bbox.sample.csv",
        image_labels=root / "train-annotations-human-imagelabels-boxable.sample.csv",
        **shared,
    )
    assert (newer.images, newer.boxes, newer.groups, newer.verified) == (1, 3, 0, 4)
    first = truth(newer)["annotations"][0]["bbox"]
    assert first == pytest.approx([1.25, 11.875, 18.2812, 35.125], abs=1e-4)


def paths(node, way):
    """{code: all codes on the ways to it}, by the paths of the challenge's own tool, which skips parts."""
    found = {}
    for child in node.get("Subcategory", ()):
        code = child["LabelName"]
        below = paths(child, (*way, code))
        for one, codes in [(code, set(way)), *below.items()]:
            found[one] = found.get(one, set()) | codes
    return found


def test_the_real_tree_in_the_words_of_its_classes():
    """Classes above one another in the real tree; a part is not below its whole."""
    root = real_data.folder("openimages_samples")
    found = openimages.categories_of(
        root / "class-descriptions-boxable.csv", root / "bbox_labels_600_hierarchy.json"
    )
    name_of = {one["id"]: one["name"] for one in found}
    above = {one["name"]: {name_of[n] for n in one["ancestors"]} for one in found}
    tree = json.loads((root / "bbox_labels_600_hierarchy.json").read_text())
    code_of = {one["name"]: one["source_id"] for one in found}
    expected = paths(tree, ())
    for name, names in above.items():
        assert {code_of[one] for one in names} == expected[code_of[name]], name
    assert above["Sea turtle"] == {"Turtle", "Reptile", "Animal"}
    assert above["Woman"] == {"Person"} and "Person" not in above["Human eye"]
    assert all("Entity" not in names for names in above.values()) and "Entity" not in above

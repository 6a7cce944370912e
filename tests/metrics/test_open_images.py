"""Open Images with class tree and verified image-level labels: by hand, by the rule in loops, end to end."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from support.metric_tables import table

from kgarden.errors import UserError
from kgarden.metrics.arrays import tabulate
from kgarden.metrics.open_images import Rules, evaluate_open_images, expanded, judged, open_images_ap
from kgarden.metrics.report import score_file

ANIMAL, CAT, DOG, PUPPY, CAR = range(5)
ABOVE = {CAT: [ANIMAL], DOG: [ANIMAL], PUPPY: [ANIMAL, DOG]}


def known(objects, detections, verified=None, above=ABOVE):
    """A Table of the five classes with their tree."""
    ancestors = np.zeros((5, 5), bool)
    for label, others in above.items():
        ancestors[label, others] = True
    rows = None if verified is None else np.array(verified, int).reshape(-1, 3)
    return dataclasses.replace(table(objects, detections, 5, 4), ancestors=ancestors, verified=rows)


BOX, OTHER = (0, 0, 10, 10), (50, 50, 60, 60)


def test_objects_and_detections_go_up_the_tree():
    data = known([(0, *BOX, PUPPY, 0, 1), (1, *BOX, CAR)], [(0, *BOX, 0.9, CAT), (1, *OTHER, 0.8, CAR)])
    whole = expanded(data)
    assert sorted(zip(whole.objects.image, whole.objects.label, whole.objects.group, strict=True)) == [
        (0, ANIMAL, True),
        (0, DOG, True),
        (0, PUPPY, True),
        (1, CAR, False),
    ]
    assert whole.detections.label.tolist() == [CAT, CAR, ANIMAL]
    assert whole.detections.score.tolist() == [0.9, 0.8, 0.9]
    np.testing.assert_array_equal(whole.detections.boxes, [BOX, OTHER, BOX])
    nothing = expanded(known([], []))
    assert len(nothing.objects) == len(nothing.detections) == 0


def test_a_sibling_is_right_as_what_both_are():
    """A cat taken for a dog: an animal all the same, and nothing is known of dogs there. Animal 1, Cat 0."""
    data = known([(0, *BOX, CAT)], [(0, *BOX, 0.9, DOG)], verified=[])
    found = evaluate_open_images(data)
    np.testing.assert_array_equal(found["ap"], [1, 0, np.nan, np.nan, np.nan])
    assert found["map"] == 0.5 and found["num_objects"].tolist() == [1, 1, 0, 0, 0]
    flat = evaluate_open_images(data, Rules(hierarchy=False))
    assert flat["map"] == 0 and flat["num_objects"].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "verified,counting",
    [
        ([], {CAT, ANIMAL}),
        ([(0, CAR, 0)], {CAT, ANIMAL, CAR}),
        ([(0, CAR, 1)], {CAT, ANIMAL, CAR}),
        ([(1, CAR, 1)], {CAT, ANIMAL}),  # of another image
        ([(0, PUPPY, 1)], {CAT, ANIMAL, PUPPY, DOG}),  # a puppy there is a dog there
        ([(0, PUPPY, 0)], {CAT, ANIMAL, PUPPY}),  # no puppy there says nothing of dogs
        ([(0, DOG, 0)], {CAT, ANIMAL, DOG, PUPPY}),  # no dog there: no puppy either
        ([(0, DOG, 1)], {CAT, ANIMAL, DOG}),
    ],
)
def test_which_classes_count_in_an_image(verified, counting):
    everything = [(0, *OTHER, 0.5, label) for label in range(5)]
    data = expanded(known([(0, *BOX, CAT)], everything, verified))
    kept = judged(data, "verified")
    assert set(data.detections.label[kept]) == counting
    assert set(data.detections.label[judged(data, "annotated")]) == {CAT, ANIMAL}
    assert judged(data, "none").all()


def test_the_filter_of_the_release_has_the_first_class_always():
    data = known(
        [(1, *BOX, CAR)], [(0, *BOX, 0.9, ANIMAL), (0, *BOX, 0.9, CAT), (1, *BOX, 0.9, CAR)], above={}
    )
    assert judged(data, "release").tolist() == [True, False, True]
    assert judged(data, "annotated").tolist() == [False, False, True]


def test_defaults_are_those_of_the_data():
    wrong = [(0, *OTHER, 0.95, CAR), (0, *BOX, 0.9, CAT)]
    with_labels = known([(0, *BOX, CAT), (1, *BOX, CAR)], wrong, verified=[])
    without = dataclasses.replace(with_labels, verified=None)
    bare = dataclasses.replace(without, ancestors=None)
    assert Rules().of(with_labels) == ("verified", True) and Rules().of(bare) == ("none", False)
    assert Rules("none").of(with_labels) == ("none", True)
    assert evaluate_open_images(bare)["map"] == open_images_ap(bare)["map"] == 0.5
    with pytest.raises(UserError, match="needs image-level labels"):
        evaluate_open_images(without, Rules("verified"))
    with pytest.raises(UserError, match="filter 'gt_only' is not supported; use one of verified, annotated"):
        evaluate_open_images(without, Rules("gt_only"))


def by_images(objects, found, verified, above):
    """The protocol image by image in sets and lists, on objects and detections that it writes out anew."""

    def up(rows, at):
        return [
            row[:at] + (label,) + row[at + 1 :]
            for row in rows
            for label in (row[at], *above.get(row[at], []))
        ]

    below = {label: [one for one in above if label in above[one]] for label in range(5)}
    objects, found = up(objects, 5), up(found, 6)
    counted = []
    for image in range(4):
        there = {row[5] for row in objects if row[0] == image}
        for number, label, present in verified:
            if number == image:
                there |= {label, *(above.get(label, []) if present else below[label])}
        counted += [row for row in found if row[0] == image and row[6] in there]
    return open_images_ap(table(objects, counted, 5, 4))["ap"]


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_rule_image_by_image(seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 40, (24, 2))
    boxes = np.concatenate([corner, corner + random.uniform(20, 50, (24, 2))], axis=1).tolist()
    labels, images = random.integers(0, 5, 24).tolist(), random.integers(0, 4, 24).tolist()
    objects = [
        (image, *box, label, 0, int(random.random() < 0.2))
        for image, box, label in zip(images, boxes, labels, strict=True)
    ]
    found = [
        (row[0], *(np.array(row[1:5]) + random.normal(0, 3, 4)), score, int(random.integers(0, 5)))
        for row, score in zip(objects * 3, random.random(72), strict=True)
    ]
    verified = [(int(n), int(label), int(p)) for n, label, p in random.integers(0, [4, 5, 2], (6, 3))]
    got = evaluate_open_images(known(objects, found, verified))["ap"]
    np.testing.assert_allclose(got, by_images(objects, found, verified, ABOVE), atol=1e-12)


def test_tables_read_trees_and_labels():
    """Ids are neither dense nor sorted; those of other images and classes are dropped."""
    truth = {
        "images": [
            {"id": 8, "pos_category_ids": [5], "neg_category_ids": [9, 77]},
            {"id": 3},
            {"id": 4, "pos_category_ids": [5], "neg_category_ids": []},
        ],
        "categories": [{"id": 9, "name": "cat", "ancestors": [5, 77]}, {"id": 5, "name": "animal"}],
        "annotations": [],
    }
    data = tabulate(truth, [], [8, 3])
    np.testing.assert_array_equal(data.ancestors, [[False, False], [True, False]])
    np.testing.assert_array_equal(data.verified, [[1, 0, 1], [1, 1, 0]])
    plain = tabulate({**truth, "images": [{"id": 3}], "categories": [{"id": 1, "name": "x"}]}, [])
    assert plain.ancestors is plain.verified is None


# --- end to end -------------------------------------------------------------------------------------

# Two images of 100 x 100 px. a: a cat, a group of dogs; no car for certain. b: a puppy; verified, a cat, too.
OBJECTS = [
    ("a", "/m/2", 0.0, 0.2, 0.0, 0.2, 0),
    ("a", "/m/3", 0.5, 1.0, 0.5, 1.0, 1),
    ("b", "/m/4", 0.0, 0.4, 0.0, 0.4, 0),
]
VERIFIED = [("a", "/m/5", 0), ("a", "/m/2", 1), ("b", "/m/2", 1)]
TREE = {
    "LabelName": "/m/0",
    "Subcategory": [
        {
            "LabelName": "/m/1",
            "Subcategory": [
                {"LabelName": "/m/2"},
                {"LabelName": "/m/3", "Subcategory": [{"LabelName": "/m/4"}]},
            ],
        },
        {"LabelName": "/m/5"},
    ],
}
DETECTED = [  # image, class, xywh px, score
    ("a", "Car", (0, 0, 20, 20), 0.95),  # no car there: wrong
    ("b", "Car", (0, 0, 40, 40), 0.94),  # nothing known of cars there: ignored
    ("a", "Dog", (50, 50, 20, 20), 0.9),  # in the group: right
    ("a", "Dog", (80, 80, 20, 20), 0.8),  # in the group again: ignored
    ("b", "Cat", (0, 0, 40, 40), 0.7),  # verified, but that is the puppy: wrong as a cat, right as an animal
    ("b", "Dog", (0, 0, 40, 40), 0.6),  # right as a dog; as an animal, the puppy is found already: wrong
    ("a", "Cat", (0, 0, 20, 20), 0.5),  # right
]
# Animal, 3 objects: group right, (ignored), right, wrong, right -> 1/3 (1 + 1 + 3/4)
# Cat, 1 object: wrong, right -> 1/2.    Dog, 2 objects (the group, the puppy): right, right -> 1.
# Puppy, 1 object: none -> 0.            Car: no object.
ANIMALS = (1 + 1 + 0.75) / 3
GREY = {"a": 60, "b": 180}  # by which a scripted model knows an image
EXPECTED = {"Animal": ANIMALS, "Cat": 0.5, "Dog": 1.0, "Puppy": 0.0, "Car": None}


@pytest.fixture
def drawn(tmp_path):
    """The files of Open Images, and the folder of the two images."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (100, 100), (GREY[name],) * 3).save(tmp_path / f"images/{name}.jpg")
    columns = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
    tables = {"boxes": [columns, *OBJECTS], "labels": [("ImageID", "LabelName", "Confidence"), *VERIFIED]}
    tables["names"] = [(f"/m/{n}", name) for n, name in enumerate(EXPECTED, 1)]
    for name, rows in tables.items():
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    (tmp_path / "tree.json").write_text(json.dumps(TREE))
    return tmp_path


def results_of(annotations):
    truth = json.loads(annotations.read_text())
    image = {one["file_name"][0]: one["id"] for one in truth["images"]}
    label = {one["name"]: one["id"] for one in truth["categories"]}
    return [
        {"image_id": image[name], "category_id": label[kind], "bbox": list(box), "score": score}
        for name, kind, box, score in DETECTED
    ]


@pytest.mark.tensorflow
def test_from_the_tables_to_the_metric(drawn, capsys):
    """`data build openimages`, `data check`, `evaluate` of a results file: AP by hand."""
    from kgarden.cli import main

    files = {"images": "images", "annotations": "boxes.csv", "descriptions": "names.csv"}
    files |= {"image-labels": "labels.csv", "hierarchy": "tree.json"}
    options = [word for key, name in files.items() for word in (f"--{key}", str(drawn / name))]
    assert main(["data", "build", "openimages", *options, "--to", str(drawn / "set"), "--strict"]) == 0
    assert "1 around groups" in capsys.readouterr().out
    assert main(["data", "check", str(drawn / "set")]) == 0
    truth = drawn / "set/annotations.json"
    (drawn / "found.json").write_text(json.dumps(results_of(truth)))
    words = ["evaluate", str(drawn / "found.json"), "--annotations", str(truth), "--metrics", "open_images"]
    assert main([*words, "--json", str(drawn / "numbers.json")]) == 0
    numbers = json.loads((drawn / "numbers.json").read_text())
    got = {row["name"]: row["open_images_ap"] for row in numbers["per_class"]}
    wanted = {name: ap if ap is None else pytest.approx(100 * ap) for name, ap in EXPECTED.items()}
    assert got == wanted and numbers["open_images"] == {"filter": "verified", "hierarchy": True}
    assert numbers["metrics"]["open_images_map"] == pytest.approx(25 * (ANIMALS + 1.5))
    assert [row["open_images_objects"] for row in numbers["per_class"]] == [3, 1, 2, 1, 0]
    assert main([*words, "--open-images", "annotated", "--json", str(drawn / "annotated.json")]) == 0
    annotated = json.loads((drawn / "annotated.json").read_text())
    # nothing known of cats in b: the wrong one is ignored
    assert {row["name"]: row["open_images_ap"] for row in annotated["per_class"]}["Cat"] == 100
    flat = score_file(drawn / "found.json", truth, ["open_images"], open_images=Rules(hierarchy=False))[0]
    # without the tree: the puppy is no dog, and of dogs in b nothing is known; no animal is annotated
    assert [row["open_images_ap"] for row in flat["per_class"]] == [None, 50.0, 100.0, 0.0, None]


class Scripted:
    """An inference model that finds DETECTED, at twice the size."""

    def __init__(self, names):
        self.names = names

    def predict_on_batch(self, x):
        grey = x["images"][:, 0, 0, 0].astype(int)
        rows = [[d for d in DETECTED if abs(GREY[d[0]] - value) < 9] for value in grey]
        rows = [
            of_image + [("", self.names[0], (0, 0, 1, 1), 0.0)] * (5 - len(of_image)) for of_image in rows
        ]
        corners = np.float32([[(x, y, x + w, y + h) for _, _, (x, y, w, h), _ in row] for row in rows])
        return {
            "boxes": 2 * corners,
            "scores": np.float32([[score for *_, score in row] for row in rows]),
            "labels": np.int32([[self.names.index(name) for _, name, *_ in row] for row in rows]),
            "valid": np.array([[score > 0 for *_, score in row] for row in rows]),
        }


@pytest.mark.tensorflow
def test_a_recipe_on_open_images(drawn, tmp_path):
    """Raw tables in a recipe, converted and read; what the model finds is judged by the recipe's rules."""
    import types

    from kgarden.build import prepare_data
    from kgarden.config.loading import load_recipe
    from kgarden.evaluation import evaluate

    files = {"images": "images", "annotations": "boxes.csv", "descriptions": "names.csv"}
    files |= {"image_labels": "labels.csv", "hierarchy": "tree.json"}
    source = {"format": "openimages", **{key: str(drawn / name) for key, name in files.items()}}
    sizes = {"data.short_side_px": 200, "data.long_side_px": 200, "data.canvases": [[200, 200]]}
    settings = {"data.train": source, "data.val": source, **sizes, "model.num_classes": 5}
    of_step = types.SimpleNamespace(value=np.array(0))
    detector = types.SimpleNamespace(selection=types.SimpleNamespace(total=100), step=of_step)
    found = []
    for rules in ({}, {"filter": "annotated"}, {"hierarchy": False}):
        recipe = load_recipe(
            "quickstart", {**settings, "evaluate.metrics": ["open_images"], "evaluate.open_images": rules}
        )
        data = prepare_data(recipe, cache=tmp_path / "cache", splits=("val",))
        names = [one["name"] for one in data.categories]
        evaluation, _ = evaluate(
            detector,
            recipe,
            data.val_batches(),
            data.categories,
            data.annotations,
            model=Scripted(names),
            explained=False,
        )
        found.append([row["open_images_ap"] for row in evaluation["per_class"]])
    wanted = [ap if ap is None else pytest.approx(100 * ap) for ap in EXPECTED.values()]
    assert found[0] == wanted
    assert found[1] == [wanted[0], 100.0, *wanted[2:]]  # nothing known of cats in b
    assert found[2] == [None, 50.0, 100.0, 0.0, None]

"""The large vocabulary of shapes: classes that look different, frequencies of their rank, absent classes."""

import json

import numpy as np
import pytest

from tfrecords.converters import shapes
from tfrecords.converters.shape_classes import SIX, vocabulary
from tfrecords.schema import DataError


def test_classes_have_names_and_looks_of_their_own():
    classes = vocabulary(216, 0.0)
    names = [one["name"] for one in classes.categories]
    assert len(set(names)) == 216 and {"red disc", "striped azure ring", "cored rose star"} <= set(names)
    assert [one["name"] for one in vocabulary(20).categories] == names[:20]  # the first of a smaller one
    frequencies = [one["frequency"] for one in classes.categories]
    assert frequencies == ["f"] * 72 + ["c"] * 72 + ["r"] * 72
    rng = np.random.default_rng(0)
    mean = {look.hue: look.colors(rng, 50).mean(axis=0) for look in classes.looks}
    distance = [np.abs(mean[a] - mean[b]).max() for a in mean for b in mean if a < b]
    assert min(distance) > 40
    pure = [mean[row] > 150 for row in (0, 4, 8)]  # red, green, blue
    assert np.array(pure).tolist() == np.eye(3, dtype=bool).tolist()
    fills = {look.fill: look.brightness(40, 40) for look in classes.looks}
    assert (fills["plain"] == 1).all()
    dark = {name: fill < 1 for name, fill in fills.items()}
    assert 0.3 < dark["striped"].mean() < 0.7 and 0.2 < dark["cored"].mean() < 0.5
    assert dark["cored"][20, 20] and not dark["cored"][1, 1]


def test_frequencies_follow_the_rank():
    rng = np.random.default_rng(0)
    for zipf in (0.0, 1.0, 1.5):
        classes = vocabulary(10, zipf)
        drawn = np.bincount([classes.sample(rng) for _ in range(4000)], minlength=10) / 4000
        weights = 1 / np.arange(1, 11) ** zipf
        np.testing.assert_allclose(drawn, weights / weights.sum(), atol=0.03)
    assert vocabulary(10).zipf == 1


def test_what_is_drawn_without_a_vocabulary_stays():
    """The six shapes as they always were: of this seed the first labels, from `rng.integers`."""
    rng, same = np.random.default_rng(7), np.random.default_rng(7)
    assert [SIX.sample(rng) for _ in range(9)] == [same.integers(6) for _ in range(9)]
    assert vocabulary() is SIX and shapes.CATEGORIES[0] == {"id": 1, "name": "disc"}
    with pytest.raises(DataError, match="zipf is for a large vocabulary"):
        vocabulary(zipf=1.0)
    for number in (1, 217):
        with pytest.raises(DataError, match=f"shapes: {number} classes: 2 to 216"):
            vocabulary(number)


def test_absent_classes_are_absent(tmp_path):
    pytest.importorskip("tensorflow")
    report = shapes.build(
        tmp_path / "to", count=12, seed=3, size_hw=(64, 64), num_classes=30, zipf=0.5, workers=0
    )
    tree = json.loads((report.to / "annotations.json").read_text())
    assert tree["categories"] == shapes.categories_of(30) and len(tree["categories"]) == 30
    for image in tree["images"]:
        present = {one["category_id"] for one in tree["annotations"] if one["image_id"] == image["id"]}
        assert set(image["pos_category_ids"]) == present
        absent = image["neg_category_ids"]
        assert len(set(absent)) == len(absent) == 20 and not present & set(absent)
    one, same, other = (vocabulary(30).absent([], 3, number).tolist() for number in (4, 4, 5))
    assert one == same != other

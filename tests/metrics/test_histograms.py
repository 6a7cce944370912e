"""Histograms of a data set: the numbers are by hand, the figure is a PNG."""

import io

from PIL import Image

from kgarden.metrics import histograms as module
from kgarden.metrics.histograms import histograms, histograms_figure, histograms_text
from tfrecords.data_statistics import facts_of

NAMES = ["cup", "a $name$ that is far too long to be shown whole", "<b>"]


def facts(objects=(3, 0, 1), names=NAMES):
    """Images with so many objects, of 6 x 6 px (class 1) but the first, of 100 x 100 px (class 2)."""
    annotations = [
        {"image_id": n, "category_id": 1, "bbox": [0, 0, 6, 6]}
        for n, count in enumerate(objects)
        for _ in range(count)
    ]
    annotations[:1] = [{**one, "category_id": 2, "bbox": [0, 0, 100, 100]} for one in annotations[:1]]
    return facts_of(
        {
            "images": [{"id": n, "height": 200, "width": 300} for n in range(len(objects))],
            "annotations": annotations,
            "categories": [{"id": n, "name": name} for n, name in enumerate(names, 1)],
        }
    )


def test_counts():
    classes, sides, per_image = histograms(facts()).values()
    assert [count for _, count in classes] == [3, 1, 0] and classes[0][0] == "cup"
    assert sides == [("4 to 8", 3), ("8 to 16", 0), ("16 to 32", 0), ("32 to 64", 0), ("64 to 128", 1)]
    assert per_image == [("0", 1), ("1", 1), ("2", 0), ("3", 1)]


def test_many_classes_and_objects_are_joined():
    many = [f"class {n}" for n in range(60)]
    classes, _, per_image = histograms(facts((47, 23, 1), many)).values()
    assert (
        classes[0] == ("class 0", 70)
        and classes[1] == ("class 1", 1)
        and classes[-1] == ("36 other classes", 0)
    )
    assert len(classes) == 25
    assert (
        per_image[0] == ("0 to 3", 1) and per_image[5] == ("20 to 23", 1) and per_image[-1] == ("44 to 47", 1)
    )
    assert len(per_image) == 12 and sum(count for _, count in per_image) == 3


def test_text_and_figure():
    text = histograms_text(facts())
    title, first, second, third, *_ = text.splitlines()
    assert title == "objects of each class (4 objects)"
    assert (
        first.split() == ["cup", "3", "#" * 40]
        and second.endswith("#" * 14)
        and third.split() == ["<b>", "0"]
    )
    assert "a $name$ that is far to…" in second
    image = Image.open(io.BytesIO(histograms_figure(facts())))
    assert image.format == "PNG" and image.width > 1000


def test_a_name_without_glyphs_is_drawn_as_its_id(monkeypatch):
    monkeypatch.setattr(module, "png_of", lambda figure: figure)
    lacking = facts(names=["\U0010fffd", *NAMES[1:]])
    ticks = histograms_figure(lacking).axes[0].get_yticklabels()
    assert [one.get_text() for one in ticks] == ["1", r"a \$name\$ that is far to…", "<b>"]
    assert "\U0010fffd" in histograms_text(lacking)


def test_a_data_set_without_objects():
    empty = facts((0,), ["cup"])
    assert "0 objects" in histograms_text(empty) and histograms_figure(empty).startswith(b"\x89PNG")

"""Counts by class, by hand."""

import io

from rich.console import Console

from kgarden.commands.detection_summary import counts_by_class, summary_table

CATEGORIES = [{"id": 7, "name": "[red]"}, {"id": 3, "name": "green"}, {"id": 4, "name": "blue"}]


def record(*detections):
    return {"detections": [{"category_id": one, "score": score} for one, score in detections]}


RECORDS = [record((7, 0.9), (7, 0.3), (3, 0.29)), record((3, 0.5), (7, 0.8)), record((4, 0.1)), record()]


def test_objects_and_images_by_class():
    assert counts_by_class(RECORDS, CATEGORIES, 0.3) == [
        {"name": "[red]", "objects": 3, "images": 2},
        {"name": "green", "objects": 1, "images": 1},
        {"name": "all", "objects": 4, "images": 2},
    ]
    assert counts_by_class([], CATEGORIES, 0.3) == [{"name": "all", "objects": 0, "images": 0}]


def test_the_table_shows_names_as_they_are():
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(RECORDS, CATEGORIES, 0.3))
    text = console.file.getvalue()
    assert "[red]" in text and "scores of 0.3 and more" in text and "blue" not in text

"""Remarks before the first step: limits come from recipe and detector, each sentence is said once."""

import types

import pytest

pytest.importorskip("tensorflow")

from kgarden.config.loading import load_recipe  # noqa: E402
from kgarden.training.data_remarks import data_remarks  # noqa: E402
from kgarden.utils.files import write_json  # noqa: E402

BOX = [10, 10, 30, 30]


def part(**values):
    return types.SimpleNamespace(**values)


@pytest.fixture
def remarks(tmp_path):
    """The remarks on a train and a val set with so many objects in one image of 100 x 200 px."""

    def remarks(train, val, box=BOX, proposals=(50, 40), total=30, stride=8, **overrides):
        datasets = {}
        for name, count in (("train", train), ("val", val)):
            annotations = [{"image_id": 1, "category_id": 1, "bbox": box}] * count
            truth = {
                "images": [{"id": 1, "file_name": f"{name}.jpg", "height": 100, "width": 200}],
                "annotations": annotations,
                "categories": [{"id": 1, "name": "cup"}],
            }
            manifest = {"categories": truth["categories"], "shards": []}  # of a version without statistics
            write_json(tmp_path / name / "annotations.json", truth)
            write_json(tmp_path / name / "manifest.json", manifest)
            datasets[name] = [part(annotations=[tmp_path / name / "annotations.json"])]
        proposer = part(train=part(total=proposals[0]), test=part(total=proposals[1])) if proposals else None
        detector = part(proposer=proposer, selection=part(total=total), neck=part(strides=[stride, 64]))
        sizes = {"data.short_side_px": 100, "data.long_side_px": 200, "evaluate.max_detections": 35}
        recipe = load_recipe("quickstart", overrides={**sizes, "data.canvases": None, **overrides})
        return data_remarks(part(**datasets), recipe, detector)

    return remarks


def test_no_remarks_within_the_limits(remarks):
    assert remarks(30, 30) == []


def test_each_limit_is_compared(remarks):
    [sentence] = remarks(45, 3)
    assert sentence.startswith("data.train: The fullest image, train.jpg, has 45 objects")
    for words in (
        "model.selection.total is 30",
        "the number of proposals is 40",
        "evaluate.max_detections is 35 for each class",
    ):
        assert words in sentence
    assert "max_objects" not in sentence
    [sentence] = remarks(45, 3, proposals=None, total=45)
    assert "evaluate.max_detections is 35" in sentence and "proposals" not in sentence


def test_sizes_are_those_of_training_and_of_the_test(remarks):
    tiny = [10, 10, 12, 12]
    assert remarks(3, 3, box=tiny) == []
    [sentence] = remarks(3, 3, tiny, **{"data.test_short_side_px": 50, "data.test_long_side_px": 100})
    assert sentence.startswith(
        "data.val: Half of the objects are smaller than about 5 x 5 px after resizing"
    )  # bins: 6
    [sentence] = remarks(3, 3, box=tiny, stride=16)
    assert sentence.startswith("data.train: Half of the objects")  # said once for both


def test_a_data_set_that_is_not_known_is_said_to_be(remarks, tmp_path):
    datasets = part(train=[part(annotations=[tmp_path / "none/annotations.json"])], val=[])
    detector = part(selection=part(total=30), neck=part(strides=[8]))
    [sentence] = data_remarks(datasets, load_recipe("quickstart"), detector)
    assert sentence.startswith("data.train: its plausibility is not known")

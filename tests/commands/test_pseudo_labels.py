"""Self-training: detections of a run as the objects of a data set."""

import json

import numpy as np
import pytest
from PIL import Image
from support.fake_runs import NAMES, make_run

from kgarden import cli
from kgarden.commands import pseudo_labels
from kgarden.data.sources import open_dataset
from kgarden.errors import UserError
from kgarden.inference.detections import Detections
from kgarden.inference.image_sources import read_image

pytestmark = pytest.mark.tensorflow
FOUND = {  # by the value of an image's first pixel: boxes, scores, labels
    10: ([[1, 2, 21, 12], [0, 0, 8, 8]], [0.9, 0.4], [2, 0]),
    20: ([[3, 3, 9, 9]], [0.5], [5]),
    30: ([[3, 3, 9, 9]], [0.1], [1]),
}


class KnownPredictor:
    """A predictor whose detections are given."""

    def __init__(self, categories):
        self.categories = categories

    def stream(self, paths, on_fault):
        for path in paths:
            try:
                image = read_image(path)
            except UserError as fault:
                on_fault(str(fault))
                continue
            boxes, scores, labels = FOUND[int(image[0, 0, 0])]
            found = {"boxes": np.float32(boxes), "scores": np.array(scores), "labels": np.array(labels)}
            found["valid"] = np.ones(len(boxes), bool)
            yield image, Detections(found, self.categories, image.shape[:2], read=None, path=path)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    ids = [1, 2, 4, 7, 9, 12]
    categories = [{"id": one, "name": name} for one, name in zip(ids, NAMES, strict=True)]
    (folder / "labels.json").write_text(json.dumps(categories))
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, value in (("b.png", 10), ("a.png", 30), ("more/b.png", 20)):
        Image.fromarray(np.full((30, 40, 3), value, "uint8")).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def built(run, images, to, monkeypatch, *options):
    categories = json.loads((run / "labels.json").read_text())
    made = []

    def from_run(path, batch_size, overrides):
        made.append((path, batch_size, overrides))
        return KnownPredictor(categories)

    monkeypatch.setattr(pseudo_labels.Predictor, "from_run", from_run)
    code = cli.main(["data", "pseudo", str(run), str(images), "--to", str(to), *options])
    return code, made


def test_detections_become_objects(run, images, tmp_path, monkeypatch, capsys):
    code, made = built(
        run, images, tmp_path / "out", monkeypatch, "--batch-size", "2", "--set", "evaluate.views.flip=true"
    )
    assert code == 0 and made == [(run, 2, {"evaluate.views.flip": True})]
    printed = capsys.readouterr()
    assert "3 of 3 images, 2 of 2 boxes" in printed.out and "broken.png" in printed.err
    assert "4/4 images" in printed.out  # the one that could not be read included
    dataset = open_dataset(str(tmp_path / "out"))
    assert [one["name"] for one in dataset.categories] == list(NAMES)
    assert [one["id"] for one in dataset.categories] == [1, 2, 4, 7, 9, 12]
    truth = json.loads(dataset.annotations[0].read_text())
    names = {one["id"]: one["file_name"] for one in truth["images"]}
    objects = {names[one["image_id"]]: (one["category_id"], one["bbox"]) for one in truth["annotations"]}
    assert objects == {"b.png": (4, [1, 2, 20, 10]), "more/b.png": (12, [3, 3, 6, 6])}


def test_a_lower_score_takes_more(run, images, tmp_path, monkeypatch, capsys):
    assert built(run, images, tmp_path / "out", monkeypatch, "--score", "0.3")[0] == 0
    assert "3 of 3 boxes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--score", "0.95"], "no detection of score 0.95 or more; lower the score"),
        (["--score", "50"], "score: a number from 0 to 1 is needed, not 50.0"),
    ],
)
def test_scores_without_a_result_are_refused(run, images, tmp_path, monkeypatch, capsys, options, said):
    assert built(run, images, tmp_path / "out", monkeypatch, *options)[0] == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_folders_that_are_missing_or_there_are_refused(run, images, tmp_path, monkeypatch, capsys):
    assert built(run, tmp_path / "none", tmp_path / "out", monkeypatch)[0] == 2
    assert "none: no such folder of images" in capsys.readouterr().err
    assert built(run, images, images, monkeypatch)[0] == 2
    assert "exists; use another directory" in capsys.readouterr().err


def test_masks_are_kept_and_scores_are_not():
    row = {"box": [1, 2, 4, 8], "score": 0.7, "category_id": 3, "name": "x", "segmentation": {"counts": "z"}}
    expected = {
        "image_id": 5,
        "bbox": [1, 2, 3, 6],
        "iscrowd": 0,
        "category_id": 3,
        "segmentation": {"counts": "z"},
    }
    assert pseudo_labels._annotation(row, 5) == expected


@pytest.mark.slow
def test_a_training_reads_both_sets(tmp_path, images):
    """Labels of a real run, and a recipe of labelled and pseudo-labelled data."""
    run = make_run(tmp_path / "little")
    out = tmp_path / "pseudo"
    assert cli.main(["data", "pseudo", str(run), str(images), "--to", str(out), "--score", "0.01"]) == 0
    recipe = tmp_path / "little" / "given.yaml"
    both = f"[{{format: shapes, count: 4, seed: 0, size_hw: [96, 128]}}, {{glob: {out}}}]"
    options = ["--run", str(tmp_path / "both"), "--set", f"data.train={both}"]
    assert cli.main(["train", str(recipe), *options]) == 0

"""Contact sheets of data sets and of training batches."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from kgarden import cli  # noqa: E402
from kgarden.config.loading import load_recipe  # noqa: E402
from kgarden.data.examples import stored_example  # noqa: E402
from kgarden.data.sources import open_dataset  # noqa: E402
from kgarden.errors import UserError  # noqa: E402
from kgarden.visualization.contact_sheet import CELL, GAP, show_recipe, show_shards  # noqa: E402
from kgarden.visualization.draw import color_of, draw_truth  # noqa: E402
from tfrecords.converters import shapes  # noqa: E402


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A directory of shards with twenty synthetic images of 96x128 px."""
    folder = tmp_path_factory.mktemp("show") / "drawn"
    shapes.build(folder, count=20, seed=0, size_hw=(96, 128))
    return folder


def recipe_of(drawn, **more):
    data = {"data.train": str(drawn), "data.val": str(drawn), "data.batch_size": 2, "data.cache": "none"}
    sizes = {"data.short_side_px": [96], "data.long_side_px": 128, "data.canvases": [[96, 160]]}
    return load_recipe("quickstart", overrides={**data, **sizes, **more})


def data_of(drawn, **more):
    from kgarden.build import prepare_data

    return prepare_data(recipe_of(drawn, **more), splits=("train",))


def point_grid_of(path, width, height, count):
    """The images of a sheet, in order; all have the same size."""
    sheet = np.asarray(Image.open(path))
    across = (sheet.shape[1] - GAP) // (width + GAP)
    for number in range(count):
        top, left = (
            GAP + part * (side + GAP)
            for part, side in zip(divmod(number, across), (height, width), strict=True)
        )
        yield sheet[top : top + height, left : left + width]


def test_sheets_show_stored_images(drawn, tmp_path):
    paths = show_shards(open_dataset(drawn), tmp_path / "sheets", count=14, seed=0)
    assert [path.name for path in paths] == ["sheet-001.png", "sheet-002.png"]
    assert sorted((tmp_path / "sheets").glob("[!.]*")) == paths
    dataset = open_dataset(drawn)
    rows = sorted(np.random.default_rng(0).permutation(20)[:14].tolist())
    for row, cell in zip(rows, point_grid_of(paths[0], CELL, CELL * 96 // 128, 12), strict=False):
        stored = stored_example(dataset, row)
        enlarged = np.asarray(Image.fromarray(stored["image"]).resize((480, 360), Image.NEAREST), "int32")
        unpainted = (np.abs(cell - enlarged).sum(axis=-1) == 0).mean()
        assert unpainted > 0.6  # the rest are boxes and names
        for box, label in zip(stored["boxes"] * CELL / 128, stored["labels"], strict=True):
            bottom, left, right = min(round(box[3]), 359), round(box[0]), min(round(box[2]), 479)
            edge = cell[max(bottom - 3, 0) : bottom + 1, left : right + 1]
            assert (edge == color_of(label)).all(axis=-1).mean() > 0.2  # others may cover some of it


def test_a_recipe_shows_stored_images_and_network_input(drawn, tmp_path):
    (path,) = show_recipe(data_of(drawn), tmp_path / "pairs", count=4)
    sheet = np.asarray(Image.open(path))
    before, after = (
        sheet[GAP : GAP + 360, GAP : GAP + 480],
        sheet[GAP : GAP + 288, 2 * GAP + 480 : 2 * GAP + 960],
    )
    padding = (after == (90, 90, 90)).all(axis=-1)
    assert padding[:, int(480 * 128 / 160) + 2 :].mean() > 0.9 and padding[:, : int(480 * 0.75)].mean() < 0.05
    assert before.std() > 10


def test_only_a_directory_of_sheets_is_overwritten(drawn, tmp_path, capsys):
    folder = tmp_path / "mine"
    arguments = ["data", "show", str(drawn), "--to", str(folder), "--count", "3"]
    assert cli.main([*arguments[:-1], "13"]) == cli.main(arguments) == 0
    assert [path.name for path in folder.glob("*.png")] == ["sheet-001.png"]  # the second is gone
    (folder / "letter.txt").write_text("dear")
    assert cli.main(arguments) == 2
    assert "letter.txt" in capsys.readouterr().err and (folder / "letter.txt").read_text() == "dear"


def test_settings_apply_to_recipes_only(drawn, tmp_path, capsys):
    assert cli.main(["data", "show", str(drawn), "--to", str(tmp_path), "--set", "seed=1"]) == 2
    assert "only valid for a recipe, not for shards" in capsys.readouterr().err


def test_masks_and_flags_are_drawn():
    image = np.zeros((100, 100, 3), "uint8")
    mask = np.zeros((10, 10), bool)
    mask[:, :5] = True  # the left half of the box
    truth = {"boxes": np.float32([[20, 20, 80, 80], [0, 0, 9, 9]]), "labels": np.int32([1, -1])}
    plain = np.asarray(draw_truth(image, truth, ["a", "b"]))
    tinted = np.asarray(draw_truth(image, {**truth, "masks": np.stack([mask, mask])}, ["a", "b"]))
    color = np.array(color_of(0)) // 2  # of the first instance, not of class 1
    np.testing.assert_allclose(tinted[60, 35], color, atol=1)
    assert tinted[60, 65].sum() == 0 and plain[60, 35].sum() == 0
    marked = np.asarray(draw_truth(image, {**truth, "crowd": np.array([True, False])}, ["a", "b"]))
    assert (marked != plain).any()  # the name is longer
    unnamed = np.asarray(draw_truth(image, truth, ["a", "b"], labels="none"))
    assert (unnamed[:20] == 0).all() and (plain[:20] != 0).any()
    with pytest.raises(UserError, match="'score' is not supported; use one of none, name"):
        draw_truth(image, truth, ["a", "b"], labels="score")

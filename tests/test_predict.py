"""Reading pictures, answering in their px, drawing."""

import numpy as np
import pytest
from PIL import Image

from kgarden.errors import UserError
from kgarden.inference.predictor import read_picture
from kgarden.visualization.draw import color_of, draw_detections, line_width, text_height


def painted():
    """A 40 x 60 picture whose corners tell orientation: red top left, green top right."""
    image = np.zeros((40, 60, 3), "uint8")
    image[:10, :10], image[:10, -10:] = (255, 0, 0), (0, 255, 0)
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The stored picture is the painted one, turned so that its EXIF entry turns it back."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](painted())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(read_picture(path), painted())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "I;16", "I"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    gray = np.full((20, 30), 200, "uint8")
    if mode in ("I;16", "I"):
        picture = Image.fromarray(gray.astype("uint16") * 256)
        picture = picture.convert("I") if mode == "I" else picture
    else:
        picture = Image.fromarray(gray).convert(mode)
    path = tmp_path / ("photo.tif" if mode in ("CMYK", "I") else "photo.png")
    picture.save(path)
    got = read_picture(path)
    assert got.shape == (20, 30, 3) and got.dtype == np.uint8
    assert got.min() >= (200 if mode != "1" else 0) - 3 and (mode == "1" or got.max() <= 203)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    cut = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    text = tmp_path / "page.jpg"
    text.write_text("<html>")
    for path, words in [
        (cut, "damaged"),
        (text, "not an image"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path, "no such file"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            read_picture(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
    for array in (np.zeros((4, 4, 3), "float32"), np.zeros((4, 4, 2), "uint8"), np.zeros((0, 4, 3), "uint8")):
        with pytest.raises(UserError, match="pictures are"):
            read_picture(array)
    assert read_picture(np.zeros((4, 5), "uint8")).shape == (4, 5, 3)
    assert read_picture(np.zeros((4, 5, 4), "uint8")).shape == (4, 5, 3)


def one_box(box, label=0, score=0.9):
    return {
        "boxes": np.float32([box, [0, 0, 9, 9]]),
        "scores": np.float32([score, 0.99]),
        "labels": np.int32([label, 0]),
        "valid": np.array([True, False]),
    }


def changed(before, after):
    return np.any(np.asarray(after).astype(int) != before, axis=-1)


@pytest.mark.parametrize("size", [(300, 400), (1500, 1000), (3000, 4000)])
def test_lines_and_letters_grow_with_the_picture(size):
    height, width = size
    image = np.full((height, width, 3), 128, "uint8")
    box = [0.4 * width, 0.4 * height, 0.8 * width, 0.8 * height]
    drawn = draw_detections(image, one_box(box), ["cat"])
    assert drawn.size == (width, height)
    moved = changed(image, drawn)
    row = moved[int(0.6 * height)]  # crosses the left and the right line
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]))))[::2]
    assert len(runs) == 2 and all(max(2, min(size) / 220 - 1) <= run <= min(size) / 100 + 2 for run in runs)
    columns = np.flatnonzero(row)
    assert abs(columns[0] - box[0]) <= 1 and abs(columns[-1] - box[2]) <= 1
    tag = np.flatnonzero(moved[: int(0.4 * height)].any(axis=1))  # the name stands above the box
    assert len(tag) >= max(11, min(size) / 40)
    assert not moved[: int(0.4 * height) - 4 * text_height((width, height))].any()


def test_ink_is_legible_on_its_ground():
    """Letters are black or white, whichever is far from the colour of the class."""
    image = np.full((900, 1200, 3), 128, "uint8")
    for label in range(30):
        color = np.array(color_of(label))
        drawn = np.asarray(draw_detections(image, one_box([300, 300, 900, 750], label), ["HIT"] * 30))
        tag = drawn[300 - text_height((1200, 900)) : 296, 300:360].reshape(-1, 3).astype(int)
        assert (tag == color).all(axis=1).mean() > 0.3
        inks = [ink for ink in (0, 255) if (tag == ink).all(axis=1).any()]
        assert len(inks) == 1 and abs(inks[0] - color @ [0.299, 0.587, 0.114]) > 100, label


@pytest.mark.parametrize(
    "box", [[0, 0, 30, 30], [370, 0, 400, 40], [380, 280, 400, 300], [-20, -20, 500, 400], [0, 290, 40, 300]]
)
def test_names_stay_inside_and_whole(box):
    """Wherever the box lies, as many px of ink and ground are painted as for a box in the middle."""
    image = np.full((300, 400, 3), 128, "uint8")
    names = ["a rather long name"]

    def ground(where):
        drawn = np.asarray(draw_detections(image, one_box(where), names))
        return (drawn == color_of(0)).all(axis=-1) | (drawn == 0).all(axis=-1) | (drawn == 255).all(axis=-1)

    middle = ground([150, 150, 151, 151]).sum()
    assert ground(box).sum() >= 0.9 * middle


def test_very_long_names_and_small_pictures_do_no_harm():
    drawn = draw_detections(np.zeros((40, 50, 3), "uint8"), one_box([5, 5, 30, 30]), ["x" * 300])
    assert drawn.size == (50, 40)


def test_padding_and_weak_detections_are_not_drawn():
    image = np.full((300, 400, 3), 128, "uint8")
    for detections in (
        one_box([50, 50, 99, 99], score=0.1),
        {**one_box([50, 50, 99, 99]), "valid": np.zeros(2, bool)},
    ):
        assert not changed(image, draw_detections(image, detections, ["cat"])).any()


def test_colours_tell_the_first_classes_apart():
    colors = np.array([color_of(label) for label in range(20)], int)
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=-1) + 999 * np.eye(20, dtype=int)
    assert apart.min() > 40 and apart[:8, :8].min() > 90


def test_line_width_and_text_have_a_floor():
    assert line_width((300, 300)) == 2 and text_height((300, 300)) == 11
    assert line_width((4000, 3000)) > 10 and text_height((4000, 3000)) > 70

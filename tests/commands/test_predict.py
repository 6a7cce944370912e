"""Reading of images and drawing of detections."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from kgarden.commands.predict import draw_files, drawing_names
from kgarden.errors import UserError
from kgarden.inference.detections import Detections
from kgarden.inference.image_sources import find_images, read_image
from kgarden.visualization.draw import color_of, draw_detections, line_width, text_height

pytestmark = pytest.mark.both_backends


def painted():
    """A 40 x 60 image whose corners show its orientation: red top left, green top right."""
    image = np.zeros((40, 60, 3), "uint8")
    image[:10, :10], image[:10, -10:] = (255, 0, 0), (0, 255, 0)
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The stored image is transformed so that its EXIF orientation undoes the transformation."""
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
    np.testing.assert_array_equal(read_image(path), painted())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "I;16", "I"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    gray = np.full((20, 30), 200, "uint8")
    if mode in ("I;16", "I"):
        image = Image.fromarray(gray.astype("uint16") * 256)
        image = image.convert("I") if mode == "I" else image
    else:
        image = Image.fromarray(gray).convert(mode)
    path = tmp_path / ("photo.tif" if mode in ("CMYK", "I") else "photo.png")
    image.save(path)
    got = read_image(path)
    assert got.shape == (20, 30, 3) and got.dtype == np.uint8
    assert got.min() >= (200 if mode != "1" else 0) - 3 and (mode == "1" or got.max() <= 203)


def test_unreadable_images_are_errors_with_their_name(tmp_path):
    cut = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    text = tmp_path / "page.jpg"
    text.write_text("<html>")
    for path, words in [
        (cut, "damaged"),
        (text, "not an image in a format"),
        (tmp_path / "in/none.jpg", "no such file"),
        (tmp_path, "no such file"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            read_image(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
    for array in (np.zeros((4, 4, 2), "uint8"), np.zeros((0, 4, 3), "uint8")):
        with pytest.raises(UserError, match="images are"):
            read_image(array)
    assert read_image(np.zeros((4, 5), "uint8")).shape == (4, 5, 3)
    assert read_image(np.zeros((4, 5, 4), "uint8")).shape == (4, 5, 3)


def test_folders_are_searched_whole_and_what_is_no_image_is_told(tmp_path):
    image = Image.new("RGB", (4, 4))
    for name in ("b.jpg", "a.PNG", "deep/er/c.jfif", "out/drawn.jpg", ".hidden/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name, "png")
    for name in ("raw.nef", "list.json", "deep/list.json", "README", "._b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "linked").symlink_to(tmp_path / "deep")
    lines = []
    found = find_images([tmp_path, tmp_path / "b.jpg"], skip=tmp_path / "out", say=lines.append)
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["a.PNG", "b.jpg", "raw.nef", "deep/er/c.jfif"]
    passed_over = "2 .json, 1 hidden, 1 hidden folder, 1 linked folder, 1 without an ending"
    assert lines == [f"{tmp_path}: 4 images; passed over: {passed_over}"]
    again = find_images([tmp_path / "deep", f"{tmp_path}/de*"], say=lines.append)
    assert [path.name for path in again] == ["c.jfif"]
    with pytest.raises(UserError, match="no image found"):
        find_images([tmp_path / "deep" / "*.png"])


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
def test_line_width_and_text_scale_with_the_image(size):
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
    tag = np.flatnonzero(moved[: int(0.4 * height)].any(axis=1))  # the name is above the box
    assert len(tag) >= max(11, min(size) / 40)
    assert not moved[: int(0.4 * height) - 4 * text_height((width, height))].any()


def test_text_contrasts_with_its_background():
    """Text is black or white, whichever contrasts more with the colour of the class."""
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
def test_names_are_inside_the_image(box):
    """At any position of the box, as many px of text and background are drawn as for a box in the middle."""
    image = np.full((300, 400, 3), 128, "uint8")
    names = ["a rather long name"]

    def ground(where):
        drawn = np.asarray(draw_detections(image, one_box(where), names))
        return (drawn == color_of(0)).all(axis=-1) | (drawn == 0).all(axis=-1) | (drawn == 255).all(axis=-1)

    middle = ground([150, 150, 151, 151]).sum()
    assert ground(box).sum() >= 0.9 * middle


def test_very_long_names_and_small_images():
    drawn = draw_detections(np.zeros((40, 50, 3), "uint8"), one_box([5, 5, 30, 30]), ["x" * 300])
    assert drawn.size == (50, 40)


def test_padding_and_low_scores_are_not_drawn():
    image = np.full((300, 400, 3), 128, "uint8")
    for detections in (
        one_box([50, 50, 99, 99], score=0.1),
        {**one_box([50, 50, 99, 99]), "valid": np.zeros(2, bool)},
    ):
        assert not changed(image, draw_detections(image, detections, ["cat"])).any()


def test_colours_of_the_first_classes_differ():
    colors = np.array([color_of(label) for label in range(20)], int)
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=-1) + 999 * np.eye(20, dtype=int)
    assert apart.min() > 40 and apart[:8, :8].min() > 90


def test_line_width_and_text_height_have_a_minimum():
    assert line_width((300, 300)) == 2 and text_height((300, 300)) == 11
    assert line_width((4000, 3000)) > 10 and text_height((4000, 3000)) > 70


def test_line_width_is_smaller_where_boxes_are_dense():
    """By hand: 40 boxes of 300 x 300 px in 1000 x 1000 px, lines of 5 px: 0.24 of it, twice MAX_INK."""
    size = (1000, 1000)
    boxes = np.tile(np.float32([100, 100, 400, 400]), (40, 1))
    assert line_width(size) == line_width(size, boxes[:20]) == 5
    assert line_width(size, boxes) == 2 and line_width(size, np.tile(boxes, (99, 1))) == 1
    beyond = np.tile(np.float32([0, 0, 9e5, 9e5]), (5, 1))  # only what lies in the image is drawn
    assert line_width(size, beyond) == 5


def test_lines_of_small_boxes_are_thin():
    image = np.full((1500, 1500, 3), 128, "uint8")
    for side, line in ((1000, 7), (40, 4), (8, 1)):
        drawn = np.asarray(draw_detections(image, one_box([200, 200, 200 + side, 200 + side]), ["a"], 0.3))
        row = (drawn[200 + side // 2] == color_of(0)).all(axis=-1)
        assert np.flatnonzero(row)[0] == 200 and row[: 200 + side // 2].sum() == line


@pytest.mark.parametrize("labels,least,most", [("none", 0, 0), ("score", 100, 900), ("name", 1200, 9000)])
def test_labels_are_names_scores_or_nothing(labels, least, most):
    image = np.full((300, 400, 3), 128, "uint8")
    drawn = draw_detections(image, one_box([100, 100, 300, 250]), ["a long name"], labels=labels)
    assert least <= changed(image, drawn)[:100].sum() <= most


def test_labels_of_another_kind_are_refused():
    with pytest.raises(UserError, match="labels 'all' is not supported; use one of none, score, name"):
        draw_detections(np.zeros((9, 9, 3), "uint8"), one_box([1, 1, 5, 5]), ["a"], labels="all")


def test_masks_of_one_class_have_colours_of_their_own():
    image = np.zeros((100, 200, 3), "uint8")
    found = {
        "boxes": np.float32([[10, 10, 90, 90], [110, 10, 190, 90]]),
        "scores": np.float32([0.8, 0.9]),
        "labels": np.int32([5, 5]),
        "valid": np.array([True, True]),
        "masks": np.ones((2, 28, 28), "float32"),
    }
    drawn = np.asarray(draw_detections(image, found, ["a"] * 6, labels="none"))
    for x, instance in ((50, 0), (150, 1)):  # the highest score is drawn last
        np.testing.assert_allclose(drawn[50, x], np.array(color_of(instance)) // 2, atol=1)
    plain = {key: found[key] for key in found if key != "masks"}
    drawn = np.asarray(draw_detections(image, plain, ["a"] * 6, labels="none"))
    assert (drawn[50, 10] == color_of(5)).all() and (drawn[50, 110] == color_of(5)).all()


def test_images_of_a_list(tmp_path):
    """Paths relative to the list, with spaces and commas, of Windows, of another computer; one is missing."""
    (tmp_path / "in").mkdir()
    for name in ("a, 1.jpg", "b.jpg"):
        (tmp_path / "in" / name).write_bytes(b"")
    lines = ["in/a, 1.jpg", "in\\b.jpg", "", "C:\\photos\\b.jpg", "in/none.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    said = []
    found = find_images([tmp_path / "list.txt"], say=said.append)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "in/a, 1.jpg",
        "in/b.jpg",
        "in/none.jpg",
    ]
    assert len(said) == 1 and "C:\\photos\\b.jpg -> in/b.jpg" in said[0]
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError, match="the list is empty"):
        find_images([tmp_path / "list.txt"])


class Tensor:
    """What TensorFlow, JAX and PyTorch have in common; on a GPU PyTorch raises TypeError."""

    def __init__(self, value):
        self.value = value

    def __array__(self, *_, **__):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def stored(image, form="PNG", **settings):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **settings)
    return file.getvalue()


def test_images_in_memory_are_those_of_files(tmp_path):
    """Also with an EXIF orientation: 6 is stored turned to the left."""
    image = painted()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = stored(np.ascontiguousarray(np.rot90(image)), exif=exif)
    for content in (stored(image), turned):
        (tmp_path / "photo.png").write_bytes(content)
        with open(tmp_path / "photo.png", "rb") as file, Image.open(tmp_path / "photo.png") as opened:
            for source in (content, bytearray(content), memoryview(content), io.BytesIO(content), file):
                np.testing.assert_array_equal(read_image(source), image)
            np.testing.assert_array_equal(read_image(opened), image)
            opened.getpixel((0, 0))  # is still open
    for source in (Image.fromarray(image), Tensor(image), image):
        np.testing.assert_array_equal(read_image(source), image)
    for kind in ("float32", "float64", "int64"):
        np.testing.assert_array_equal(read_image(Tensor(image.astype(kind))), image)
    assert read_image(np.full((2, 2, 3), 1.6)).max() == 2 and not read_image(np.zeros((2, 2, 3))).any()
    assert read_image(Image.fromarray(image).convert("CMYK")).shape == image.shape
    assert read_image(Image.fromarray(image[..., 0])).shape == image.shape


@pytest.mark.parametrize("source,words", [
    (b"", "the image: not an image: the file is empty"),
    (b"<html>", "the image: not an image"),
    (stored(painted())[:60], "the image: damaged"),
    (io.StringIO("text"), "open it with mode 'rb'"),
    (None, "an image of type NoneType is not supported; give a path, bytes"),
    ((name for name in ["photo.png"]), "of type generator is not supported"),
    (7, "of type int is not supported"),
    ({"a": 1}, "of type dict is not supported"),
    (Tensor(np.full((3, 4, 3), 0.5, "float32")), "fractions up to 1 is not supported: multiply it by 255"),
    (np.ones((3, 4, 3), "float32"), "an array of fractions up to 1 is not supported"),
    (np.full((3, 4, 3), 255.5, "float32"), "an array with values from 255.5 to 255.5 is no image"),
    (np.full((3, 4, 3), -1), "an array with values from -1 to -1 is no image"),
    (np.full((3, 4, 3), np.nan), "an array with values from nan to nan is no image"),
    (np.zeros((3, 4, 3), bool), "an array of bool is not supported"),
    ("https://example.org/photo.jpg", "download the file first"),
    ("clip.MP4", "clip.MP4: a video is no image; use Predictor.video"),
    ("", "image: the path is empty"),
    ("x" * 5000, "File name too long"),
    (Tensor(np.zeros((2, 4, 4, 3), "uint8")), "(2, 4, 4, 3) is not supported; images are (height, width, 3)"),
    (Tensor(TypeError("copy it to the CPU first\nsecond line")), "is no image: copy it to the CPU first"),
    (np.array([[None]]), "an array of object is not supported"),
])  # fmt: skip
def test_what_is_no_image_is_refused_in_one_line(source, words):
    with pytest.raises(UserError) as caught:
        read_image(source)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    closed = Image.fromarray(painted())
    closed.close()
    with pytest.raises(UserError, match="^the image: damaged"):
        read_image(closed)


class NothingFound:
    """A predictor that reads and finds nothing."""

    categories = [{"id": 1, "name": "one"}]

    def stream(self, paths, on_fault):
        nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}
        for path in paths:
            image = read_image(path)
            found = {**nothing, "valid": np.zeros(0, bool)}
            size_hw = image.shape[:2]
            yield image, Detections(found, self.categories, size_hw, read=None, path=path)


def test_drawings_of_images_of_one_name_are_numbered():
    paths = [
        pathlib.Path(one) for one in ("a/x.jpg", "b/X.jpeg", "c/x_2.jpg", "d/x.tif", "e/x.png", "a/x.jpg")
    ]
    assert [*drawing_names(paths).values()] == ["x.jpg", "X_2.jpg", "x_2_2.jpg", "x_3.jpg", "x.png"]


def test_drawings_never_replace_images(tmp_path):
    """Their own folder, also behind a link; a link in the folder; a file of somebody; earlier drawings."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in ("a.png", "b.JPG", "B.jpeg"):
        Image.fromarray(painted()).save(photos / name)
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    (tmp_path / "alias").symlink_to(photos)
    for to in (photos, tmp_path / "alias"):
        with pytest.raises(UserError, match="a.png: is an input and would be replaced"):
            draw_files(NothingFound(), find_images([photos]), to)
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
    assert drawing_names(find_images([photos])) == {
        photos / "B.jpeg": "B.jpg",
        photos / "a.png": "a.png",
        photos / "b.JPG": "b_2.jpg",
    }

    for _ in range(2):
        records, faults = draw_files(NothingFound(), find_images([photos]), out)
    assert [one["drawn"] for one in records] == ["B.jpg", "a.png", "b_2.jpg"] and not faults
    (out / "a.png").unlink()
    (out / "a.png").symlink_to(photos / "a.png")
    with pytest.raises(UserError, match="a.png: is an input"):
        draw_files(NothingFound(), find_images([photos]), out)
    with pytest.raises(UserError, match="b_2.jpg: is an input"):
        draw_files(NothingFound(), [out / "b_2.jpg"] * 2, out)
    assert {path.name: path.read_bytes() for path in photos.iterdir()} == before

"""Names of images as other systems write them; what each means is by hand."""

import os
import unicodedata

import pytest

from tfrecords.image_names import ELSEWHERE, LINKED, ImageFolder, Names, NotFound
from tfrecords.schema import DataError

NFC, NFD = (unicodedata.normalize(form, "Möbel/Café.jpg") for form in ("NFC", "NFD"))
HASH = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
FILES = [
    "p01.jpg",
    "images/p02.jpg",
    "train/p03.jpg",
    "val/p03.jpg",
    "p04.JPG",
    "my photo, 2.png",
    NFD,
    "100%25.jpg",
    "abcd1234-p05.jpg",
    f"p06_jpg.rf.{HASH}.jpg",
    "deep/er/p07.jpg",
    "p08.jpg",
    "other/p08.jpg",
    "1a2b3c4d-p09.jpg",
    "ffff0000-p09.jpg",
    "20230102-p10.jpg",
]


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    return ImageFolder(tmp_path / "in")


@pytest.mark.parametrize(
    "written,file",
    [
        ("p01.jpg", "p01.jpg"),
        ("./p01.jpg", "p01.jpg"),
        ("images\\p02.jpg", "images/p02.jpg"),
        (".\\images\\p02.jpg", "images/p02.jpg"),
        ("val\\p03.jpg", "val/p03.jpg"),
        (NFC, NFD),
        (NFD, NFD),
        ("my photo, 2.png", "my photo, 2.png"),
        ("my%20photo%2C%202.png", "my photo, 2.png"),
        ("100%25.jpg", "100%25.jpg"),
        ("/data/local-files/?d=images/p02.jpg", "images/p02.jpg"),
        ("/data/local-files?d=images%2Fp02.jpg", "images/p02.jpg"),
        ("/data/local-files/?d=images%5Cp02.jpg", "images/p02.jpg"),
    ],
)
def test_names_that_say_the_path_are_taken_without_remark(folder, written, file):
    found = folder.find(written)
    assert (found.name, found.remark) == (file, None)


@pytest.mark.parametrize(
    "written,file",
    [
        ("images/p01.jpg", "p01.jpg"),
        ("images\\p01.jpg", "p01.jpg"),
        ("images/1/p01.jpg", "p01.jpg"),
        ("p02.jpg", "images/p02.jpg"),
        ("P01.JPG", "p01.jpg"),
        ("p04.jpg", "p04.JPG"),
        ("IMAGES/P02.jpg", "images/p02.jpg"),
        (NFC.upper(), NFD),
        ("C:\\Users\\me\\images\\p01.jpg", "p01.jpg"),
        ("C:/Users/me/images/p02.jpg", "images/p02.jpg"),
        ("C:\\set\\val\\p03.jpg", "val/p03.jpg"),  # the trailing folder decides
        ("/home/me/train/p03.jpg", "train/p03.jpg"),
        ("/p01.jpg", "p01.jpg"),
        ("data/p08.jpg", "p08.jpg"),  # its prefix stripped, a path of the folder; other/ is another
        ("upload/1/00ff00ff-p01.jpg", "p01.jpg"),
        ("/data/upload/1/abcd1234-p05.jpg", "abcd1234-p05.jpg"),
        ("p05.jpg", "abcd1234-p05.jpg"),
        (f"train/p01_jpg.rf.{HASH}.jpg", "p01.jpg"),
        (f"p04_JPG.rf.{HASH}.jpg", "p04.JPG"),
        ("p06.jpg", f"p06_jpg.rf.{HASH}.jpg"),
        ("https://host/bucket/p07.jpg?X-Amz-Signature=1", "deep/er/p07.jpg"),
        ("s3://bucket/er/p07.jpg", "deep/er/p07.jpg"),
        ("file:///C:/x/p07.jpg", "deep/er/p07.jpg"),
    ],
)
def test_the_one_file_of_a_base_name_is_taken_and_remarked(folder, written, file):
    found = folder.find(written)
    assert (found.name, found.remark) == (file, ELSEWHERE)


@pytest.mark.parametrize("written", ["p03.jpg", "x/p03.jpg", "P03.JPG", "p09.jpg"])
def test_two_files_of_a_name_are_ambiguous(folder, written):
    with pytest.raises(DataError, match="ambiguous: 2 files in the folder have this name: .*, ") as caught:
        folder.find(written)
    assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize(
    "written",
    [
        "p99.jpg",
        "p01.png",
        "images",
        "00ff00ff-p05.jpg",  # uploaded as another image than abcd1234-p05.jpg
        f"p06_jpg.rf.{'9' * 32}.jpg",  # another version of the image
        "20230101-p10.jpg",  # a date, not a mark
        "p10.jpg",
    ],
)
def test_files_that_are_not_there(folder, written):
    with pytest.raises(NotFound, match="^no such file$"):
        folder.find(written)


@pytest.mark.parametrize(
    "written",
    [
        "../in/p01.jpg",
        "..\\in\\p01.jpg",
        "images/../p01.jpg",
        "%2e%2e/p01.jpg",
        "/data/local-files/?d=../p01.jpg",
    ]
    + ["", "\0.jpg", "\ud800.jpg", "/etc/passwd", "C:\\no.jpg", "."],
)
def test_names_that_leave_the_folder_or_are_none(folder, written):
    with pytest.raises(DataError, match="must be a relative path that stays in the folder"):
        folder.find(written)


def test_an_absolute_path_into_the_folder(folder):
    assert folder.find(str(folder.folder.resolve() / "images/p02.jpg")).name == "images/p02.jpg"
    assert folder.find(str(folder.folder / "images/p02.jpg")).remark is None


def test_links_out_of_the_folder_are_remarked(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/o.jpg").write_bytes(b"")
    os.symlink(tmp_path / "out/o.jpg", folder.folder / "link.jpg")
    os.symlink(tmp_path / "out", folder.folder / "linked")
    os.symlink("p01.jpg", folder.folder / "inner.jpg")
    os.symlink(folder.folder, tmp_path / "whole")
    assert folder.find("link.jpg").remark == folder.find("linked/o.jpg").remark == LINKED
    assert folder.find("LINK.jpg").remark == LINKED
    assert folder.find("inner.jpg").remark is None
    assert ImageFolder(tmp_path / "whole").find("p01.jpg").remark is None
    with pytest.raises(NotFound):  # linked folders are not searched
        folder.find("o.jpg")


def test_images_by_their_path_without_ending(folder):
    assert folder.find_stem("p04").name == "p04.JPG"
    assert folder.find_stem("val/p03").name == "val/p03.jpg"
    assert folder.find_stem(NFC.removesuffix(".jpg")).name == NFD
    assert folder.find_stem("P01").remark == ELSEWHERE
    (folder.folder / "p11.jpg").write_bytes(b"")
    (folder.folder / "p11.png").write_bytes(b"")
    (folder.folder / "p11.txt").write_bytes(b"")
    fresh = ImageFolder(folder.folder)
    assert fresh.find_stem("p11", preferred="p11.png").name == "p11.png"
    with pytest.raises(DataError, match="ambiguous: 2 files"):
        fresh.find_stem("p11")


def test_hidden_folders_are_not_searched(folder):
    (folder.folder / ".cache").mkdir()
    (folder.folder / ".cache/p07.jpg").write_bytes(b"")
    assert folder.find("p07.jpg").name == "deep/er/p07.jpg"
    assert folder.find(".cache/p07.jpg").name == ".cache/p07.jpg"  # unless a name says so


def test_a_folder_is_listed_once(folder, monkeypatch):
    walks, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda *args: walks.append(args) or walk(*args))
    folder.find("p01.jpg")
    assert not walks
    for _ in range(3):
        folder.find("P01.JPG")
        folder.find_stem("p01")
    assert len(walks) == 1


def test_many_names_take_linear_time(monkeypatch):
    """Each name is spelled a few times, however many there are."""
    count, calls, spelled = 1000, [], Names._spelled
    monkeypatch.setattr(Names, "_spelled", lambda *args: calls.append(1) or spelled(*args))
    names = Names([f"{n}/p{n:04d}.jpg" for n in range(count)])
    for n in range(count):
        assert names.find(f"images\\P{n:04d}.JPG")[0] == f"{n}/p{n:04d}.jpg"
    assert len(calls) <= 6 * count


def test_many_files_of_one_base_name_take_linear_time(monkeypatch):
    """Their folders are compared once, not for each name again."""
    count, calls = 1000, []
    monkeypatch.setattr("tfrecords.image_names.folded", lambda text: calls.append(1) or text.casefold())
    names = Names([f"in/{n:04d}/image.jpg" for n in range(count)])
    for n in range(count):
        assert names.find(f"C:\\x\\{n:04d}\\image.jpg")[0] == f"in/{n:04d}/image.jpg"
    with pytest.raises(DataError, match="ambiguous: 1000 files .*, ...$"):
        names.find("image.jpg")
    assert len(calls) <= 12 * count

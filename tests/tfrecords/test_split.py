"""Splitting images: sizes, stratification, groups, determinism; the counts are by hand."""

import collections

import pytest

from tfrecords.schema import DataError
from tfrecords.split import split


def images(**count_of):
    """{"cup/000": ("cup",), ...}: so many images of each class; both_cup_plate has two classes."""
    return {
        f"{name}/{n:03d}.jpg": () if name == "none" else tuple(name.split("_"))
        for name, count in count_of.items()
        for n in range(count)
    }


def test_every_class_is_split_by_the_fraction():
    parts = split(images(cup=80, plate=20, none=8), val=0.25)
    assert parts.classes == {
        "cup": {"train": 60, "val": 20},
        "plate": {"train": 15, "val": 5},
        "": {"train": 6, "val": 2},
    }
    assert (parts.images("train"), parts.images("val")) == (81, 27)


def test_images_of_several_classes():
    """Of 40 pairs, 20 cups and 20 plates alone, a fifth of each class and of all images is val."""
    parts = split(images(cup_plate=40, cup=20, plate=20), val=0.2)
    assert parts.images("val") == 16
    assert {name: count["val"] for name, count in parts.classes.items()} == {"cup": 12, "plate": 12}


@pytest.mark.parametrize("seed", range(5))
def test_the_rarest_class_is_distributed_first(seed):
    """Cups first, the four images that have a spoon too would fall anywhere."""
    parts = split(images(cup_spoon=4, cup=40), val=0.5, seed=seed)
    assert parts.classes["spoon"] == {"train": 2, "val": 2} and parts.images("val") == 22


def test_a_class_that_two_parts_want_alike_goes_where_more_room_is():
    """Each image has a class of its own; the two that share a plate are not both in train."""
    data = {"1.jpg": ("a", "plate"), "2.jpg": ("b", "plate"), "3.jpg": ("c",), "4.jpg": ("d",)}
    assert split(data, val=0.5).classes["plate"] == {"train": 1, "val": 1}


@pytest.mark.parametrize("seed", range(5))
def test_large_groups_are_distributed_first(seed):
    """A group of six and six groups of one: the six fill the other half."""
    data = {f"{'a' if n < 6 else n}_{n}.jpg": ("cup",) for n in range(12)}
    assert split(data, val=0.5, seed=seed, group="^[^_]+").images("val") == 6


def test_a_part_with_room_for_less_than_half_of_a_group_is_full():
    """Five groups of four with a class of their own each; of 20 images 7 are wanted: two groups."""
    data = {f"{g}_{n}.jpg": (f"class{g}",) for g in range(5) for n in range(4)}
    assert split(data, val=0.35, group="^[^_]+").images("val") == 8


def test_a_rare_class_is_in_train_and_said():
    parts = split(images(cup=20, spoon=1))
    assert parts.classes["spoon"] == {"train": 1, "val": 0}
    assert parts.only_in("train") == ["spoon"] and parts.only_in("val") == []


@pytest.mark.parametrize(
    "count,val,expected", [(10, 0.2, 2), (2, 0.2, 1), (4, 0.2, 1), (3, 0.9, 2), (7, 0.5, 4)]
)
def test_sizes_where_every_image_has_a_class_of_its_own(count, val, expected):
    parts = split({f"{n}.jpg": (f"class{n}",) for n in range(count)}, val=val)
    assert parts.images("val") == expected


def test_the_result_depends_on_names_and_seed_alone():
    data = images(cup=30, plate=10)
    backwards = dict(reversed(data.items()))
    assert split(data, seed=3).part_of == split(backwards, seed=3).part_of
    assert list(split(backwards).part_of) == list(backwards)  # in the order of the source
    assert split(data, seed=3).part_of != split(data, seed=4).part_of
    assert split(data).part_of == split(data, seed=0, val=0.2).part_of


def test_images_of_a_group_stay_together():
    data = {f"video{n % 8}_frame{n:03d}.jpg": ("cup",) if n % 2 else ("plate",) for n in range(80)}
    parts = split(data, val=0.25, group=r"^(video\d+)_")
    of_video = collections.defaultdict(set)
    for name, part in parts.part_of.items():
        of_video[name.split("_")[0]].add(part)
    assert all(len(part) == 1 for part in of_video.values())
    assert parts.images("val") == 20 and parts.ungrouped == 0
    # videos of cups and of plates: one of the four of each
    assert parts.classes == {"cup": {"train": 30, "val": 10}, "plate": {"train": 30, "val": 10}}


def test_groups_are_the_whole_match_or_all_its_capture_groups():
    data = {f"{site}-{day}-{n}.jpg": ("cup",) for site in "ab" for day in "xy" for n in range(3)}
    whole = split(data, val=0.5, group=r"^.-.")
    pairs = split(data, val=0.5, group=r"^(.)-(.)")
    sites = split(data, val=0.5, group=r"^(.)-.")
    assert whole.part_of.keys() == data.keys() and whole.images("val") == 6
    for parts, key in ((whole, 3), (pairs, 3), (sites, 1)):
        assert len({(name[:key], part) for name, part in parts.part_of.items()}) == (4 if key == 3 else 2)


def test_images_without_a_match_are_counted():
    assert split({**images(cup=4), "scan_1.jpg": (), "scan_2.jpg": ()}, group="scan").ungrouped == 4


def test_two_large_groups_are_one_each():
    names = [f"{g}{n}.jpg" for g, size in (("a", 5), ("b", 3)) for n in range(size)]
    assert split(dict.fromkeys(names, ("cup",)), val=0.1, group="^.").images("val") == 3


@pytest.mark.parametrize(
    "options,message",
    [
        ({"val": 0}, "val: 0 is not a fraction"),
        ({"val": 1.0}, "is not a fraction"),
        ({"val": float("nan")}, "is not a fraction"),
        ({"group": "("}, "no regular expression"),
        ({"group": "cup"}, "1 groups of images by 'cup': at least 2"),
    ],
)
def test_what_cannot_be_split(options, message):
    with pytest.raises(DataError, match=message):
        split(images(cup=5), **options)

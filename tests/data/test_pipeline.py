import itertools
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from support import real_data

tf = pytest.importorskip("tensorflow")

from kgarden.data import pipeline, sources  # noqa: E402
from kgarden.errors import UserError  # noqa: E402
from kgarden.ops.boxes import rescale  # noqa: E402
from kgarden.structures import truth_is_valid  # noqa: E402
from tfrecords.converters import coco  # noqa: E402

SIZES = [(60, 80), (80, 60), (50, 70), (40, 100), (60, 80), (90, 70), (64, 64), (60, 80), (60, 80), (33, 91)]
FLIPS = ("horizontal_flip", "vertical_flip")
PLAIN = {"short_side_px": 48, "long_side_px": 64, "augment": (), "batch_size": 2}


def paint(folder, sizes, ids=(7, 90, 3)):
    """A COCO data set: in every image one white rectangle, whose category is its image id modulo 3."""
    tree = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in ids]}
    (folder / "images").mkdir(parents=True)
    for number, (height, width) in enumerate(sizes, 1):
        rng = np.random.default_rng(number)
        x, y = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        w, h = int(rng.integers(10, width - x + 1)), int(rng.integers(10, height - y + 1))
        image = np.zeros((height, width, 3), "uint8")
        image[y : y + h, x : x + w] = 255
        Image.fromarray(image).save(folder / f"images/{number}.png")
        tree["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        tree["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": ids[number % 3],
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
        )
    return tree


def build(folder, tree):
    (folder / "a.json").write_text(json.dumps(tree))
    coco.build(folder / "to", images=folder / "images", annotations=folder / "a.json", shards=3, strict=True)
    return sources.open_dataset(folder / "to")


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted")
    return build(folder, paint(folder, SIZES))


def take(batches, count):
    return [tf.nest.map_structure(lambda t: t.numpy(), batch) for batch in batches.take(count)]


def assert_equal_batches(a, b, px=0.0):
    """Equal in everything; boxes may differ by so many px."""
    assert len(a) == len(b)
    for (x, y), (other_x, other_y) in zip(a, b, strict=True):
        one, other = x | y, other_x | other_y
        assert one.keys() == other.keys()
        for key in one:
            allowed = px if key == "boxes" else 0.0
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=allowed, err_msg=key)


def pictures(batches):
    """Every image of some (x, y) batches: (image, size_hw, boxes, labels, crowd, image_id)."""
    keys = ("images", "size_hw", "boxes", "labels", "crowd", "image_id")
    for x, y in batches:
        yield from zip(*((x | y)[key] for key in keys), strict=True)


def test_one_epoch_holds_every_image_once(painted):
    batches = take(pipeline.train_batches([painted], canvases=[[64, 64]], **PLAIN), 15)
    for epoch in range(3):
        ids = [p[-1] for p in pictures(batches[5 * epoch : 5 * epoch + 5])]
        assert sorted(ids) == list(range(1, 11))
    assert [p[-1] for p in pictures(batches[:5])] != [p[-1] for p in pictures(batches[5:10])]


SIDES = (32, 40, 48)


@pytest.mark.parametrize("short_side_px, augment", [(48, ()), (SIDES, FLIPS[:1]), (SIDES, FLIPS)])
def test_boxes_follow_the_pixels(painted, short_side_px, augment):
    options = {**PLAIN, "short_side_px": short_side_px, "augment": augment}
    batches = pipeline.train_batches([painted], **options)
    seen = 0
    for image, size_hw, boxes, labels, crowd, image_id in pictures(take(batches, 40)):
        height, width = size_hw
        assert not image[height:].any() and not image[:, width:].any()
        white = image[..., 0] > 127
        y, x = np.nonzero(white)
        np.testing.assert_allclose(boxes[0], [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1.01)
        assert labels[0] == {7: 1, 90: 2, 3: 0}[(7, 90, 3)[image_id % 3]]  # by ascending category id
        assert (labels[1:] == -1).all() and not boxes[1:].any() and not crowd.any()
        seen += 1
    assert seen == 80


def test_sizes_follow_the_chosen_short_side(painted):
    batches = take(pipeline.train_batches([painted], **{**PLAIN, "short_side_px": (32, 48)}), 100)
    of_picture = {}
    for _, size_hw, _, _, _, image_id in pictures(batches):
        of_picture.setdefault(int(image_id), []).append(tuple(size_hw.tolist()))
    assert set(of_picture[1]) == {(32, 43), (48, 64)} and set(of_picture[2]) == {(43, 32), (64, 48)}
    assert set(of_picture[4]) == {(26, 64)}  # its long side decides
    share = np.mean([size == (32, 43) for size in of_picture[1]])
    assert 0.2 < share < 0.8


def test_flips_have_probability_half_and_differ_between_epochs(painted):
    batches = take(pipeline.train_batches([painted], **{**PLAIN, "augment": FLIPS[:1]}), 200)
    plain = {p[-1]: p[2][0] for p in pictures(take(pipeline.train_batches([painted], **PLAIN), 20))}
    flipped = {}
    for _, _, boxes, _, _, image_id in pictures(batches):
        flipped.setdefault(int(image_id), []).append(bool(np.abs(boxes[0] - plain[image_id]).max() > 1e-3))
    assert len(flipped) == 10
    assert abs(np.mean(sum(flipped.values(), [])) - 0.5) < 0.1
    assert len({tuple(f[:30]) for f in flipped.values()}) == 10


VARIED = {**PLAIN, "short_side_px": (32, 40, 48), "augment": FLIPS, "seed": 5}


ONE_SIZE = {**VARIED, "short_side_px": 48}


@pytest.fixture(scope="module")
def varied(painted):
    return take(pipeline.train_batches([painted], **VARIED), 20)


@pytest.fixture(scope="module")
def of_one_size(painted):
    return take(pipeline.train_batches([painted], **ONE_SIZE), 20)


@pytest.mark.parametrize("start", [1, 13])
def test_stream_from_step_k_is_the_tail_of_the_stream(painted, varied, start):
    later = take(pipeline.train_batches([painted], start_step=start, **VARIED), 6)
    assert_equal_batches(later, varied[start : start + 6])


@pytest.mark.parametrize("parallel", [1, 7])
def test_batches_do_not_depend_on_threads(painted, varied, parallel):
    got = take(pipeline.train_batches([painted], **VARIED, parallel=parallel), 20)
    assert_equal_batches(got, varied)


@pytest.mark.parametrize("cache", ["encoded", "decoded"])
def test_batches_do_not_depend_on_caches(painted, varied, of_one_size, cache):
    assert_equal_batches(take(pipeline.train_batches([painted], **VARIED, cache=cache), 20), varied)
    if cache == "decoded":  # "encoded" knows nothing of sizes
        got = take(pipeline.train_batches([painted], **ONE_SIZE, cache=cache), 20)
        assert_equal_batches(got, of_one_size, px=1e-4)  # rounded in another order


def test_slow_images_keep_their_position(tmp_path):
    data = build(tmp_path, paint(tmp_path, [(1600, 1600), (32, 32), (32, 32), (32, 32)] * 3))
    ids = [
        [p[-1] for p in pictures(take(pipeline.train_batches([data], **PLAIN, parallel=parallel), 18))]
        for parallel in (1, 8)
    ]
    assert ids[0] == ids[1]


def test_the_seed_decides(painted):
    ids = [
        [p[-1] for p in pictures(take(pipeline.train_batches([painted], **PLAIN, seed=seed), 5))]
        for seed in (0, 0, 1)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_landscape_and_portrait(painted):
    options = {**PLAIN, "canvases": [[48, 64], [64, 48]]}
    batches = pipeline.train_batches([painted], **options)
    assert batches.element_spec[0]["images"].shape == (2, None, None, 3)
    batches = take(batches, 60)
    of_canvas = {(48, 64): set(), (64, 48): set()}
    for x, y in batches:
        of_canvas[x["images"].shape[1:3]] |= set(y["image_id"].tolist())
    assert of_canvas == {(48, 64): {1, 3, 4, 5, 7, 8, 9, 10}, (64, 48): {2, 6}}


def test_single_canvas_gives_static_shapes(tmp_path):
    data = build(tmp_path, paint(tmp_path, [(60, 80)] * 4))
    x, y = pipeline.train_batches([data], max_objects=9, **PLAIN).element_spec
    assert {key: tuple(spec.shape) for key, spec in (x | y).items()} == {
        "images": (2, 64, 64, 3),
        "size_hw": (2, 2),
        "boxes": (2, 9, 4),
        "labels": (2, 9),
        "crowd": (2, 9),
        "image_id": (2,),
    }
    assert {key: spec.dtype.name for key, spec in (x | y).items()} == {
        "images": "uint8",
        "size_hw": "int32",
        "boxes": "float32",
        "labels": "int32",
        "crowd": "bool",
        "image_id": "int64",
    }


@pytest.fixture
def crowded(tmp_path):
    """Image 1 has five boxes and a crowd, 2 none, 3 a crowd alone, 4 one box."""
    tree = paint(tmp_path, [(64, 64)] * 4)

    def box(image_id, bbox, crowd=0):
        return {"image_id": image_id, "category_id": 7, "bbox": bbox, "iscrowd": crowd}

    tree["annotations"] = [
        box(1, [0, 0, 2, 2]),
        box(1, [0, 0, 30, 30]),
        box(1, [0, 0, 4, 4]),
        box(1, [0, 0, 20, 20]),
        box(1, [0, 0, 10, 10]),
        box(1, [0, 0, 64, 64], 1),
        box(3, [0, 0, 9, 9], 1),
        box(4, [0, 0, 8, 8]),
    ]
    tree["annotations"] = [{**one, "id": number} for number, one in enumerate(tree["annotations"], 1)]
    return build(tmp_path, tree)


def sides_of_picture_1(crowded, **options):
    """Widths of the objects of image 1; crowds negative."""
    settings = {**PLAIN, "short_side_px": 64, "batch_size": 1, **options}
    batches = take(pipeline.train_batches([crowded], **settings), 4)
    [(boxes, labels, crowd)] = [p[2:5] for p in pictures(batches[:2]) if p[-1] == 1]
    return np.where(crowd, -1, 1)[labels >= 0] * boxes[labels >= 0, 2]


def test_largest_objects_are_kept_above_max_objects(crowded):
    with pytest.warns(
        UserWarning, match="1 images have more than max_objects = 3 .* 2 of 6 objects are dropped"
    ):
        np.testing.assert_allclose(sides_of_picture_1(crowded, max_objects=3), [30, 20, 10])
    with pytest.warns(UserWarning):
        np.testing.assert_allclose(sides_of_picture_1(crowded, max_objects=3, keep_crowd=False), [30, 20, 10])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(sides_of_picture_1(crowded, max_objects=6), [2, 30, 4, 20, 10, -64])
        got = sides_of_picture_1(crowded, max_objects=6, keep_crowd=False)
        np.testing.assert_allclose(got, [2, 30, 4, 20, 10])


@pytest.mark.parametrize("keep_empty,expected", [(False, {1, 4}), (True, {1, 2, 3, 4})])
def test_images_without_objects(crowded, keep_empty, expected):
    batches = take(pipeline.train_batches([crowded], **PLAIN, keep_empty=keep_empty), 8)
    seen = {int(p[-1]): p for p in pictures(batches)}
    assert set(seen) == expected
    for number in expected & {2, 3}:
        y = {"labels": seen[number][3], "crowd": seen[number][4]}
        assert not truth_is_valid(y).any()


def test_two_data_sets_by_weight(tmp_path):
    parts = []
    for name, count in [("a", 4), ("b", 8)]:
        tree = paint(tmp_path / name, [(48, 64)] * count)
        for item in tree["images"]:
            item["id"] += 100 * (name == "b")
        for item in tree["annotations"]:
            item["image_id"] += 100 * (name == "b")
        parts.append(build(tmp_path / name, tree))

    def share_of_b(weight):
        source = {"glob": str(tmp_path / "b/to"), "weight": weight}
        datasets = [parts[0], sources.dataset_of(source, tmp_path)]
        ids = [p[-1] for p in pictures(take(pipeline.train_batches(datasets, **PLAIN), 150))]
        assert len(set(ids)) == 12
        return np.mean(np.array(ids) > 100)

    assert share_of_b(1.0) == pytest.approx(8 / 12, abs=0.06)
    assert share_of_b(0.25) == pytest.approx(2 / 6, abs=0.06)
    whole = take(pipeline.train_batches(parts, **VARIED), 30)
    assert_equal_batches(take(pipeline.train_batches(parts, start_step=21, **VARIED), 9), whole[21:])


@pytest.mark.parametrize("batch_size, limit", [(1, 4), (3, None), (16, None)])
def test_validation_has_every_image_once(painted, batch_size, limit):
    settings = {"short_side_px": 48, "long_side_px": 64, "canvases": [[48, 64], [64, 48]]}
    batches = pipeline.val_batches([painted], batch_size=batch_size, limit=limit, **settings)
    ids, steps = [], 0
    whole = take(batches, -1)
    for x, meta in whole:
        assert x["images"].shape[0] == batch_size
        steps += 1
        for number, hw, size_hw in zip(meta["image_id"], meta["original_hw"], x["size_hw"], strict=True):
            if number >= 0:
                ids.append(int(number))
                assert tuple(hw) == SIZES[number - 1]
            scale = min(48 / min(hw), 64 / max(hw))
            np.testing.assert_allclose(size_hw, hw * scale, atol=0.51)
    assert len(batches) == steps
    assert len(ids) == len(set(ids)) == (limit or 10)
    assert_equal_batches(take(batches, -1), whole)


def test_validation_holds_the_ground_truth_of_training_if_asked(painted):
    """Without augmentation both have the same boxes; those of training follow the pixels."""
    size = {key: PLAIN[key] for key in ("short_side_px", "long_side_px", "batch_size")}
    keys, of_image = ("boxes", "labels", "crowd"), {}
    for _, y in take(pipeline.train_batches([painted], **PLAIN, max_objects=5), 9):
        for row, image_id in enumerate(y["image_id"]):
            of_image[int(image_id)] = [y[key][row] for key in keys]
    seen = 0
    for _, meta in take(pipeline.val_batches([painted], **size, max_objects=5), -1):
        for row, image_id in enumerate(meta["image_id"]):
            if image_id >= 0:
                seen += 1
                for key, wanted in zip(keys, of_image[int(image_id)], strict=True):
                    np.testing.assert_allclose(meta[key][row], wanted, atol=1e-4, err_msg=key)
    assert seen == len(SIZES) and (meta["labels"] >= 0).any()
    assert next(iter(pipeline.val_batches([painted], **size)))[1].keys() == {"image_id", "original_hw"}


def test_views_equal_separate_runs_of_each_size(painted):
    """Two sizes and their mirrors; a batch has one canvas for each size, and every image comes once."""
    sizes = [
        {"short_side_px": 48, "long_side_px": 64, "canvases": [[48, 64], [64, 48]], "antialias": True},
        {
            "short_side_px": 30,
            "long_side_px": 90,
            "canvases": [[32, 64], [64, 32], [32, 96]],
            "antialias": True,
        },
    ]
    alone = [{}, {}]
    for size, pictures_of in zip(sizes, alone, strict=True):
        for x, meta in take(pipeline.val_batches([painted], batch_size=1, **size), -1):
            pictures_of[int(meta["image_id"][0])] = x["images"][0], x["size_hw"][0]
    first, *further = sizes
    batches = pipeline.val_batches([painted], batch_size=3, **first, further=further, flip=True)
    ids, combinations = [], set()
    for x, meta in take(batches, -1):
        views = [x, *x["views"]]
        assert len(views) == 4 and "mirrored" not in x
        assert [bool(view["mirrored"].all()) for view in x["views"]] == [True, False, True]
        combinations.add(tuple(view["images"].shape[1:3] for view in views[::2]))
        for row, image_id in enumerate(meta["image_id"].tolist()):
            for number, view in enumerate(views if image_id >= 0 else []):
                image, (height, width) = alone[number // 2][image_id]
                shown = image.copy()
                if number % 2:
                    shown[:height, :width] = image[:height, :width][:, ::-1]
                np.testing.assert_array_equal(view["images"][row], shown)
                np.testing.assert_array_equal(view["size_hw"][row], (height, width))
        ids += [image_id for image_id in meta["image_id"].tolist() if image_id >= 0]
    assert sorted(ids) == list(range(1, 11)) and len(combinations) > 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """72 real photos."""
    bccd = real_data.folder("bccd")
    source = {
        "format": "coco",
        "images": str(bccd / "BCCD/JPEGImages"),
        "annotations": str(bccd / "coco/instances_test.json"),
    }
    return sources.dataset_of(source, tmp_path_factory.mktemp("photos"))


def test_boxes_map_back_to_the_original_images(photos):
    """What the pipeline gives, led back, is what the annotations say."""
    truth = json.loads((real_data.folder("bccd") / "coco/instances_test.json").read_text())
    settings = {"short_side_px": 240, "long_side_px": 320, "augment": (), "batch_size": 8}
    batches = take(pipeline.train_batches([photos], **settings), 9)
    seen = set()
    for _, size_hw, boxes, labels, _, image_id in pictures(batches):
        expected = [a for a in truth["annotations"] if a["image_id"] == image_id]
        count = len(expected)
        np.testing.assert_array_equal(labels[:count], [a["category_id"] - 1 for a in expected])
        assert (labels[count:] == -1).all() and tuple(size_hw) == (240, 320)
        x, y, w, h = np.array([a["bbox"] for a in expected]).T
        back = rescale(boxes[None, :count], size_hw[None], np.array([[480, 640]]))[0]
        np.testing.assert_allclose(back, np.stack([x, y, x + w, y + h], axis=-1), atol=1e-3)
        seen.add(int(image_id))
    assert len(seen) == 72


def test_scaled_decoding_gives_nearly_the_same_images(photos):
    for short, long in [((240, 200), 320), (480, 640), (60, 80)]:
        options = {"short_side_px": short, "long_side_px": long, "batch_size": 4}
        exact = take(pipeline.train_batches([photos], **options), 2)
        scaled = take(pipeline.train_batches([photos], scaled_decode=True, **options), 2)
        for (x, y), (x_scaled, y_scaled) in zip(exact, scaled, strict=True):
            np.testing.assert_array_equal(x["size_hw"], x_scaled["size_hw"])
            np.testing.assert_allclose(y["boxes"], y_scaled["boxes"], rtol=1e-5, atol=1e-3)
            assert np.abs(x["images"].astype(int) - x_scaled["images"]).mean() < 3


def test_cache_of_converted_data_is_reused(tmp_path):
    tree = paint(tmp_path, SIZES[:3])
    (tmp_path / "a.json").write_text(json.dumps(tree))
    source = {
        "format": "coco",
        "images": str(tmp_path / "images"),
        "annotations": str(tmp_path / "a.json"),
        "glob": None,
    }

    def folder():
        return sources.dataset_of(source, tmp_path / "cache").annotations[0].parent

    first = folder()
    written = (first / "manifest.json").stat().st_mtime_ns
    assert folder() == first and (first / "manifest.json").stat().st_mtime_ns == written
    tree["annotations"].pop()
    (tmp_path / "a.json").write_text(json.dumps(tree))
    assert folder() != first  # other annotations, other data


def test_shapes_is_a_source(tmp_path):
    source = {"format": "shapes", "count": 12, "seed": 3, "size_hw": (96, 128)}
    data = sources.dataset_of(source, tmp_path)
    assert [c["name"] for c in data.categories] == ["disc", "square", "triangle", "star", "cross", "ring"]
    assert len(data.index) == 12 and set(zip(data.index.height, data.index.width, strict=True)) == {(96, 128)}


@pytest.mark.parametrize(
    "options,message",
    [
        ({"augment": ("horizontal_flop",)}, "no transform 'horizontal_flop'; did you mean 'horizontal_flip'"),
        ({"cache": "disk"}, "cache: 'disk'"),
        ({"batch_size": 0}, "batch_size: 0"),
        ({"masks": True}, "data.masks: no object of .* has a mask"),
    ],
)
def test_wrong_settings(painted, options, message):
    with pytest.raises(UserError, match=message):
        pipeline.train_batches([painted], **{**PLAIN, **options})


def test_wrong_sources(tmp_path, painted):
    with pytest.raises(UserError, match="no shards found"):
        sources.dataset_of({"glob": str(tmp_path / "*.tfrecord")}, tmp_path)
    other = build(tmp_path, paint(tmp_path, [(60, 80)] * 2, ids=(1, 2, 3)))
    with pytest.raises(UserError, match="its categories differ"):
        pipeline.train_batches([painted, other], **PLAIN)
    tree = paint(tmp_path / "empty", [(60, 80)] * 2)
    tree["annotations"] = []
    empty = build(tmp_path / "empty", tree)
    with pytest.raises(UserError, match="nothing to train on"):
        pipeline.train_batches([empty], **PLAIN)


def test_decode_only_reads_the_same_images(painted):
    [shapes] = itertools.islice(pipeline.decode_only([painted], batch_size=10), 1)
    expected = np.stack([painted.index.height, painted.index.width, np.full(10, 3)], axis=-1)
    np.testing.assert_array_equal(shapes, expected)

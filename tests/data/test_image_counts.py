"""Number of training images of each class: counted in data sets, and read from LVIS's files."""

import json
import types

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from kgarden.build import give_image_counts  # noqa: E402
from kgarden.data.image_counts import image_counts_of, read_image_counts  # noqa: E402
from kgarden.errors import UserError  # noqa: E402
from kgarden.losses.federated import make_subsets  # noqa: E402

pytestmark = pytest.mark.tensorflow
CATEGORIES = [{"id": 4, "name": "cup"}, {"id": 2, "name": "fork"}, {"id": 9, "name": "pan"}]


def data_set(folder, name, pairs, images=(1, 2, 3)):
    """A data set of (image id, category id) pairs, as far as counting reads it."""
    path = folder / f"{name}.json"
    annotations = [{"image_id": image, "category_id": category} for image, category in pairs]
    path.write_text(json.dumps({"annotations": annotations}))
    index = types.SimpleNamespace(image_id=np.array(images))
    return types.SimpleNamespace(annotations=[path], index=index, categories=CATEGORIES)


def test_images_are_counted_not_objects(tmp_path):
    one = data_set(tmp_path, "one", [(1, 4), (1, 4), (2, 4), (2, 2), (7, 9), (3, 77)])
    other = data_set(tmp_path, "other", [(1, 4)])
    assert image_counts_of([one]).tolist() == [2, 1, 0]  # image 7 and class 77 are not part of it
    assert image_counts_of([one, other]).tolist() == [3, 1, 0]


def test_files_of_counts(tmp_path):
    path = tmp_path / "cat_info.json"
    entries = [{"id": one, "image_count": 10 * one, "frequency": "c"} for one in (9, 2, 4, 5)]
    for content in (entries, {"categories": entries, "images": []}):
        path.write_text(json.dumps(content))
        assert read_image_counts(path, CATEGORIES).tolist() == [40, 20, 90]
    path.write_text(json.dumps(entries[1:3]))
    with pytest.raises(UserError, match=r"no image_count of 1 classes .*, the first being id 9 \(pan\)"):
        read_image_counts(path, CATEGORIES)
    for content in ({"1": 3}, [3], [{"id": 3}]):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="not a list of categories with id and image_count"):
            read_image_counts(path, CATEGORIES)
    with pytest.raises(UserError, match="image_counts .*none.json: no such file"):
        read_image_counts(tmp_path / "none.json", CATEGORIES)


def test_a_detector_learns_its_counts(tmp_path):
    data = types.SimpleNamespace(train=[data_set(tmp_path, "one", [(1, 2), (3, 9)])], categories=CATEGORIES)

    def given(**settings):
        subsets = make_subsets(settings, sigmoid=True, num_classes=3)
        give_image_counts(types.SimpleNamespace(roi_head=types.SimpleNamespace(federated=subsets)), data)
        return subsets.image_counts.tolist()

    assert given() == [0, 1, 1]
    path = tmp_path / "cat_info.json"
    path.write_text(json.dumps([{"id": one, "image_count": one} for one in (2, 4, 9)]))
    assert given(image_counts=str(path)) == [4, 2, 9]
    for detector in (
        types.SimpleNamespace(),
        types.SimpleNamespace(roi_head=types.SimpleNamespace(federated=None)),
    ):
        give_image_counts(detector, None)  # has no such loss

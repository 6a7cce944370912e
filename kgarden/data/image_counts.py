"""Number of training images of each class, from data sets or from a file, by which a federated loss draws."""

import pathlib

import numpy as np

from kgarden.data.examples import objects_of
from kgarden.errors import UserError
from kgarden.utils.files import read_json


def image_counts_of(datasets):
    """Counts the images of each class.

    Args:
        datasets: [Dataset, ...] with the same classes.
    Returns:
        (C,) int64.
    """
    num_classes = len(datasets[0].categories)
    counts = np.zeros(num_classes, "int64")
    for dataset in datasets:
        labels = np.unique(objects_of(dataset), axis=0)[:, 1]  # each class of an image once
        counts += np.bincount(labels, minlength=num_classes)
    return counts


def read_image_counts(path, categories):
    """Reads the images of each class from a file.

    Args:
        path:       JSON with [{"id", "image_count"}, ...] or with such "categories", as the train annotations
                    of LVIS and the category information that CenterNet2's release is trained with.
        categories: [{"id", ...}, ...] of the data, in label order.
    Returns:
        (C,) int64.
    Raises:
        UserError: the file does not exist, or lacks the number of a class.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"model.roi_head.federated.image_counts {path}: no such file")
    content = read_json(path)
    entries = content.get("categories") if isinstance(content, dict) else content
    try:
        count_of = {one["id"]: int(one["image_count"]) for one in entries}
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a list of categories with id and image_count") from error
    missing = [one for one in categories if one["id"] not in count_of]
    if missing:
        raise UserError(
            f"{path}: no image_count of {len(missing)} classes of the data, the first being id "
            f"{missing[0]['id']} ({missing[0]['name']})"
        )
    return np.array([count_of[one["id"]] for one in categories], "int64")

"""Contact sheets: grids of the images of a data set, and of the training batches of a recipe."""

import itertools
import os
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from kgarden.errors import UserError
from kgarden.structures import BOXES, CROWD, IMAGE_ID, IMAGES, LABELS, MASKS, SIZE_HW
from kgarden.utils.fonts import shown_name
from kgarden.utils.output_folder import LIST, OutputFolder
from kgarden.visualization.draw import draw_truth, scaled

CELL = 480  # px, longer side of an image on a sheet
COLUMNS = 4
PER_SHEET = 12
GAP = 8  # px
BACKGROUND = (32, 32, 32)
PADDING = (90, 90, 90)  # the part of a canvas around the image
OUTLINE = (255, 255, 255)


def show_shards(
    dataset, to: str | os.PathLike, count: int, seed: int = 0, labels: str = "name"
) -> list[pathlib.Path]:
    """Draws random images of a data set as they are stored, with their objects.

    Args:
        dataset: kgarden.data.sources.Dataset.
        to:      directory for sheet-001.png, ...
        count:   number of images, sampled without replacement.
        seed:    of the random sample.
        labels:  what is written at a box: "none", or "name".
    Returns:
        paths of the sheets.
    """
    rows = np.random.default_rng(seed).permutation(len(dataset.index))[:count]
    names = [shown_name(category) for category in dataset.categories]
    return _write_sheets(to, (_stored(dataset, row, names, labels) for row in sorted(rows.tolist())), COLUMNS)


def show_recipe(
    data, to: str | os.PathLike, count: int, start_step: int = 0, labels: str = "name"
) -> list[pathlib.Path]:
    """Draws images of a recipe's training batches: as stored, and next to it as network input.

    Args:
        data:       kgarden.build.Data, with its training data opened.
        to:         directory for sheet-001.png, ...
        count:      number of images.
        start_step: training step of the first batch.
        labels:     what is written at a box: "none", or "name".
    Returns:
        paths of the sheets.
    """
    names = [shown_name(category) for category in data.categories]
    location = {int(n): (one, row) for one in data.train[::-1] for row, n in enumerate(one.index.image_id)}

    def pairs():
        for x, y in data.train_batches(start_step):
            x, y = ({key: np.asarray(value) for key, value in one.items()} for one in (x, y))
            for row in range(len(x[IMAGES])):
                yield _stored(*location[int(y[IMAGE_ID][row])], names, labels)
                one_x, one_y = ({key: value[row] for key, value in one.items()} for one in (x, y))
                yield _prepared(one_x, one_y, names, labels)

    return _write_sheets(to, itertools.islice(pairs(), 2 * count), COLUMNS)


def _stored(dataset, row, names, labels):
    """A stored image with its objects."""
    from kgarden.data.examples import stored_example

    example = stored_example(dataset, row)
    return draw_truth(*scaled(example["image"], example, CELL), names, labels)


def _prepared(x, y, names, labels):
    """An image of a batch on its whole canvas: grey padding, a white outline around the image."""
    image, (height, width) = x[IMAGES].copy(), x[SIZE_HW]
    image[height:], image[:, width:] = PADDING, PADDING
    truth = {key: y[key] for key in (BOXES, LABELS, CROWD, MASKS) if key in y}
    drawing = draw_truth(*scaled(image, truth, CELL), names, labels)
    factor = CELL / max(image.shape[:2])
    ImageDraw.Draw(drawing).rectangle((0, 0, width * factor - 1, height * factor - 1), outline=OUTLINE)
    return drawing


def _write_sheets(to, images, columns):
    """Writes sheets of PER_SHEET images; the directory must be empty or hold only earlier sheets."""
    folder = OutputFolder(to)
    present = sorted(path.name for path in folder.path.iterdir()) if folder.path.exists() else []
    if foreign := [name for name in present if not folder.wrote(name)]:
        raise UserError(f"{to}: contains {foreign[0]}; give an empty directory, or one of earlier sheets")
    paths, images = [], iter(images)
    while of_sheet := list(itertools.islice(images, PER_SHEET)):
        name = f"sheet-{len(paths) + 1:03d}.png"
        with folder.replacing(name) as temporary:
            _sheet(of_sheet, columns).save(temporary, "png")
        paths.append(folder.path / name)
    for name in {*present} - {path.name for path in paths} - {LIST}:  # of a larger number of sheets
        (folder.path / name).unlink(missing_ok=True)
    return paths


def _sheet(images, columns):
    """A grid of images; every row is as high as its highest image."""
    rows = [images[n : n + columns] for n in range(0, len(images), columns)]
    heights = [max(image.height for image in row) for row in rows]
    width = GAP + max(sum(image.width + GAP for image in row) for row in rows)
    sheet = Image.new("RGB", (width, GAP + sum(height + GAP for height in heights)), BACKGROUND)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + GAP
        top += height + GAP
    return sheet

"""Contact sheets: what lies in a data set, and what a recipe makes of it before it trains on it."""

import itertools
import os
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from kgarden.errors import UserError
from kgarden.structures import BOXES, CROWD, IMAGE_ID, IMAGES, LABELS, MASKS, SIZE_HW
from kgarden.visualization.draw import draw_truth, scaled

CELL = 480  # px, longer side of a picture on a sheet
COLUMNS = 4
PER_SHEET = 12
GAP = 8  # px
GROUND = (32, 32, 32)
PADDING = (90, 90, 90)  # the part of a canvas that holds no picture
RIM = (255, 255, 255)


def show_shards(dataset, to, count, seed=0):
    """Pictures of a data set as they are stored, with their objects.

    Args:
        dataset: kgarden.data.sources.Dataset.
        to:      directory for sheet-001.png, ...
        count:   pictures, drawn without replacement.
        seed:    another seed, other pictures.
    Returns:
        paths of the sheets.
    """
    rows = np.random.default_rng(seed).permutation(len(dataset.index))[:count]
    names = [category["name"] for category in dataset.categories]
    return _write_sheets(to, (_stored(dataset, row, names) for row in sorted(rows.tolist())), COLUMNS)


def show_recipe(data, to, count, start_step=0):
    """Pictures of a recipe's training batches: as they are stored, and beside it as the network gets them.

    Args:
        data:       kgarden.build.Data, its train part opened.
        to:         directory for sheet-001.png, ...
        count:      pictures.
        start_step: of the first batch.
    Returns:
        paths of the sheets.
    """
    names = [category["name"] for category in data.categories]
    place = {int(n): (one, row) for one in data.train[::-1] for row, n in enumerate(one.index.image_id)}

    def pairs():
        for x, y in data.train_batches(start_step):
            x, y = ({key: np.asarray(value) for key, value in part.items()} for part in (x, y))
            for row in range(len(x[IMAGES])):
                yield _stored(*place[int(y[IMAGE_ID][row])], names)
                yield _prepared(*({key: value[row] for key, value in part.items()} for part in (x, y)), names)

    return _write_sheets(to, itertools.islice(pairs(), 2 * count), COLUMNS)


def _stored(dataset, row, names):
    """One picture of the shards with its objects."""
    from kgarden.data.examples import stored_example

    example = stored_example(dataset, row)
    return draw_truth(*scaled(example["image"], example, CELL), names)


def _prepared(x, y, names):
    """One picture of a batch, its whole canvas: padding in grey, a white line around the picture."""
    image, (height, width) = x[IMAGES].copy(), x[SIZE_HW]
    image[height:], image[:, width:] = PADDING, PADDING
    truth = {key: y[key] for key in (BOXES, LABELS, CROWD, MASKS) if key in y}
    picture = draw_truth(*scaled(image, truth, CELL), names)
    factor = CELL / max(image.shape[:2])
    ImageDraw.Draw(picture).rectangle((0, 0, width * factor - 1, height * factor - 1), outline=RIM)
    return picture


def _write_sheets(to, pictures, columns):
    """Pictures in rows of `columns`, so many on a sheet; the directory must be empty or hold sheets alone."""
    to = pathlib.Path(to)
    to.mkdir(parents=True, exist_ok=True)
    foreign = [path for path in to.iterdir() if not path.name.startswith("sheet-")]
    if foreign:
        raise UserError(f"{to}: holds {foreign[0].name}: give an empty directory, or one of earlier sheets")
    for old in to.iterdir():
        old.unlink()
    paths, pictures = [], iter(pictures)
    while several := list(itertools.islice(pictures, PER_SHEET)):
        path = to / f"sheet-{len(paths) + 1:03d}.png"
        aside = path.with_name(f".{path.name}")
        _sheet(several, columns).save(aside, "png")
        os.replace(aside, path)
        paths.append(path)
    return paths


def _sheet(pictures, columns):
    """A grid; every row is as high as its highest picture."""
    rows = [pictures[n : n + columns] for n in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    width = GAP + max(sum(picture.width + GAP for picture in row) for row in rows)
    sheet = Image.new("RGB", (width, GAP + sum(height + GAP for height in heights)), GROUND)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + GAP
        top += height + GAP
    return sheet

"""Definitions written a second time, as loops over cells, boxes and objects."""

import numpy as np


def upsampled_line(line, factor):
    """AdelaiDet's way: one cell more at the end, ends on ends, then shifted by half a factor."""
    longer = np.append(line, line[-1])
    at = np.linspace(0, len(line), len(line) * factor + 1)  # corners on corners
    between = np.interp(at, np.arange(len(longer)), longer)
    return np.concatenate([[between[0]] * (factor // 2), between])[: len(line) * factor]


def upsampled(x, factor):
    """One map (H, W)."""
    x = np.stack([upsampled_line(column, factor) for column in x.T], axis=1)
    return np.stack([upsampled_line(row, factor) for row in x])


def sigmoid_over_boxes(logits, boxes, stride, factor, side):
    """One cell of one box after the other."""
    found = np.zeros((*logits.shape[:2], side, side))
    for image, box in np.ndindex(*logits.shape[:2]):
        large = 1 / (1 + np.exp(-upsampled(logits[image, box].astype("float64"), factor)))
        x0, y0, x1, y1 = boxes[image, box].astype("float64")
        for row, column in np.ndindex(side, side):
            place = []
            for begin, end, part, length in ((y0, y1, row, 0), (x0, x1, column, 1)):
                px = begin + (part + 0.5) / side * (end - begin)
                place.append(np.clip(px / (stride / factor) - 0.5, 0, large.shape[length] - 1))
            (top, left), total = np.floor(place).astype(int), 0.0
            for y, x in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                share = max(1 - abs(place[0] - y), 0) * max(1 - abs(place[1] - x), 0)
                if share:
                    total += share * large[y, x]
            found[image, box, row, column] = total
    return found


def masks_on_grid(bitmaps, boxes, size, stride):
    """Bitmaps in the frames of boxes, read at the centres of a grid's cells."""
    found = np.zeros((*bitmaps.shape[:2], *size), bool)
    for image, one, row, column in np.ndindex(*found.shape):
        x0, y0, x1, y1 = boxes[image, one].astype("float64")
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        if x0 <= x < x1 and y0 <= y < y1:
            cell_x = int((x - x0) / (x1 - x0) * bitmaps.shape[3])
            cell_y = int((y - y0) / (y1 - y0) * bitmaps.shape[2])
            found[image, one, row, column] = bitmaps[image, one, cell_y, cell_x]
    return found


def covered_area(bitmap, box, other, size):
    """Areas that each cell of the other box has in common with every set cell of the bitmap."""
    (x0, y0, x1, y1), (left, top, right, bottom) = (np.float64(one) for one in (box, other))
    height, width = (y1 - y0) / len(bitmap), (x1 - x0) / len(bitmap)
    tall, wide = (bottom - top) / size, (right - left) / size
    share = np.zeros((size, size))
    for row, column in np.ndindex(size, size):
        at_y, at_x = top + row * tall, left + column * wide
        for r, c in zip(*np.nonzero(bitmap), strict=True):
            y = min(y0 + (r + 1) * height, at_y + tall) - max(y0 + r * height, at_y)
            x = min(x0 + (c + 1) * width, at_x + wide) - max(x0 + c * width, at_x)
            share[row, column] += max(x, 0) * max(y, 0) / (tall * wide)
    return share


def dice_loss(probability, target):
    """Dice loss of one mask."""
    common = squares = 0.0
    for p, t in zip(probability.ravel().astype("float64"), target.ravel(), strict=True):
        common += p * t
        squares += p * p + t * t
    return 1 - 2 * common / (squares + 1e-5)


def best_of_each(matched, score, wanted, count):
    """One picture: {(place, object)}."""
    places = {m: [] for m in np.flatnonzero(wanted)}
    for place, m in enumerate(matched):
        if m in places:
            places[m].append((-score[place], place))
    places = {m: sorted(found) for m, found in places.items() if found}
    share = max(count // max(len(places), 1), 1)
    if len(places) > count:
        best = sorted((found[0], m) for m, found in places.items())[:count]
        return {(place, m) for (_, place), m in best}
    return {(place, m) for m, found in places.items() for _, place in found[:share]}

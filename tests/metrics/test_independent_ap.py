"""COCO's mask AP implemented a second time, from its definition, and compared on COCO's own example.

Lin et al. 2014, cocodataset.org/#detection-eval: greedy matching by descending score, detections in crowds
ignored, monotone precision sampled at 101 recalls, mean over IoU 0.50, 0.55, ..., 0.95 and classes.
"""

import collections
import json

import numpy as np
from pycocotools import mask as mask_tools
from support import real_data

from kgarden.metrics.arrays import run_lengths
from kgarden.metrics.coco import coco_metrics

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of a class in an image
AREAS = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}


def bitmaps(entries, size_hw):
    """(N, H*W) of 0 and 1."""
    masks = [mask_tools.decode(run_lengths(one["segmentation"], size_hw)).ravel() for one in entries]
    return np.array(masks, "float32").reshape(len(masks), size_hw[0] * size_hw[1])


def overlaps(found, objects, size_hw):
    """(N, M) IoU of masks, for a crowd the fraction of the detection in it; (N,) px of detections."""
    one, other = bitmaps(found, size_hw), bitmaps(objects, size_hw)
    shared = (one @ other.T).astype("float64")
    area, area_there = one.sum(axis=1, dtype="float64"), other.sum(axis=1, dtype="float64")
    whole = np.where(crowds(objects), area[:, None], area[:, None] + area_there - shared)
    return shared / whole, area


def crowds(objects):
    return np.array([bool(one["iscrowd"]) for one in objects], bool)


def matched(iou, ignored, crowd, threshold):
    """Row of the object that each detection matches, by score, or -1. Ignored objects come last."""
    taken, rows = np.zeros(len(ignored), bool), []
    for line in iou:
        free = (line >= threshold) & (crowd | ~taken)
        for wanted in (free & ~ignored, free & ignored):
            if wanted.any():
                best = np.where(wanted, line, -1)
                rows.append(len(best) - 1 - int(np.argmax(best[::-1])))  # of equals the last one
                taken[rows[-1]] = True
                break
        else:
            rows.append(-1)
    return np.array(rows, int)


def average_precision(images, threshold, area):
    """AP of one class: images hold found (sorted), their areas, objects, IoUs. NaN without objects."""
    low, high = area
    scores, right, counted, to_find = [], [], [], 0
    for one in images:
        crowd = crowds(one["objects"])
        inside = np.array([low <= each["area"] <= high for each in one["objects"]], bool)
        ignored = crowd | ~inside
        to_find += (~ignored).sum()
        rows = matched(one["iou"], ignored, crowd, threshold)
        hit = rows >= 0
        forgiven = np.append(ignored, False)[rows]  # -1 reads the appended one
        outside = ~hit & ((one["areas"] < low) | (one["areas"] > high))
        scores += [each["score"] for each in one["found"]]
        right.append(hit & ~forgiven)
        counted.append(~(forgiven | outside))
    if to_find == 0:
        return np.nan
    order = np.argsort(-np.array(scores), kind="stable")
    right, counted = (np.concatenate([*part, np.zeros(0, bool)])[order] for part in (right, counted))
    right = right[counted]
    recall = np.cumsum(right) / to_find
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    best = [precision[recall >= wanted].max(initial=0) for wanted in RECALLS]
    return float(np.mean(best))


def all_images(truth, results):
    """{class: [image with objects, detections and their IoUs, ...]}, images by id."""
    there, found = collections.defaultdict(list), collections.defaultdict(list)
    for one in truth["annotations"]:
        there[one["category_id"], one["image_id"]].append(one)
    for one in results:
        found[one["category_id"], one["image_id"]].append(one)
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
    classes = collections.defaultdict(list)
    for key in sorted(there.keys() | found.keys()):
        best = sorted(found[key], key=lambda one: -one["score"])[:MOST]
        iou, areas = overlaps(best, there[key], sizes[key[1]])
        classes[key[0]].append({"objects": there[key], "found": best, "iou": iou, "areas": areas})
    return classes


def test_mask_ap_equals_its_definition():
    folder = real_data.folder("coco_samples", "cocoapi_val2014_100")
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakesegm100_results.json").read_text())
    assert sum(one["iscrowd"] for one in truth["annotations"]) == 9
    classes = all_images(truth, results)
    judged = coco_metrics(truth, results, iou_type="segm")
    got, checked = judged["metrics"], 0
    for suffix, area in AREAS.items():
        table = {
            number: [average_precision(images, iou, area) for iou in IOUS]
            for number, images in classes.items()
        }
        by_iou = 100 * np.nanmean(list(table.values()), axis=0)
        assert abs(got[f"ap{suffix}"] - by_iou.mean()) < 1e-6, suffix
        if not suffix:
            assert abs(got["ap50"] - by_iou[0]) < 1e-6 and abs(got["ap75"] - by_iou[5]) < 1e-6
            for row in judged["per_class"]:
                if row["ap"] is not None:
                    assert abs(row["ap"] - 100 * np.mean(table[row["id"]])) < 1e-6, row
                    checked += 1
    assert checked == 70

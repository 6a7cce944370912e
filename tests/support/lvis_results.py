"""Detections for LVIS's sample annotations: perturbed boxes, wrong classes, more than 300 in one image."""

import numpy as np


def perturbed(truth):
    """Results in COCO form, made of ground truth with segmentations; boxes xywh px with two decimals."""
    rng = np.random.default_rng(0)
    categories = [one["id"] for one in truth["categories"]]
    absent = {one["id"]: one["neg_category_ids"] for one in truth["images"]}
    inexact = {one["id"]: one["not_exhaustive_category_ids"] for one in truth["images"]}
    results = []

    def add(image, category, box):
        score = round(float(rng.uniform(0, 1)), 2)  # with ties
        results.append({"image_id": image, "category_id": category, "bbox": box, "score": score})

    for one in truth["annotations"]:
        for _ in range(3):
            sides = np.array(one["bbox"][2:] * 2)
            box = np.array(one["bbox"]) + rng.normal(0, 0.06, 4) * sides
            box[2:] = np.maximum(box[2:], 1)
            kind = rng.random()
            category = one["category_id"]
            if kind < 0.1:
                category = categories[rng.integers(len(categories))]
            elif kind < 0.2 and absent[one["image_id"]]:
                category = int(rng.choice(absent[one["image_id"]]))
            elif kind < 0.3 and inexact[one["image_id"]]:
                category = int(rng.choice(inexact[one["image_id"]]))
                box[0] += 40
            add(one["image_id"], category, [round(float(side), 2) for side in box])
    crowded = truth["annotations"][0]["image_id"]
    own = sorted({one["category_id"] for one in truth["annotations"] if one["image_id"] == crowded})
    for _ in range(400):
        corner = rng.uniform(0, 300, 2)
        box = [round(float(side), 2) for side in (*corner, *rng.uniform(5, 150, 2))]
        add(crowded, int(rng.choice(own)), box)
    order = rng.permutation(len(results))
    return [results[n] for n in order]


def mask_of(result, truth):
    """The box of a result as a polygon in run-length code, of the size of its image."""
    from pycocotools import mask

    image = next(one for one in truth["images"] if one["id"] == result["image_id"])
    x, y, w, h = result["bbox"]
    [code] = mask.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], image["height"], image["width"])
    return {"size": code["size"], "counts": code["counts"].decode()}

"""COCO metrics of masks computed by pycocotools directly, from two json files."""

import contextlib
import io
import json

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def directly(truth, results):
    """The twelve numbers of pycocotools for the masks of two json files, in percent; NaN where undefined."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth))
        results = json.loads(results.read_text())
        for one in results:
            del one["bbox"]  # beside it pycocotools would take the box's area for the mask's
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [100 * one if one >= 0 else np.nan for one in judge.stats]


def numbers(metrics):
    return [np.nan if one is None else one for one in metrics.values()]

"""Evaluation table: ground truth and detections of one evaluation, completed and tabulated once.

All metrics of an evaluation read the same table, so that ground truth is completed and converted to arrays
once for each IoU type, however many metrics are computed.
"""

import dataclasses
from collections.abc import Iterable

from pycocotools import mask as mask_tools

from kgarden.metrics.arrays import COCO_MAX_DETECTIONS, Table, box_of, require, run_lengths, tabulate
from kgarden.metrics.open_images import OFFICIAL, Rules
from tfrecords.data_statistics import Facts, facts_of


class EvaluationTable:
    """Ground truth and detections in COCO form, and as arrays.

    Args:
        ground_truth:   in COCO form, a dictionary; it is not changed.
        results:        list in COCO results form; may be empty.
        image_ids:      evaluate these images only; None: all of the ground truth.
        max_detections: number of detections of a class in an image that COCO's metrics and the error analysis
                        judge, best first.
        per_image:      number of detections that the model keeps of an image; None: not known.
        open_images:    rules of the metric of Open Images.
        facts:          what is known of the data set, `tfrecords.data_statistics.Facts`; None: what the
                        ground truth tells, where boxes may have been clipped.
    """

    def __init__(
        self,
        ground_truth: dict,
        results: list[dict],
        image_ids: Iterable | None = None,
        max_detections: int = COCO_MAX_DETECTIONS,
        per_image: int | None = None,
        open_images: Rules = OFFICIAL,
        facts: Facts | None = None,
    ):
        self.ground_truth = ground_truth
        self.results = results
        self.image_ids = None if image_ids is None else set(image_ids)
        self.max_detections, self.per_image, self.open_images = max_detections, per_image, open_images
        self._complete, self._arrays, self._facts = {}, {}, facts

    def complete(self, iou_type: str = "bbox") -> dict:
        """Returns the ground truth with all fields that metrics of this IoU type read; see `complete`."""
        if iou_type not in self._complete:
            self._complete[iou_type] = complete(self.ground_truth, iou_type)
        return self._complete[iou_type]

    def arrays(self, iou_type: str = "bbox") -> Table:
        """Returns objects and detections as arrays; with "segm" also their masks."""
        if iou_type not in self._arrays:
            ground_truth = self.complete(iou_type)
            table = tabulate(ground_truth, self.results, self.image_ids, iou_type)
            self._arrays[iou_type] = dataclasses.replace(
                table, max_detections=self.max_detections, per_image=self.per_image
            )
        return self._arrays[iou_type]

    @property
    def facts(self) -> Facts:
        """What is known of the data set as a whole."""
        return facts_of(self.ground_truth) if self._facts is None else self._facts

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        if self.image_ids is None:
            return len({one["id"] for one in self.ground_truth["images"]})
        return len(self.image_ids)


def complete(ground_truth: dict, iou_type: str = "bbox") -> dict:
    """Returns a copy of the ground truth in which every field that metrics read is filled in.

    - `id`: numbered anew from 1 if ids are missing, duplicated or 0, which pycocotools takes for "no match";
    - `bbox`: of the mask;   `area`: of the mask if masks are evaluated, else of the box;   `iscrowd`: 0.
    """
    annotations = [dict(one) for one in ground_truth["annotations"]]
    if iou_type == "segm":
        require(annotations, "segmentation", "annotations")
        require(ground_truth["images"], "height", "images")
        require(ground_truth["images"], "width", "images")
    ids = [one.get("id") for one in annotations]
    if not all(isinstance(one, int) and one > 0 for one in ids) or len(set(ids)) < len(ids):
        for number, one in enumerate(annotations, start=1):
            one["id"] = number
    sizes = {one["id"]: (one.get("height"), one.get("width")) for one in ground_truth["images"]}
    for one in annotations:
        one["iscrowd"] = one.get("iscrowd") or 0
        one["bbox"] = box_of(one)
        if one.get("area") is None:
            masked = iou_type == "segm" and one["image_id"] in sizes
            one["area"] = _mask_area(one, sizes) if masked else one["bbox"][2] * one["bbox"][3]
    return {**ground_truth, "annotations": annotations}


def _mask_area(annotation, sizes):
    return float(mask_tools.area(run_lengths(annotation["segmentation"], sizes[annotation["image_id"]])))

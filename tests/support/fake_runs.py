"""Fake runs: RoI heads whose predictions are known functions of IoU, and small run directories."""

import contextlib
import json
import types

import numpy as np
from support import small_backbone  # noqa: F401  resnet10 of the recipe

from kgarden.analyze.loaded_runs import LoadedRun
from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.models.faster_rcnn import FUSED
from kgarden.ops.boxes import iou
from kgarden.structures import BOXES, SCORES

CATEGORIES = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}, {"id": 5, "name": "blue"}]


class KnownHead:
    """Class c is scored by `score` of the IoU with object c; its box is the mean of RoI and object."""

    def __init__(self, score, also_alone=False):
        self.score, self.also_alone = score, also_alone

    def __call__(self, pyramid, proposals, size_hw, training=False):
        return {"objects": pyramid[0], BOXES: proposals[BOXES]}

    def branch_predictions(self, raw, size_hw):
        own = {
            SCORES: self.score(iou(raw[BOXES], raw["objects"])),
            BOXES: (raw[BOXES][:, :, None] + raw["objects"][:, None]) / 2,
        }
        alone = {"fc": {SCORES: own[SCORES] / 2}, "conv": {BOXES: own[BOXES]}}
        return {FUSED: own, **(alone if self.also_alone else {})}


class KnownDetector:
    """A detector whose pyramid is a copy of the input's objects."""

    def __init__(self, head):
        self.roi_head = head

    def pyramid(self, x, training=False):
        return [x["objects"] + 0.0]


class KnownRun(LoadedRun):
    """A run on two images of 100 x 120 px in a network input of half that size."""

    def images(self, limit=None):
        for image_id in list(self.objects)[:limit]:
            objects = self.objects[image_id]
            boxes = np.array([one["bbox"] for one in objects], "float64").reshape(-1, 4) / 2
            boxes[:, 2:] += boxes[:, :2]
            x = {"size_hw": np.int32([[50, 60]])}
            every = np.zeros((1, 3, 4), "float32")
            for one, box in zip(objects, boxes, strict=True):
                every[0, one["label"]] = box
            yield {**x, "objects": every}, image_id, objects, boxes

    def num_images(self, limit=None):
        return min(len(self.objects), limit or 2)


def known_run(name, score, also_alone=False):
    sizes = {4: [(0, [30, 40, 40, 20]), (2, [60, 30, 16, 30])], 9: [(1, [0, 0, 110, 90])]}
    objects = {
        image_id: [{"id": 1, "label": label, "bbox": box, "area": box[2] * box[3]} for label, box in of_image]
        for image_id, of_image in sizes.items()
    }
    recipe = types.SimpleNamespace(model=types.SimpleNamespace(name="known"))
    detector = KnownDetector(KnownHead(score, also_alone))
    return KnownRun(name, recipe, detector, categories=CATEGORIES, data=None, objects=objects)


@contextlib.contextmanager
def without_graphs():
    """Decorator: predictions for two or three images take less time than their graph takes to be traced."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


RECIPE = """
name: little
model:
  name: double_head
  configuration: double_head_ext
  backbone: {name: resnet10, norm: bn, stem_channels: 8, res2_channels: 8}
  neck: {channels: 16}
  proposals: {train: {total: 32}, test: {total: 20}}
  roi_head:
    fc_head: {width: 8}
    conv_head: {blocks: 2, non_local: false, width: 12, middle: 4}
data:
  train: [{format: shapes, count: 4, seed: 0, size_hw: [96, 128]}]
  val: [{format: shapes, count: 3, seed: 3, size_hw: [96, 128]}]
  short_side_px: 96
  long_side_px: 128
  canvases: [[128, 128]]
  batch_size: 2
schedule: {base_lr: 0.001, steps: 1}
evaluate: {batch_size: 2, pictures: 0}
"""
NAMES = ("disc", "square", "triangle", "star", "cross", "ring")


def make_run(folder, **settings):
    """Writes a run directory with initial weights, as after a training of zero steps."""
    folder.mkdir()
    (folder / "given.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "given.yaml", settings)
    detector = build_model(recipe, num_classes=len(NAMES))
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    labels = [{"id": n, "name": name} for n, name in enumerate(NAMES, start=1)]
    (folder / "labels.json").write_text(json.dumps(labels))
    detector.save_weights(folder / "best.weights.h5")
    return folder

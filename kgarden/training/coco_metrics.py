"""CocoMetrics: a callback that adds COCO's AP of validation data to the logs of `fit`."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kgarden.errors import UserError
from kgarden.evaluation import detect
from kgarden.metrics.coco import coco_metrics
from kgarden.models.base.batches import training_data
from kgarden.structures import BOXES, CROWD, IMAGE_ID, LABELS, ORIGINAL_HW, PAD_LABEL, SIZE_HW

LOGGED = {"ap": "val_AP", "ap50": "val_AP50", "ap75": "val_AP75"}


class CocoMetrics(keras.callbacks.Callback):
    """Adds `val_AP`, `val_AP50` and `val_AP75`, in percent, to the logs at the end of an epoch.

    Callbacks that monitor them, such as keras.callbacks.EarlyStopping(monitor="val_AP", mode="max"), come
    after it in the list. Areas are in px of the original image where the data set knows its size
    (`original_hw`), else of the network input.

    Args:
        data:        (x, y) or a data set, as `validation_data` of `fit`.
        class_names: of the labels; None: those of the detector, or the labels' numbers.
        batch_size:  of (x, y).
        every:       evaluates every n-th epoch; the logs of the others hold the last values.
    """

    def __init__(
        self, data: Any, class_names: Sequence[str] | None = None, batch_size: int = 8, every: int = 1
    ):
        super().__init__()
        if every < 1:
            raise UserError(f"CocoMetrics: every is {every}; 1 or more is needed")
        self.data, self.class_names, self.batch_size, self.every = data, class_names, batch_size, every
        self.evaluation = None  # of the last evaluation: {"metrics", "per_class"}, see coco_metrics

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.evaluation is None or (epoch + 1) % self.every == 0:
            self.evaluation = self.evaluate()
        if logs is not None:
            logs.update({name: self.evaluation["metrics"][key] for key, name in LOGGED.items()})

    def evaluate(self) -> dict:
        """Evaluates the model on the data; returns what `kgarden.metrics.coco.coco_metrics` returns."""
        numbers = [str(label) for label in range(self.model.num_classes)]
        names = self.class_names or getattr(self.model, "class_names", None) or numbers
        if len(names) != self.model.num_classes:
            raise UserError(f"CocoMetrics: {len(names)} class names for {self.model.num_classes} classes")
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
        truth = {"images": [], "annotations": [], "categories": categories}
        model = self.model.inference_model_to_predict()
        results, _, _ = detect(model, self._batches(truth), categories)
        if not any(not one["iscrowd"] for one in truth["annotations"]):
            raise UserError("CocoMetrics: the data hold no object, so that AP is undefined")
        return coco_metrics(truth, results)

    def _batches(self, truth):
        """Yields (x, meta) for `detect`, and adds their objects to `truth`."""
        for x, y in self._pairs():
            x = {key: np.asarray(value) for key, value in x.items()}
            y = {key: np.asarray(value) for key, value in y.items()}
            original_hw = y.get(ORIGINAL_HW, x[SIZE_HW])
            ids = np.full(len(original_hw), -1, "int64")
            for row in np.flatnonzero(y[IMAGE_ID] >= 0):
                ids[row] = len(truth["images"]) + 1
                _add_objects(
                    truth,
                    int(ids[row]),
                    {key: y[key][row] for key in (BOXES, LABELS, CROWD)},
                    original_hw=original_hw[row],
                    size_hw=x[SIZE_HW][row],
                )
            yield x, {IMAGE_ID: ids, ORIGINAL_HW: original_hw}

    def _pairs(self):
        pair = self.data if isinstance(self.data, tuple) else (self.data, None)
        x, y = training_data(*pair, self.model)
        if y is None:
            yield from (batch[:2] for batch in x)
            return
        for start in range(0, len(y[LABELS]), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield ({key: value[part] for key, value in part_of.items()} for part_of in (x, y))


def _add_objects(truth, image_id, y, *, original_hw, size_hw):
    height, width = map(int, original_hw)
    truth["images"].append({"id": image_id, "height": height, "width": width})
    scale = np.tile((np.asarray(original_hw, "float64") / size_hw)[::-1], 2)
    for at in np.flatnonzero(y[LABELS] != PAD_LABEL):
        x0, y0, x1, y1 = (y[BOXES][at] * scale).tolist()
        truth["annotations"].append(
            {
                "id": len(truth["annotations"]) + 1,
                "image_id": image_id,
                "category_id": int(y[LABELS][at]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": int(y[CROWD][at]),
            }
        )

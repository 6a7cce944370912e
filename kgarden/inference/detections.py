"""Detections of one image: boxes, scores, labels, masks; conversions to drawings, COCO and supervision."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from kgarden.errors import UserError
from kgarden.structures import BOXES, LABELS, MASKS, SCORES, VALID
from kgarden.utils.fonts import shown_name
from kgarden.utils.paste_masks import paste_masks, run_lengths_of
from kgarden.visualization.draw import draw_detections


@dataclasses.dataclass(frozen=True)
class Detection:
    """One detected object.

    Args:
        box:   (4,) float32 xyxy, px of the image.
        score: 0..1.
        label: 0..C-1.
        name:  of the class.
        mask:  (H, W) bool; None without a mask head.
    """

    box: np.ndarray
    score: float
    label: int
    name: str
    mask: np.ndarray | None = None


class Detections:
    """Detections of one image, best first.

    Attributes hold the N detections. Items hold the arrays of `kgarden.structures`, padded to K rows, as the
    model returns them: `found["boxes"]` (K, 4), `found["valid"]` (K,).

    Args:
        padded:     {"boxes": (K, 4) xyxy px of the image, "scores": (K,), "labels": (K,), "valid": (K,),
                    "source": (K,), and with a mask head "masks": (K, S, S) over the boxes}, numpy.
        categories: [{"id", "name"}, ...] in label order.
        size_hw:    height and width of the image, px.
        read:       function without arguments that returns the image, (H, W, 3) uint8.
        path:       of the image; None: it was given in memory.
    """

    def __init__(
        self,
        padded: dict[str, np.ndarray],
        categories: list[dict],
        size_hw: tuple[int, int],
        *,
        read: Callable[[], np.ndarray],
        path: Any = None,
    ):
        self.padded, self.categories, self.path = padded, categories, path
        self.size_hw = tuple(map(int, size_hw))
        self._rows = np.flatnonzero(padded[VALID])
        self._read = read

    @property
    def boxes(self) -> np.ndarray:
        """Boxes, xyxy in px of the image.   (N, 4) float32"""
        return self.padded[BOXES][self._rows]

    @property
    def scores(self) -> np.ndarray:
        """Scores, descending.   (N,) float32, 0..1"""
        return self.padded[SCORES][self._rows]

    @property
    def labels(self) -> np.ndarray:
        """Labels, 0..C-1.   (N,) int32"""
        return self.padded[LABELS][self._rows]

    @property
    def names(self) -> list[str]:
        """Names of the detections' classes.   N strings"""
        return [self.categories[label]["name"] for label in self.labels.tolist()]

    @property
    def masks(self) -> np.ndarray | None:
        """Masks of the whole image, (N, H, W) bool, computed at each access; None without a mask head."""
        if MASKS not in self.padded:
            return None
        return paste_masks(self.padded[MASKS][self._rows], self.boxes, self.size_hw)

    @property
    def image(self) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB; that of a file is read again."""
        return self._read()

    def draw(self, min_score: float = 0.0, labels: str = "name") -> Image.Image:
        """Draws the detections on the image.

        Args:
            min_score: smallest score of a drawn detection.
            labels:    what is written at a box: "none", "score" in percent, or "name" and score.
        Returns:
            PIL.Image of the image's size.
        """
        names = [shown_name(category) for category in self.categories]
        return draw_detections(self.image, self.padded, names, min_score, labels=labels)

    def to_coco(self, image_id: int) -> list[dict]:
        """Returns the detections in COCO's results format.

        Args:
            image_id: of the image in the ground truth.
        Returns:
            [{"image_id", "category_id": the data set's own, "bbox": [x, y, width, height] px, "score"}], with
            a mask head also "segmentation", run lengths.
        """
        rows = []
        for row in self._rows:
            x0, y0, x1, y1 = self.padded[BOXES][row].astype("float64").tolist()
            category = self.categories[int(self.padded[LABELS][row])]
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": category["id"],
                    "bbox": [round(side, 3) for side in (x0, y0, x1 - x0, y1 - y0)],
                    "score": float(self.padded[SCORES][row]),
                    **self._segmentation(row),
                }
            )
        return rows

    def to_records(self) -> list[dict]:
        """Returns the rows of `detections.json`: [{"box": xyxy px, "score", "category_id", "name", ...}]."""
        rows = []
        for row in self._rows:
            category = self.categories[int(self.padded[LABELS][row])]
            box = [round(float(side), 3) for side in self.padded[BOXES][row]]
            score = float(self.padded[SCORES][row])
            one = {"box": box, "score": score, "category_id": category["id"], "name": category["name"]}
            rows.append({**one, **self._segmentation(row)})
        return rows

    def _segmentation(self, row):
        if MASKS not in self.padded:
            return {}
        mask, box = self.padded[MASKS][row], self.padded[BOXES][row]
        return {"segmentation": run_lengths_of(mask, box, self.size_hw)}

    def to_supervision(self):
        """Returns supervision.Detections, with the names as data["class_name"].

        Raises:
            UserError: the package `supervision` is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ModuleNotFoundError as error:
            raise UserError(
                f"to_supervision needs {error.name}: pip install 'kgarden[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            mask=self.masks,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def __len__(self):
        return len(self._rows)

    def __iter__(self) -> Iterator[Detection]:
        boxes, scores, labels, masks = self.boxes, self.scores.tolist(), self.labels.tolist(), self.masks
        for n, name in enumerate(self.names):
            mask = None if masks is None else masks[n]
            yield Detection(box=boxes[n], score=scores[n], label=labels[n], name=name, mask=mask)

    def __contains__(self, key: str):
        return key in self.padded

    def __getitem__(self, key: str) -> np.ndarray:
        return self.padded[key]

    def keys(self):
        """Names of the padded arrays."""
        return self.padded.keys()

    def items(self):
        """Names and values of the padded arrays."""
        return self.padded.items()

    def __repr__(self):
        where = f" of {self.path}" if self.path is not None else ""
        height, width = self.size_hw
        best = zip(self.names[:3], self.scores[:3].tolist(), strict=True)
        listed = [f"{name} {score:.2f}" for name, score in best] + ["..."] * (len(self) > 3)
        listed = f": {', '.join(listed)}" if listed else ""
        return f"<{len(self)} detections{where}, {width}x{height} px{listed}>"

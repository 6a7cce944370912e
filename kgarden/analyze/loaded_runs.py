"""Loaded runs for analyses: detector, validation images and their objects in groups of size or difficulty."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np

from kgarden.build import Data, load_run, prepare_data
from kgarden.config.loading import Recipe
from kgarden.data.identity import check_classes, source_names
from kgarden.errors import UserError
from kgarden.metrics.arrays import COCO_MAX_DETECTIONS
from kgarden.metrics.evaluation_table import complete
from kgarden.metrics.limits import limited
from kgarden.models.base.two_stage import TwoStage
from kgarden.structures import IMAGE_ID, ORIGINAL_HW, SIZE_HW
from kgarden.utils.files import read_json

SIZES = ("small", "medium", "large")  # COCO: areas below 32^2, up to 96^2, above
DIFFICULTIES = ("easy", "medium", "hard")
EVERY = "all"  # the group of all objects


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run directory with its recipe, trained detector and validation data.

    Attributes:
        name:       of the run, in figures and tables.
        recipe:     Recipe.
        detector:   with the run's weights.
        categories: [{"id", "name"}, ...] in label order.
        data:       kgarden.build.Data, its validation part.
        objects:    {image_id: [{"id", "label", "bbox" xywh px of the original image, "area"}, ...]}, without
                    crowds.
    """

    name: str
    recipe: Recipe
    detector: keras.Model
    categories: list
    data: Data
    objects: dict

    def images(self, limit: int | None = None) -> Iterator[tuple]:
        """Yields (x of one image, image_id, its objects, their boxes (N, 4) xyxy px of the network input)."""
        for x, meta in self.data.val_batches(limit):
            x = {key: np.asarray(value) for key, value in x.items()}
            ids, original_hw = np.asarray(meta[IMAGE_ID]), np.asarray(meta[ORIGINAL_HW])
            for row in np.flatnonzero(ids >= 0):
                one = {key: value[row : row + 1] for key, value in x.items()}
                objects = self.objects.get(int(ids[row]), [])
                yield one, int(ids[row]), objects, boxes_of(objects, x[SIZE_HW][row], original_hw[row])

    def image_ids(self) -> set[int]:
        """Returns the ids of all images."""
        return {int(one) for dataset in self.data.val for one in dataset.index.image_id}

    def num_images(self, limit: int | None = None) -> int:
        """Returns how many images `images` yields."""
        count = sum(len(dataset.index) for dataset in self.data.val)
        return min(count, limit or count)


def boxes_of(objects: list[dict], size_hw: np.ndarray, original_hw: np.ndarray) -> np.ndarray:
    """Returns the boxes of an image's objects in px of the network input.   (N, 4) xyxy float64"""
    boxes = np.array([one["bbox"] for one in objects], "float64").reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes * np.tile((size_hw / original_hw)[::-1], 2)


def open_runs(
    runs: Sequence[str | os.PathLike], weights: str | os.PathLike | None = None, overrides: dict | None = None
) -> list[LoadedRun]:
    """Loads runs with equal validation data.

    Args:
        runs:      run directories.
        weights:   file to use instead of the best weights; for a single run only.
        overrides: recipe settings for inference.
    Raises:
        UserError: a directory is not a run, or the validation data of the runs differ.
    """
    if weights and len(runs) > 1:
        raise UserError(f"--weights {weights} applies to a single RUN; {len(runs)} runs were given")
    runs = [pathlib.Path(run) for run in runs]
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)}: the run is given twice; name it once")
    loaded = [_open(run, name, weights, overrides) for run, name in zip(runs, names, strict=True)]
    for path, run in zip(runs, loaded, strict=True):
        if run.objects != loaded[0].objects or run.categories != loaded[0].categories:
            raise UserError(
                f"{path}: its data.val differ from those of {runs[0]}; compare runs of equal data"
            )
    return loaded


def _open(run, name, weights, overrides):
    recipe, detector, categories = load_run(run, weights, overrides)
    data = prepare_data(recipe, cache=run / "data", splits=("val",))
    check_classes(categories, f"{run}/labels.json", data.categories, *source_names(recipe, "val"))
    return LoadedRun(
        name=name,
        recipe=recipe,
        detector=detector,
        categories=categories,
        data=data,
        objects=_objects(data, categories),
    )


def _objects(data, categories):
    labels = {category["id"]: label for label, category in enumerate(categories)}
    objects = {}
    for one in complete(read_json(data.annotations))["annotations"]:
        if not one["iscrowd"] and one["category_id"] in labels:
            kept = {"id": one["id"], "label": labels[one["category_id"]], "bbox": list(one["bbox"])}
            objects.setdefault(one["image_id"], []).append({**kept, "area": one["area"]})
    return objects


def require_roi_heads(runs: Sequence[LoadedRun]) -> None:
    """Raises UserError unless all detectors have a RoI head that accepts given boxes."""
    for run in runs:
        head = getattr(run.detector, "roi_head", None)
        if not isinstance(run.detector, TwoStage) or not hasattr(head, "branch_predictions"):
            raise UserError(
                f"{run.name}: {run.recipe.model.name} has no RoI head that accepts given boxes; "
                "use a run of a two-stage detector"
            )


def progress_of_run(
    progress: Callable[[int, int], None] | None, runs: Sequence[LoadedRun], number: int, limit: int | None
) -> Callable[[int], None]:
    """Returns a function of the images done of run `number`, that reports those of all runs."""
    if progress is None:
        return lambda done: None
    counts = [run.num_images(limit) for run in runs]
    return lambda done: progress(sum(counts[:number]) + done, sum(counts))


def max_detections_of(runs: Sequence[LoadedRun], given: int | None = None) -> int:
    """Returns how many detections of a class in an image count: the given number, or that of all recipes.

    Raises:
        UserError: no number is given and the recipes have different ones.
    """
    limits = {run.recipe.evaluate.max_detections for run in runs}
    if given is None and len(limits) > 1:
        raise UserError(
            f"the runs have different evaluate.max_detections ({', '.join(map(str, sorted(limits)))}); "
            "use --max-detections N"
        )
    return given or limits.pop()


def size_of(area: float) -> str:
    """Returns COCO's size of an area in px^2 of the original image: small, medium or large."""
    return SIZES[int(area >= 32**2) + int(area > 96**2)]


def grouping(
    kind: str, categories: list[dict], evaluation: dict | None = None
) -> tuple[tuple[str, ...], Callable]:
    """Returns the names of groups, and a function of an object that returns its groups.

    Args:
        kind:       "size", or "difficulty": thirds of the classes by their AP, see `difficulties`.
        categories: [{"id", "name"}, ...] in label order.
        evaluation: of a run, for "difficulty".
    Returns:
        (names, function): ("small", "medium", "large", "all") or ("easy", "medium", "hard", "all").
    """
    if kind == "size":
        return (*SIZES, EVERY), lambda one: (size_of(one["area"]), EVERY)
    if kind != "difficulty":
        raise UserError(f"--groups {kind} is not supported; use size or difficulty")
    of_class = difficulties(evaluation, categories)
    of_label = {label: of_class.get(one["id"]) for label, one in enumerate(categories)}
    return (*DIFFICULTIES, EVERY), lambda one: (*filter(None, [of_label[one["label"]]]), EVERY)


def difficulties(evaluation: dict, categories: list[dict]) -> dict[int, str]:
    """Divides classes into thirds by AP: easy, medium, hard; the first ones get the remainder.  Appendix A.1

    Args:
        evaluation: of `evaluation.json`; classes without AP belong to no third.
        categories: [{"id", "name"}, ...].
    Returns:
        {category id: one of DIFFICULTIES}
    """
    name = limited("ap", evaluation.get("max_detections", COCO_MAX_DETECTIONS))
    ap = {row["id"]: row.get(name) for row in evaluation.get("per_class", [])}
    known = [one["id"] for one in categories if ap.get(one["id"]) is not None]
    ranked = sorted(known, key=lambda one: -ap[one])
    if len(ranked) < 3:
        raise UserError(f"--groups difficulty needs the AP of at least 3 classes; there are {len(ranked)}")
    thirds = np.array_split(np.array(ranked), 3)
    return {int(one): name for name, third in zip(DIFFICULTIES, thirds, strict=True) for one in third}


def evaluation_for(
    kind: str, runs: Sequence[str | os.PathLike], results: str | os.PathLike | None = None
) -> tuple[dict | None, pathlib.Path | None]:
    """Reads the AP of the classes: (evaluation.json, its path); (None, None) for groups of size."""
    if kind != "difficulty":
        if results:
            raise UserError(f"--results {results} applies to --groups difficulty only")
        return None, None
    path = pathlib.Path(results or pathlib.Path(runs[0]) / "evaluation.json")
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; --groups difficulty reads the AP of the classes from it: "
            "run kgarden evaluate RUN"
        )
    return read_json(path), path


def require_objects(count: int, runs: Sequence) -> None:
    """Raises UserError if the analysed images have no objects."""
    if not count:
        raise UserError(f"{runs[0]}: the analysed images have no objects; raise --limit")


def describe_groups(kind: str, source: pathlib.Path | None) -> str:
    """Describes the groups in one sentence; `source` is the file with the AP of the classes."""
    if kind == "size":
        return (
            "Small, medium and large are COCO's: the area of the annotation (without one, the area of its "
            "box) in px of the original image is below 32 x 32, up to 96 x 96, or above."
        )
    return f"Easy, medium and hard are thirds of the classes, ranked by their AP in {source}."


def describe_counts(objects: dict, names: Sequence[str], windows: int) -> str:
    """States the number of objects of each group, and of windows of each object, in one sentence."""
    groups = ", ".join(f"{objects[name]} {name}" for name in names if name != EVERY)
    return f"{objects[EVERY]} objects ({groups}), at most {windows} windows per object; crowds are left out."

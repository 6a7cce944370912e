"""Runs that are looked into, with the objects of their validation images and the groups these belong to."""

import dataclasses
import pathlib

import keras
import numpy as np

from kgarden.build import Data, load_run, prepare_data
from kgarden.config.loading import Recipe
from kgarden.errors import UserError
from kgarden.metrics.coco import complete
from kgarden.models.base.two_stage import TwoStage
from kgarden.structures import IMAGE_ID, ORIGINAL_HW, SIZE_HW
from kgarden.utils.files import read_json

SIZES = ("small", "medium", "large")  # COCO: areas below 32^2, up to 96^2, above
DIFFICULTIES = ("easy", "medium", "hard")
EVERY = "all"  # the group that all objects belong to


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run, its detector with weights, its validation data.

    Attributes:
        name:    what figures and tables call the run.
        objects: {image_id: [{"id", "label", "bbox" xywh px of the original image, "area"}, ...]}, crowds
                 left out.
    """

    name: str
    recipe: Recipe
    detector: keras.Model
    categories: list
    data: Data
    objects: dict

    def images(self, limit=None):
        """(x of one image, image_id, its objects, their boxes (N, 4) xyxy px of the network input)."""
        for x, meta in self.data.val_batches(limit):
            x = {key: np.asarray(value) for key, value in x.items()}
            ids, original_hw = np.asarray(meta[IMAGE_ID]), np.asarray(meta[ORIGINAL_HW])
            for row in np.flatnonzero(ids >= 0):
                one = {key: value[row : row + 1] for key, value in x.items()}
                objects = self.objects.get(int(ids[row]), [])
                yield one, int(ids[row]), objects, _boxes(objects, x[SIZE_HW][row], original_hw[row])

    def image_ids(self):
        """Of all images, a set."""
        return {int(one) for dataset in self.data.val for one in dataset.index.image_id}

    def known(self, limit=None):
        """How many images `images` will give."""
        count = sum(len(dataset.index) for dataset in self.data.val)
        return min(count, limit or count)


def _boxes(objects, size_hw, original_hw):
    boxes = np.array([one["bbox"] for one in objects], "float64").reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes * np.tile((size_hw / original_hw)[::-1], 2)


def open_runs(runs, weights=None, overrides=None):
    """Load runs that were measured on the same images.

    Args:
        runs:      directories.
        weights:   another file than the best weights, of one run alone.
        overrides: other settings at inference.
    Returns:
        [LoadedRun, ...]
    Raises:
        UserError: not runs, or runs with other validation data than the first one.
    """
    if weights and len(runs) > 1:
        raise UserError(f"--weights {weights}: whose? give one RUN with it")
    runs = [pathlib.Path(run) for run in runs]
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)}: given twice")
    subjects = [_open(run, name, weights, overrides) for run, name in zip(runs, names, strict=True)]
    for run, subject in zip(runs, subjects, strict=True):
        if subject.objects != subjects[0].objects or subject.categories != subjects[0].categories:
            raise UserError(f"{run}: its data.val are not those of {runs[0]}: they cannot be compared")
    return subjects


def _open(run, name, weights, overrides):
    recipe, detector, categories = load_run(run, weights, overrides)
    data = prepare_data(recipe, cache=run / "data", splits=("val",))
    if data.categories != categories:
        raise UserError(f"{run}: the classes of its data.val are not those that it was trained on")
    return LoadedRun(name, recipe, detector, categories, data, _objects(data, categories))


def _objects(data, categories):
    labels = {category["id"]: label for label, category in enumerate(categories)}
    objects = {}
    for one in complete(read_json(data.annotations))["annotations"]:
        if not one["iscrowd"] and one["category_id"] in labels:
            kept = {"id": one["id"], "label": labels[one["category_id"]], "bbox": list(one["bbox"])}
            objects.setdefault(one["image_id"], []).append({**kept, "area": one["area"]})
    return objects


def need_roi_heads(subjects):
    """Refuse detectors whose second stage cannot be handed boxes."""
    for subject in subjects:
        head = getattr(subject.detector, "roi_head", None)
        if not isinstance(subject.detector, TwoStage) or not hasattr(head, "answers"):
            raise UserError(
                f"{subject.name}: {subject.recipe.model.name} has no RoI head that could be handed boxes; "
                "this needs a two-stage detector"
            )


def size_of(area):
    """COCO's word for an area in px^2 of the original image."""
    return SIZES[int(area >= 32**2) + int(area > 96**2)]


def grouping(kind, categories, evaluation=None):
    """Names of groups, and a function of an object that tells which it belongs to.

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
        raise UserError(f"--groups {kind}: one of size, difficulty")
    of_class = difficulties(evaluation, categories)
    of_label = {label: of_class.get(one["id"]) for label, one in enumerate(categories)}
    return (*DIFFICULTIES, EVERY), lambda one: (*filter(None, [of_label[one["label"]]]), EVERY)


def difficulties(evaluation, categories):
    """Classes in thirds by their AP, the best third easy, the earlier thirds larger.   Appendix A.1

    Args:
        evaluation: what `evaluation.json` holds; classes without AP belong to no third.
        categories: [{"id", "name"}, ...].
    Returns:
        {category id: one of DIFFICULTIES}
    """
    ap = {row["id"]: row.get("ap") for row in evaluation.get("per_class", [])}
    known = [one["id"] for one in categories if ap.get(one["id"]) is not None]
    ranked = sorted(known, key=lambda one: -ap[one])
    if len(ranked) < 3:
        raise UserError(f"--groups difficulty: AP is known of {len(ranked)} classes: three thirds need three")
    thirds = np.array_split(np.array(ranked), 3)
    return {int(one): name for name, third in zip(DIFFICULTIES, thirds, strict=True) for one in third}


def evaluation_for(kind, runs, results=None):
    """The AP of the classes: (what evaluation.json holds, its path); (None, None) where groups are sizes."""
    if kind != "difficulty":
        if results:
            raise UserError(f"--results {results}: of --groups difficulty alone")
        return None, None
    path = pathlib.Path(results or pathlib.Path(runs[0]) / "evaluation.json")
    if not path.is_file():
        raise UserError(
            f"{path}: not there; --groups difficulty ranks the classes by it: kgarden evaluate RUN"
        )
    return read_json(path), path


def need_objects(count, runs):
    """Refuse images without anything in them."""
    if not count:
        raise UserError(f"{runs[0]}: no object in the images that were looked at")


def grouped_by(kind, source):
    """One sentence: what the groups are; `source` is where the AP of the classes came from."""
    if kind == "size":
        return (
            "Small, medium and large are COCO's: the area that the annotation gives (that of the box where "
            "it gives none), in px of the original image, below 32 x 32, up to 96 x 96, above."
        )
    return f"Easy, medium and hard are thirds of the classes, ranked by their AP in {source}."


def counted(objects, names, windows):
    """One sentence: how many objects of each group, and how many windows of each object."""
    parts = ", ".join(f"{objects[name]} {name}" for name in names if name != EVERY)
    return f"{objects[EVERY]} objects ({parts}), at most {windows} windows of each; crowds are left out."

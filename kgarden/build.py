"""From a recipe to model, optimizer and datasets: the only file that knows both sides."""

import contextlib
import dataclasses
import glob
import hashlib
import json
import pathlib

import keras

from kgarden.models import build_detector
from kgarden.optimizers import SGD, AdamW, learning_rate
from kgarden.recipe import load_recipe
from kgarden.schema import UserError

CACHE = pathlib.Path("~/.cache/kgarden/data")  # converted data of datasets that belong to no run


# --- model ----------------------------------------------------------------------------------------


def build_model(recipe, num_classes=None):
    """The recipe's detector with all its variables, started and frozen as the recipe says.

    Args:
        recipe:      of `load_recipe`.
        num_classes: of the data; None: read from the training data where the recipe names none.
    Returns:
        kgarden.models.detector.Detector, not compiled.
    """
    if num_classes is None and recipe.model.num_classes is None:
        num_classes = len(prepare_data(recipe).categories)
    detector = _bare_model(recipe, num_classes)
    if recipe.init:
        start_from(
            detector,
            recipe.init.weights or best_weights(recipe.init.run),
            recipe.init.parts,
            donor=recipe if recipe.init.run is None else load_recipe(recipe.init.run),
        )
    if recipe.freeze:
        detector.freeze(recipe.freeze)
    return detector


def _bare_model(recipe, num_classes):
    settings = _lists(recipe.model.model_dump(exclude={"num_classes"}))
    wanted = recipe.model.num_classes
    if wanted and num_classes and wanted != num_classes:
        raise UserError(f"model.num_classes is {wanted}, the data has {num_classes} classes: leave it out")
    with _policy(recipe.precision):
        detector = build_detector(settings, wanted or num_classes, recipe.seed)
    for height, width in canvases(recipe):
        if height % detector.divisor or width % detector.divisor:
            raise UserError(
                f"data.canvases: {height}x{width} is not divisible by {detector.divisor}, "
                f"which {recipe.model.name} needs"
            )
    return detector


def _lists(value):
    """Builders get lists, as YAML has them."""
    if isinstance(value, dict):
        return {key: _lists(v) for key, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


@contextlib.contextmanager
def _policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def start_from(detector, weights, parts=None, donor=None):
    """Load weights, of some parts or of all.

    Args:
        detector: to be filled.
        weights:  path of a .weights.h5 file that `save_weights` wrote.
        parts:    names as in `detector.parts()`; None: everything.
        donor:    the recipe of the weights, needed for `parts`.
    """
    path = pathlib.Path(weights)
    if not path.is_file():
        raise UserError(f"init: no file {path}")
    if not path.name.endswith(".weights.h5"):
        raise UserError(f"init: {path} is not a .weights.h5 file")
    if parts is None:
        _load(detector, path)
        detector.step.assign(0)  # this training has not begun
        return
    giver = _bare_model(donor, donor.model.num_classes or _num_classes_of(path, detector))
    _load(giver, path)
    for name in parts:
        if name not in detector.parts() or name not in giver.parts():
            raise UserError(f"init.parts: no part {name!r}; there are {', '.join(detector.parts())}")
        ours, theirs = detector.parts()[name].weights, giver.parts()[name].weights
        if [v.shape for v in ours] != [v.shape for v in theirs]:
            raise UserError(f"init.parts: {name} of {path} has other shapes than {name} of this recipe")
        for variable, value in zip(ours, theirs, strict=True):
            variable.assign(value.value)


def _num_classes_of(path, detector):
    labels = path.parent / "labels.json"
    return len(json.loads(labels.read_text())) if labels.is_file() else detector.num_classes


def _load(detector, path):
    try:
        detector.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: these are not weights of this model ({reason})") from error


# --- optimizer ------------------------------------------------------------------------------------


def learning_rate_of(recipe):
    """The learning rate of the recipe as a function of the step, counted from 0."""
    schedule = recipe.schedule
    decay, warmup = schedule.decay, schedule.warmup
    return learning_rate(
        schedule.base_lr,
        schedule.steps,
        cosine=decay is not None and decay.name == "cosine",
        at=decay.at if decay else None,
        factor=decay.factor if decay else None,
        warmup=(warmup.steps, warmup.factor) if warmup else None,
    )


def build_optimizer(recipe):
    """The recipe's optimizer with its learning-rate schedule."""
    settings = recipe.schedule.optimizer.model_dump(exclude_none=True)
    kind = {"sgd": SGD, "adamw": AdamW}[settings.pop("name")]
    return kind(learning_rate_of(recipe), **settings)


# --- data -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """What a recipe trains on and is measured by.

    Args:
        recipe:      sizes, canvases, batch size, flips, seed.
        train, val:  [Split, ...], shards that exist.
        categories:  [{"id", "name"}, ...] in label order.
        annotations: path of the validation truth in COCO form.
    """

    recipe: object
    train: list
    val: list
    categories: list
    annotations: pathlib.Path

    def train_batches(self, start_step=0):
        """Endless tf.data of (x, y); batch n is the same whatever `start_step` <= n it was started from."""
        from kgarden.data import pipeline

        data = self.recipe.data
        return pipeline.train_batches(
            [(split.shards, split.weight) for split in self.train],
            label_ids=self._label_ids(),
            image_size=self._resize(data.short_side_px, data.long_side_px),
            canvases=canvases(self.recipe),
            batch_size=data.batch_size,
            max_objects=data.max_objects,
            flips=data.flips,
            seed=self.recipe.seed,
            start_step=start_step,
            keep_empty=data.keep_empty,
            cache=data.cache,
            scaled_decode=data.scaled_decode,
        )

    def val_batches(self):
        """tf.data of (x, meta), every picture once."""
        from kgarden.data import pipeline

        data = self.recipe.data
        return pipeline.val_batches(
            [shard for split in self.val for shard in split.shards],
            image_size=self._resize(*test_sides(self.recipe)),
            canvases=canvases(self.recipe),
            batch_size=self.recipe.evaluate.batch_size,
            scaled_decode=data.scaled_decode,
        )

    def _resize(self, short_side, long_side):
        from kgarden.data import pipeline

        return pipeline.Resize(short_side, long_side, antialias=self.recipe.data.antialias)

    def _label_ids(self):
        return [category["id"] for category in self.categories]


@dataclasses.dataclass(frozen=True)
class Split:
    """Shards of one source with their manifest."""

    shards: list
    weight: float
    categories: list
    annotations: pathlib.Path


def build_datasets(recipe, start_step=0, cache=None):
    """(train, val): tf.data of (x, y) without end, and of (x, meta) with every picture once."""
    data = prepare_data(recipe, cache)
    return data.train_batches(start_step), data.val_batches()


def prepare_data(recipe, cache=None, report=None):
    """Find the recipe's shards, converting raw data first where it names some.

    Args:
        recipe: of `load_recipe`.
        cache:  folder for converted data; None: a folder of the user.
        report: called with a line of text when something takes time.
    Returns:
        Data.
    """
    cache = pathlib.Path(cache) if cache else CACHE.expanduser()
    train = [_split(source, "train", cache, report) for source in recipe.data.train]
    val = [_split(source, "val", cache, report) for source in recipe.data.val]
    categories = train[0].categories
    for split in (*train, *val):
        if split.categories != categories:
            raise UserError(
                f"the classes of {split.shards[0]} are not those of {train[0].shards[0]}: "
                f"{_names(split.categories)} against {_names(categories)}"
            )
    wanted = recipe.model.num_classes
    if wanted and wanted != len(categories):
        raise UserError(
            f"model.num_classes is {wanted}, the data has {len(categories)} classes "
            f"({_names(categories)}): leave it out"
        )
    if len(val) > 1:
        raise UserError("data.val: one source can be measured at a time")
    return Data(recipe, train, val, categories, val[0].annotations)


def _names(categories):
    return ", ".join(category["name"] for category in categories[:5]) + (", …" if len(categories) > 5 else "")


def _split(source, name, cache, report):
    """The shards of a source; raw data is converted into the cache once."""
    pattern = source.glob
    if source.format:
        folder = cache / f"{name}-{_fingerprint(source)}"
        if not (folder / "manifest.json").exists():
            if report:
                report(f"converting data.{name} into {folder}")
            _convert(source, folder)
        pattern = str(folder / "*.tfrecord*")
    shards = sorted(glob.glob(pattern))
    if not shards:
        raise UserError(
            f"data.{name}: no file fits {pattern} (looked beside the recipe and in {pathlib.Path.cwd()}); "
            f"`kgarden data build` makes shards"
        )
    folder = pathlib.Path(shards[0]).parent
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise UserError(
            f"data.{name}: {manifest} is missing; `kgarden data build` writes it beside the shards"
        )
    categories = json.loads(manifest.read_text())["categories"]
    categories = [{"id": category["id"], "name": category["name"]} for category in categories]
    return Split(shards, source.weight, categories, folder / "annotations.json")


def _fingerprint(source):
    """Of a raw source: what it is, and when its annotations changed last."""
    words = source.model_dump(exclude_none=True)
    if source.annotations:
        path = pathlib.Path(source.annotations)
        if not path.is_file():
            raise UserError(
                f"data: no annotations {path} (looked beside the recipe and in {pathlib.Path.cwd()})"
            )
        words["changed"] = path.stat().st_mtime_ns
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:12]


def _convert(source, folder):
    from tfrecords import coco, shapes

    if source.format == "shapes":
        shapes.build(folder, count=source.count, seed=source.seed)
    else:
        coco.build(images=source.images, annotations=source.annotations, to=folder)


def test_sides(recipe):
    """(short side, long side) in px of pictures that are evaluated or predicted."""
    data = recipe.data
    return (data.test_short_side_px or max(data.short_side_px)), (data.test_long_side_px or data.long_side_px)


def canvases(recipe):
    """[[height, width], ...]: the recipe's, or one landscape and one portrait that hold every picture."""
    if recipe.data.canvases:
        return [list(canvas) for canvas in recipe.data.canvases]
    short, long = test_sides(recipe)
    short, long = max(short, *recipe.data.short_side_px), max(long, recipe.data.long_side_px)
    short, long = (-(-side // 32) * 32 for side in (min(short, long), long))
    return [[short, long], [long, short]] if short != long else [[short, long]]


# --- runs -----------------------------------------------------------------------------------------


def best_weights(run):
    """The best weights that a run has so far."""
    for name in ("best.weights.h5", "model.weights.h5"):
        if (pathlib.Path(run) / name).is_file():
            return pathlib.Path(run) / name
    raise UserError(f"{run}: no weights there; is it a run directory, has it been evaluated once?")


def load_run(run, weights=None, overrides=None):
    """A run's recipe, its detector with weights, its classes.

    Args:
        run:       directory.
        weights:   another file than the run's best weights.
        overrides: {"model.proposer.test": 128, ...}, other settings at inference.
    Returns:
        (Recipe, Detector, [{"id", "name"}, ...])
    """
    run = pathlib.Path(run)
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: not a run directory, it has no recipe.yaml")
    recipe = load_recipe(run / "recipe.yaml", overrides)
    if not (run / "labels.json").is_file():
        raise UserError(f"{run}: no labels.json: the training has not begun")
    categories = json.loads((run / "labels.json").read_text())
    detector = _bare_model(recipe, len(categories))
    _load(detector, pathlib.Path(weights) if weights else best_weights(run))
    return recipe, detector, categories

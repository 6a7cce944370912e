"""From a recipe to model, optimizer and datasets: the only file that knows both sides."""

import dataclasses
import json
import pathlib

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.layers.precision import dtype_policy_scope
from kgarden.models import build_detector
from kgarden.optimizers.optimizers import SGD, AdamW, LossScaled, learning_rate
from kgarden.runs import best_weights

CACHE = pathlib.Path("~/.cache/kgarden/data")  # converted data of datasets that belong to no run


# --- model ----------------------------------------------------------------------------------------


def build_model(recipe, num_classes=None):
    """The recipe's detector with all its variables, started and frozen as the recipe says.

    Args:
        recipe:      of `load_recipe`.
        num_classes: of the data; None: read from the training data where the recipe names none.
    Returns:
        kgarden.models.base.detector.Detector, not compiled.
    """
    if num_classes is None and recipe.model.num_classes is None:
        num_classes = len(prepare_data(recipe, splits=("train",)).categories)
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


def _bare_model(recipe, num_classes, precision=None):
    settings = _lists(recipe.model.model_dump(exclude={"num_classes"}))
    wanted = recipe.model.num_classes
    if wanted and num_classes and wanted != num_classes:
        raise UserError(f"model.num_classes is {wanted}, the data has {num_classes} classes: leave it out")
    with dtype_policy_scope(precision or recipe.precision):
        detector = build_detector(settings, wanted or num_classes, recipe.seed)
    _rematerialise(detector, recipe.remat)
    for height, width in canvases(recipe):
        if height % detector.divisor or width % detector.divisor:
            raise UserError(
                f"data.canvases: {height}x{width} is not divisible by {detector.divisor}, "
                f"which {recipe.model.name} needs"
            )
    return detector


def _rematerialise(detector, names):
    """Let parts compute features again on the way back; see kgarden/layers/remat.py."""
    parts = {
        name: [layer for layer in part._flatten_layers() if hasattr(layer, "remat")]
        for name, part in detector.parts().items()
    }
    able = [name for name, layers in parts.items() if layers]
    for name in names:
        if name not in able:
            raise UserError(
                f"remat: {name!r} cannot be computed again; these can: {', '.join(able) or 'none'}"
            )
        for layer in parts[name]:
            layer.remat = True


def _lists(value):
    """Builders get lists, as YAML has them."""
    if isinstance(value, dict):
        return {key: _lists(v) for key, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


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
    """The recipe's optimizer with its learning-rate schedule; for float16 with loss scaling."""
    settings = recipe.schedule.optimizer.model_dump(exclude_none=True)
    kind = {"sgd": SGD, "adamw": AdamW}[settings.pop("name")]
    optimizer = kind(learning_rate_of(recipe), **settings)
    return LossScaled(optimizer) if recipe.precision == "mixed_float16" else optimizer


# --- data -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """What a recipe trains on and is measured by.

    Args:
        recipe:      sizes, canvases, batch size, augmentation, seed.
        train, val:  [kgarden.data.sources.Dataset, ...].
        categories:  [{"id", "name"}, ...] in label order.
        annotations: path of the validation truth in COCO form; None without val.
    """

    recipe: object
    train: list
    val: list
    categories: list
    annotations: pathlib.Path | None

    def train_batches(self, start_step=0, share=(0, 1), pieces=1):
        """Endless tf.data of (x, y); batch n is the same whatever `start_step` <= n it was started from.

        Args:
            share, pieces: a part of every batch, in pieces; see `kgarden.data.pipeline.train_batches`.
        """
        data = self.recipe.data
        return _pipeline().train_batches(
            self.train,
            short_side_px=data.short_side_px,
            long_side_px=data.long_side_px,
            canvases=canvases(self.recipe),
            batch_size=data.batch_size,
            max_objects=data.max_objects,
            augment=self.recipe.augment,
            masks=data.masks,
            sampling=data.sampling.name,
            threshold=data.sampling.threshold,
            antialias=data.antialias,
            scaled_decode=data.scaled_decode,
            cache=data.cache,
            keep_empty=data.keep_empty,
            seed=self.recipe.seed,
            start_step=start_step,
            share=share,
            pieces=pieces,
        )

    def val_batches(self, limit=None):
        """tf.data of (x, meta), every picture once, or the first `limit` of them, at the test size."""
        return self._val_batches(test_sizes(self.recipe), limit=limit)

    def view_batches(self, limit=None, divisor=32):
        """As `val_batches`, with all views of `evaluate.views`; see `view_sizes`."""
        first, *further = view_sizes(self.recipe, divisor)
        return self._val_batches(first, limit=limit, further=further, flip=self.recipe.evaluate.flip)

    def _val_batches(self, size, **more):
        batch_size, scaled_decode = self.recipe.evaluate.batch_size, self.recipe.data.scaled_decode
        return _pipeline().val_batches(
            self.val, **size, batch_size=batch_size, scaled_decode=scaled_decode, **more
        )


def build_datasets(recipe, start_step=0, cache=None):
    """(train, val): tf.data of (x, y) without end, and of (x, meta) with every picture once."""
    data = prepare_data(recipe, cache)
    return data.train_batches(start_step), data.val_batches()


def prepare_data(recipe, cache=None, progress=None, splits=("train", "val")):
    """Open the recipe's data sets, converting raw data first where it names some.

    Args:
        recipe:   of `load_recipe`.
        cache:    folder for converted data; None: a folder of the user.
        progress: function of (pictures done, pictures in all), called while converting.
        splits:   which of train and val are needed.
    Returns:
        Data.
    """
    if len(recipe.data.val) > 1:
        raise UserError("data.val: one source can be measured at a time")
    pipeline, cache = _pipeline(), pathlib.Path(cache) if cache else CACHE.expanduser()
    found = {"train": [], "val": []}
    for name in splits:
        for source in getattr(recipe.data, name):
            found[name].append(pipeline.dataset_of(source.model_dump(), cache, progress=progress))
    first, *others = [*found["train"], *found["val"]]
    for other in others:
        if other.categories != first.categories:
            raise UserError(
                f"{other.index.files[0]} has the classes {_names(other.categories)}, "
                f"{first.index.files[0]} has {_names(first.categories)}: they must be the same"
            )
    wanted = recipe.model.num_classes
    if wanted and wanted != len(first.categories):
        raise UserError(
            f"model.num_classes is {wanted}, the data has {len(first.categories)} classes "
            f"({_names(first.categories)}): leave it out"
        )
    annotations = [path for dataset in found["val"] for path in dataset.annotations]
    if len(annotations) > 1:
        raise UserError("data.val: one data set can be measured at a time")
    return Data(recipe, found["train"], found["val"], first.categories, *(annotations or [None]))


def _pipeline():
    try:
        from kgarden.data import pipeline
    except ModuleNotFoundError as error:
        raise UserError(
            f"reading data needs TensorFlow ({error}): pip install 'tensorflow~=2.21.0'"
        ) from error
    return pipeline


def _names(categories):
    return ", ".join(category["name"] for category in categories[:5]) + (", …" if len(categories) > 5 else "")


def test_sizes(recipe):
    """How pictures are laid into their canvas at test time: arguments of `resize_to_canvas`."""
    data = recipe.data
    return {
        "short_side_px": data.test_short_side_px or max(data.short_side_px),
        "long_side_px": data.test_long_side_px or data.long_side_px,
        "canvases": canvases(recipe),
        "antialias": data.antialias,
    }


def view_sizes(recipe, divisor=32):
    """Arguments of `resize_to_canvas` for each size of `evaluate.views`; without views, `test_sizes` alone.

    At the test size the canvases are the recipe's. At another they are these, scaled as the short side is and
    rounded up, and behind them a landscape and a portrait one that hold what is too long for them.

    Args:
        divisor: of the detector: canvases are divisible by it.
    """
    test, views = test_sizes(recipe), recipe.evaluate.views
    if views is None:
        return [test]
    long = views.long_side_px or test["long_side_px"]
    return [
        _size_of_view(test, short, long, divisor) for short in views.short_side_px or [test["short_side_px"]]
    ]


def _size_of_view(test, short, long, divisor):
    if (short, long) == (test["short_side_px"], test["long_side_px"]):
        return test

    def rounded(side, over=1):
        return -(-side // (over * divisor)) * divisor

    scaled = [[rounded(side * short, test["short_side_px"]) for side in one] for one in test["canvases"]]
    low, high = rounded(min(short, long)), rounded(long)
    found = [tuple(one) for one in (*scaled, [low, high], [high, low])]
    canvases = [list(one) for one in dict.fromkeys(found)]
    return {**test, "short_side_px": short, "long_side_px": long, "canvases": canvases}


def canvases(recipe):
    """[[height, width], ...]: the recipe's, or one landscape and one portrait that hold every picture."""
    data = recipe.data
    if data.canvases:
        return [list(canvas) for canvas in data.canvases]
    short = max(*data.short_side_px, data.test_short_side_px or 0)
    long = max(data.long_side_px, data.test_long_side_px or 0)
    short, long = (-(-side // 32) * 32 for side in (min(short, long), long))
    return [[short, long], [long, short]] if short != long else [[short, long]]


# --- runs -----------------------------------------------------------------------------------------


def load_run(run, weights=None, overrides=None):
    """A run's recipe, its detector with weights, its classes.

    The detector computes in float32, whatever it was trained in: in bfloat16 the same picture is answered a
    little differently alone, in a batch and from a SavedModel.

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
    detector = _bare_model(recipe, len(categories), precision="float32")
    _load(detector, pathlib.Path(weights) if weights else best_weights(run))
    return recipe, detector, categories

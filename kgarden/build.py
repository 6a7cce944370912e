"""Builds the model and the datasets of a recipe; the optimizer is in kgarden/optimizers/of_recipe.py."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from kgarden.config.canvases import default_canvases, round_up
from kgarden.config.loading import load_recipe
from kgarden.config.recipe import Recipe
from kgarden.data.before import check_before, check_number
from kgarden.data.identity import check_equal_classes, identity_of
from kgarden.errors import UserError
from kgarden.layers.precision import dtype_policy_scope
from kgarden.layers.remat import rematerialise
from kgarden.models import build_detector
from kgarden.models.base.detector import Detector
from kgarden.necks import divisor_of
from kgarden.ops.float32 import allow_tf32
from kgarden.optimizers.of_recipe import (  # noqa: F401 - offered here
    build_optimizer,
    check_learning_rate,
    learning_rate_of,
)
from kgarden.runs import best_weights, load_categories, load_run_recipe
from kgarden.utils.arguments import check_names, path_of
from kgarden.weights.foreign import is_foreign, load_foreign
from kgarden.weights.init_settings import check_init, donor_weights, with_pixels_of_weights
from kgarden.weights.initial import load_all, load_parts, load_what_fits, num_classes_of

CACHE = pathlib.Path("~/.cache/kgarden/data")  # of converted data sets outside of a run


# --- model ----------------------------------------------------------------------------------------


def build_model(
    recipe: Recipe,
    num_classes: int | None = None,
    say: Callable[[str], object] = warnings.warn,
    class_names: Sequence[str] | None = None,
) -> Detector:
    """Builds the recipe's detector, initialised and frozen as the recipe specifies.

    Args:
        recipe:      of `load_recipe`.
        num_classes: number of classes; None: that of `class_names`, of the recipe, or of its training data.
        say:         function that receives a line on initial weights that do not fit.
        class_names: in label order; None: those of the training data, if that is opened, else not known.
    Returns:
        Detector with all its variables, not compiled. TF32 is allowed or forbidden in the whole process.
    Raises:
        UserError: an unknown name or setting, weights that do not fit, or class names that are no list.
    """
    check_names(class_names, "class_names")
    _check_policy(recipe)
    check_init(recipe)
    recipe = with_pixels_of_weights(recipe)
    categories = None
    if class_names is not None:
        categories = [{"id": number, "name": name} for number, name in enumerate(class_names)]
    elif num_classes is None and recipe.model.num_classes is None:
        categories = prepare_data(recipe, splits=("train",)).categories
    num_classes = num_classes or (categories and len(categories))
    allow_tf32(recipe.allow_tf32)
    detector = _bare_model(recipe, num_classes)
    if recipe.init:
        donor = recipe if recipe.init.run is None else load_recipe(recipe.init.run)
        if left_out := start_from(detector, donor_weights(recipe), recipe.init.parts, donor=donor):
            say(left_out)
    detector.freeze(recipe.freeze)
    if categories is not None:
        detector.categories = categories
    return detector


def _check_policy(recipe):
    """A global dtype policy that differs from the recipe's precision is not overruled silently."""
    policy = keras.config.dtype_policy().name
    if policy not in ("float32", recipe.precision):
        raise UserError(
            f"Keras' dtype policy is {policy}, the recipe's precision {recipe.precision}: "
            f"set precision={policy}, or keras.config.set_dtype_policy('float32')"
        )


def _bare_model(recipe, num_classes, precision=None):
    settings = _lists(recipe.model.model_dump(exclude={"num_classes"}))
    expected = recipe.model.num_classes
    if expected and num_classes and expected != num_classes:
        raise UserError(f"model.num_classes is {expected}, the data has {num_classes} classes; remove it")
    with dtype_policy_scope(precision or recipe.precision):
        detector = build_detector(settings, expected or num_classes, recipe.seed)
    detector.recipe = recipe
    rematerialise(detector, recipe.remat)
    for height, width in canvases(recipe) + canvases(recipe, test=True):
        if height % detector.divisor or width % detector.divisor:
            raise UserError(
                f"data.canvases: {height}x{width} is not divisible by {detector.divisor}, "
                f"as {recipe.model.name} requires"
            )
    return detector


def _lists(value):
    """Returns the value with tuples as lists, the type that builders expect."""
    if isinstance(value, dict):
        return {key: _lists(v) for key, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


def start_from(
    detector: Detector,
    weights: str | os.PathLike,
    parts: tuple[str, ...] | None = None,
    donor: Recipe | None = None,
) -> str | None:
    """Initialises a detector, or some of its parts, with saved weights.

    Args:
        detector: to be initialised.
        weights:  path of a .weights.h5 file that `save_weights` wrote, or of another project's file.
        parts:    names as in `detector.parts()`, which must fit; None: everything that fits.
        donor:    the recipe of the weights, required with `parts`.
    Returns:
        a sentence that names what did not fit and starts anew; None if everything was loaded.
    Raises:
        UserError: no such file or part, another backbone, or a part of other shapes.
    """
    path = pathlib.Path(weights)
    if is_foreign(path):
        return load_foreign(detector, path, parts)
    if parts is None:
        left_out = load_what_fits(detector, path)
        detector.step.assign(0)  # the saved step is that of the earlier training
        return left_out
    source = _bare_model(donor, donor.model.num_classes or num_classes_of(path) or detector.num_classes)
    load_parts(detector, source, path, parts)
    return None


# --- data -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and validation data of a recipe.

    Args:
        recipe:      sizes, canvases, batch size, augmentation, seed.
        train, val:  [kgarden.data.sources.Dataset, ...].
        categories:  [{"id", "name"}, ...] in label order.
        annotations: path of the validation ground truth in COCO format; None without val.
    """

    recipe: Recipe
    train: list[Any]
    val: list[Any]
    categories: list[dict]
    annotations: pathlib.Path | None

    def train_batches(self, start_step: int = 0, share: tuple[int, int] = (0, 1), pieces: int = 1):
        """Returns an endless tf.data.Dataset of (x, y); batch n does not depend on `start_step` <= n.

        Args:
            start_step: number of the first batch.
            share:      (index of this worker, number of workers); see `kgarden.data.pipeline.train_batches`.
            pieces:     number of replicas of this worker; each gets an element of its own.
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

    def identity(self) -> dict[str, list[dict]]:
        """Returns {"train": [...], "val": [...]}, what identifies the data sets that are open.

        See kgarden/data/identity.py.
        """
        splits = {"train": self.train, "val": self.val}
        return {name: list(map(identity_of, sets)) for name, sets in splits.items() if sets}

    def val_batches(self, limit: int | None = None, with_objects: bool = False):
        """Returns tf.data of (x, meta): every image once, at test size.

        Args:
            limit:        number of images, from the first; None: all.
            with_objects: whether meta also holds the ground truth, for a loss.
        """
        data = self.recipe.data
        truth = {"max_objects": data.max_objects, "masks": data.masks} if with_objects else {}
        return self._val_batches(test_sizes(self.recipe), limit=limit, **truth)

    def view_batches(self, limit: int | None = None, divisor: int = 32):
        """Returns `val_batches` with all views of `evaluate.views`; see `view_sizes`."""
        first, *further = view_sizes(self.recipe, divisor)
        return self._val_batches(first, limit=limit, further=further, flip=self.recipe.evaluate.flip)

    def _val_batches(self, size, **more):
        batch_size, scaled_decode = self.recipe.evaluate.batch_size, self.recipe.data.scaled_decode
        return _pipeline().val_batches(
            self.val, **size, batch_size=batch_size, scaled_decode=scaled_decode, **more
        )


def build_datasets(recipe: Recipe, start_step: int = 0, cache: str | os.PathLike | None = None) -> tuple:
    """Builds (train, val): an endless tf.data.Dataset of (x, y), and one of (x, meta) with every image once.

    Meta holds the ground truth as well, for `fit(train, validation_data=val)`.

    Args:
        recipe:     of `load_recipe`.
        start_step: number of the first training batch.
        cache:      folder for converted data; None: a folder in the home directory.
    """
    data = prepare_data(recipe, cache)
    return data.train_batches(start_step), data.val_batches(with_objects=True)


def prepare_data(
    recipe: Recipe,
    cache: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
    splits: tuple[str, ...] = ("train", "val"),
    on_classes: Callable[[list[dict]], object] | None = None,
) -> Data:
    """Opens the recipe's data sets; raw data is converted to shards first.

    Args:
        recipe:     of `load_recipe`.
        cache:      folder for converted data; None: a folder in the home directory.
        progress:   function of (images done, total), called during the conversion.
        splits:     which of train and val are required.
        on_classes: function of the classes, called before the conversion if they are known before it.
    Returns:
        Data.
    """
    if len(recipe.data.val) > 1:
        raise UserError("data.val: several sources are not supported; use one")
    pipeline, cache = _pipeline(), pathlib.Path(cache) if cache else CACHE.expanduser()
    datasets = {"train": [], "val": []}
    if (known := check_before(recipe, cache, splits)) and on_classes:
        on_classes(known)
    for name in splits:
        for source in getattr(recipe.data, name):
            datasets[name].append(pipeline.dataset_of(source.model_dump(), cache, progress=progress))
    check_equal_classes(recipe, datasets)
    first = (datasets["train"] or datasets["val"])[0]
    check_number(recipe, first.categories)
    annotations = [path for dataset in datasets["val"] for path in dataset.annotations]
    if len(annotations) > 1:
        raise UserError("data.val: several data sets are not supported; use one")
    [path] = annotations or [None]
    return Data(recipe, datasets["train"], datasets["val"], first.categories, annotations=path)


def _pipeline():
    try:
        from kgarden.data import pipeline
    except ModuleNotFoundError as error:
        raise UserError(
            f"reading data needs TensorFlow ({error}): pip install 'tensorflow~=2.21.0'"
        ) from error
    return pipeline


def test_sizes(recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments of `resize_to_canvas` at test time."""
    data = recipe.data
    return {
        "short_side_px": data.test_short_side_px or max(data.short_side_px),
        "long_side_px": data.test_long_side_px or data.long_side_px,
        "canvases": canvases(recipe, test=True),
        "antialias": data.antialias,
    }


def view_sizes(recipe: Recipe, divisor: int = 32) -> list[dict[str, Any]]:
    """Returns the arguments of `resize_to_canvas` for each size of `evaluate.views`.

    At the test size the canvases are the recipe's. At another size they are scaled like the short side and
    rounded up, followed by one landscape and one portrait canvas for images that do not fit.

    Args:
        recipe:  of `load_recipe`.
        divisor: that of the detector; canvases are divisible by it.
    Returns:
        [dict, ...]; without views only `test_sizes`.
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

    def scaled(side):
        return -(-side * short // (test["short_side_px"] * divisor)) * divisor

    low, high = round_up(min(short, long), divisor), round_up(long, divisor)
    sizes = [*([scaled(side) for side in one] for one in test["canvases"]), [low, high], [high, low]]
    canvases = [list(one) for one in dict.fromkeys(map(tuple, sizes))]
    return {**test, "short_side_px": short, "long_side_px": long, "canvases": canvases}


def canvases(recipe: Recipe, test: bool = False) -> list[list[int]]:
    """Returns [[height, width], ...] px: the recipe's, or those of `default_canvases` for its neck.

    Args:
        recipe: of `load_recipe`.
        test:   those of inference, which differ where `data.test_canvases` is set.
    """
    data = recipe.data
    if given := (test and data.test_canvases) or data.canvases:
        return [list(canvas) for canvas in given]
    short = max(*data.short_side_px, data.test_short_side_px or 0)
    long = max(data.long_side_px, data.test_long_side_px or 0)
    return default_canvases(short, long, _divisor_of(recipe))


def _divisor_of(recipe):
    """Returns the number that the recipe's neck requires canvases to be divisible by; 32 without a neck."""
    neck = (recipe.model.model_extra or {}).get("neck") or "fpn"
    return divisor_of(neck) if isinstance(neck, str | dict) else 32


def give_image_counts(detector: Detector, data: Data) -> None:
    """Tells a detector with a federated loss how many training images each class has, before the first step.

    The numbers are those of the file `model.roi_head.federated.image_counts`, or of the training data. Other
    detectors stay as they are.

    Args:
        detector: of `build_model`.
        data:     of `prepare_data`.
    """
    subsets = getattr(getattr(detector, "roi_head", None), "federated", None)
    if subsets is None:
        return
    from kgarden.data.image_counts import image_counts_of, read_image_counts

    path = subsets.settings.image_counts
    subsets.image_counts = read_image_counts(path, data.categories) if path else image_counts_of(data.train)


# --- runs -----------------------------------------------------------------------------------------


def load_run(
    run: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    overrides: dict[str, Any] | None = None,
) -> tuple[Recipe, Detector, list[dict]]:
    """Loads a run's recipe, its detector with weights, and its classes.

    The detector computes in float32, whatever precision it was trained in: in bfloat16 the predictions for an
    image differ slightly between a single image, a batch and a SavedModel.

    Args:
        run:       run directory.
        weights:   other weights than the run's best.
        overrides: {"model.proposer.test": 128, ...}, other settings at inference.
    Returns:
        (Recipe, Detector, [{"id", "name"}, ...])
    Raises:
        UserError: not a run directory, or weights that do not fit.
    """
    recipe, categories = load_run_recipe(run, overrides), load_categories(run)
    allow_tf32(recipe.allow_tf32)
    detector = _bare_model(recipe, len(categories), precision="float32")
    load_all(detector, best_weights(run) if weights is None else path_of(weights, "weights"))
    detector.categories = categories
    return recipe, detector, categories

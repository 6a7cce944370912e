"""Check of a recipe without its data: keys, augmentation, schedule, packages, initial weights, the model."""

from kgarden import build
from kgarden.config.loading import faults_in, load_recipe, stage_recipes
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.training.loggers import check_packages

CLASSES = 80  # where neither recipe nor caller tells their number


def faults_of(
    path_or_stem: str, overrides: dict | None = None, row: str | None = None, classes: int | None = None
) -> list[str]:
    """Returns the faults of a recipe, a line each; without any, its model is built once.

    Args:
        path_or_stem, overrides, row: as in `load_recipe`.
        classes:                      number of classes; None: the recipe's, or 80.
    """
    if found := faults_in(path_or_stem, overrides, row):
        return found
    recipe, faults = load_recipe(path_or_stem, overrides, row), []
    try:
        stages = stage_recipes(recipe)
    except UserError as error:
        return [str(error)]
    for stage in stages:
        for check in (_check_schedule, _check_augmentation, _check_loggers, build.check_init):
            faults += _fault(lambda check=check, stage=stage: check(stage))
    return list(dict.fromkeys(faults)) + _fault(lambda: _check_model(recipe, classes))


def remarks_on(recipe: Recipe) -> list[str]:
    """Returns what is odd about a recipe but no fault."""
    remarks = [build.check_learning_rate(stage) for stage in stage_recipes(recipe)]
    return [remark for remark in remarks if remark]


def _fault(check):
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []


def _check_schedule(recipe):
    build.check_learning_rate(recipe)


def _check_loggers(recipe):
    check_packages(recipe.loggers)


def _check_augmentation(recipe):
    from kgarden.data.transforms import Augmentation

    entries = [dict(one) for one in recipe.augment]
    Augmentation(entries, recipe.data.antialias, masks=recipe.data.masks)


def _check_model(recipe, classes):
    """Builds the model without its initial weights, which `check_init` has looked at."""
    bare = recipe.model_copy(update={"init": None})
    build.build_model(bare, num_classes=classes or recipe.model.num_classes or CLASSES)

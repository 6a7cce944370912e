"""The effective settings of a recipe row: those of the recipe, and those that the model's parts were given.

A recipe leaves most settings to builders and heads. Here its detector is constructed, without variables, and
every layer is asked for what it holds: its attributes and, where it keeps none, the arguments that its
constructor was called with, defaults included. So a value is the one in force, wherever its default has its
home.

    effective("fcos", "improved.1x")["model.dense_head.prior"]     0.01
"""

import contextlib
import functools
import importlib
import inspect
import json
from unittest import mock

import keras

from kgarden.backbones import BACKBONES
from kgarden.config.instantiate import instantiate
from kgarden.config.loading import load_recipe
from kgarden.models import MODELS

PLAIN = (bool, int, float, str, type(None))
PARTS = ("pixels", "backbone", "neck", "dense_head", "proposer", "roi_head", "mask_head", "selection", "fuse")


def effective(stem, row=None):
    """{"data.batch_size": 16, "model.selection.iou": 0.6, ...}: every setting of a row that is in force."""
    recipe = load_recipe(stem, row=row)
    settings = {**recipe.plain(), "model": {"name": recipe.model.name}, "rows": {}}
    return flat(settings) | model_settings(json.dumps(recipe.model.model_dump(), sort_keys=True))


@functools.lru_cache(maxsize=64)
def model_settings(model):
    """Settings of all parts of a detector, from the `model` section of a recipe as JSON."""
    settings = json.loads(model)
    name, num_classes = settings.pop("name"), settings.pop("num_classes")
    with recorded_constructors() as given:
        detector = instantiate(MODELS[name], settings, "model", num_classes=num_classes, seed=0)
    found = {"model.num_classes": num_classes}
    for part in PARTS:
        found |= held_by(getattr(detector, part, None), f"model.{part}", given)
    return found


@contextlib.contextmanager
def recorded_constructors():
    """Yields {id of a layer: (the layer, the arguments of its constructors)}, the derived class's first.

    The dictionary keeps the layers, so that no id is used twice.
    """
    for source, *_ in BACKBONES.values():  # else they are imported when they are first asked for
        importlib.import_module(f"kgarden.backbones.{source.split(':')[0]}")
    given = {}
    with contextlib.ExitStack() as stack:
        for layer in set(layer_classes(keras.layers.Layer)):
            stack.enter_context(mock.patch.object(layer, "__init__", recorded(layer.__init__, given)))
        yield given


def layer_classes(base):
    """The layers of this package that have a constructor of their own."""
    for layer in base.__subclasses__():
        if layer.__module__.startswith("kgarden.") and "__init__" in vars(layer):
            yield layer
        yield from layer_classes(layer)


def recorded(constructor, given):
    """A constructor that adds its arguments to `given`."""
    signature = inspect.signature(constructor)

    def record(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        _, known = given.setdefault(id(self), (self, {}))
        for name, value in list(bound.arguments.items())[1:]:
            known.setdefault(name, value)
        constructor(self, *args, **kwargs)

    record.__signature__ = signature  # Keras looks at it
    return record


def held_by(value, key, given):
    """Settings that a part holds, and those of the parts that it holds.   {dotted key: plain value}"""
    if isinstance(value, PLAIN):
        return {key: value}
    if isinstance(value, keras.layers.Layer):
        _, arguments = given.get(id(value), (value, {}))
        found = {f"{key}.class": type(value).__name__}
        return found | _each(arguments, key, given) | _each(vars(value), key, given)
    if callable(value) and hasattr(value, "__name__"):
        return {key: value.__name__}
    if hasattr(value, "_asdict"):
        return _each(value._asdict(), key, given)
    if hasattr(value, "__dataclass_fields__"):
        return _each(vars(value), key, given)
    if isinstance(value, dict):
        return _each(value, key, given)
    if isinstance(value, list | tuple):
        plain = {key: plainly(value)} if is_plain(value) else {}
        return plain or _each(dict(enumerate(value)), key, given)
    return {}


def _each(values, key, given):
    found = {}
    for name, value in values.items():
        if not str(name).startswith("_"):
            found |= held_by(value, f"{key}.{name}", given)
    return found


def is_plain(value):
    if isinstance(value, list | tuple) and not hasattr(value, "_asdict"):
        return all(is_plain(one) for one in value)
    return isinstance(value, PLAIN)


def plainly(value):
    """Tuples as lists."""
    return [plainly(one) for one in value] if isinstance(value, list | tuple) else value


def flat(tree, prefix=""):
    """{"data.batch_size": 16, ...} of a recipe as nested dictionaries."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found

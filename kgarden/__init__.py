"""kgarden: an object-detection model garden on Keras 3 and TensorFlow.

    recipe = kgarden.load_recipe("quickstart", overrides={"schedule.steps": 100})
    detector = kgarden.build_model(recipe)
    train, val = kgarden.build_datasets(recipe)
    detector.compile(optimizer=kgarden.build_optimizer(recipe))
    detector.fit(train, steps_per_epoch=100)
    detections = kgarden.Predictor(detector, recipe)("photo.jpg")

Names are imported when they are first used: `import kgarden` costs no second.
"""

import importlib
import importlib.metadata
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time __getattr__ imports these
    from kgarden.build import build_datasets, build_model, build_optimizer, load_run  # noqa: F401
    from kgarden.config.loading import load_recipe  # noqa: F401
    from kgarden.config.recipe import Recipe  # noqa: F401
    from kgarden.errors import UserError  # noqa: F401
    from kgarden.inference.paste_masks import paste_masks  # noqa: F401
    from kgarden.inference.predictor import Predictor  # noqa: F401
    from kgarden.models.base.detector import Detector, InferenceModel  # noqa: F401

__version__ = "0.1.0"

WINDOW = {"keras": "3.15", "tensorflow": "2.21"}  # the versions that are tested

_HOMES = {
    "load_recipe": "kgarden.config.loading",
    "Recipe": "kgarden.config.recipe",
    "build_model": "kgarden.build",
    "build_datasets": "kgarden.build",
    "build_optimizer": "kgarden.build",
    "load_run": "kgarden.build",
    "Detector": "kgarden.models.base.detector",
    "InferenceModel": "kgarden.models.base.detector",
    "Predictor": "kgarden.inference.predictor",
    "paste_masks": "kgarden.inference.paste_masks",
    "UserError": "kgarden.errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'kgarden' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(__all__)


def version_complaint(installed=None):
    """One line on versions outside the tested window, or None.

    Args:
        installed: {"keras": "3.15.1", ...}; None: what is installed. A package that is absent is no fault.
    """
    installed = _installed() if installed is None else installed
    wrong = [
        name
        for name, tested in WINDOW.items()
        if name in installed and installed[name].split(".")[:2] != tested.split(".")
    ]
    if not wrong:
        return None
    found = " and ".join(f"{name} {installed[name]}" for name in wrong)
    needed = " ".join(f"'{name}~={WINDOW[name]}.0'" for name in wrong)
    return f"kgarden {__version__} is not tested with {found}: pip install {needed}"


def _installed():
    found = {}
    for name, distributions in {"keras": ["keras"], "tensorflow": ["tensorflow", "tensorflow-cpu"]}.items():
        for distribution in distributions:
            try:
                found.setdefault(name, importlib.metadata.version(distribution))
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


if _complaint := version_complaint():
    warnings.warn(_complaint, stacklevel=2)

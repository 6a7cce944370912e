"""kgarden: an object-detection model garden on Keras 3 and TensorFlow.

    recipe = kgarden.load_recipe("quickstart", overrides={"schedule.steps": 100})
    detector = kgarden.build_model(recipe)
    train, val = kgarden.build_datasets(recipe)
    detector.compile(optimizer=kgarden.build_optimizer(recipe))
    detector.fit(train, steps_per_epoch=100)
    detections = kgarden.Predictor(detector, recipe)("photo.jpg")

or, with a run directory, as on the command line:

    kgarden.train("quickstart", "runs/first", {"schedule.steps": 100})
    kgarden.evaluate("runs/first")["metrics"]
    [detections] = kgarden.predict("runs/first", "photo.jpg")
    kgarden.export("runs/first", "served/first")

Names are imported lazily, at first use, so that `import kgarden` is fast.
"""

import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; at run time names are imported from _HOMES
    from kgarden.build import build_datasets, build_model, build_optimizer, load_run
    from kgarden.commands.evaluate import evaluate
    from kgarden.commands.export import export
    from kgarden.commands.predict import predict
    from kgarden.commands.train import train
    from kgarden.config.loading import load_recipe
    from kgarden.config.recipe import Recipe
    from kgarden.errors import UserError
    from kgarden.inference.detections import Detections
    from kgarden.inference.predictor import Predictor
    from kgarden.models.base.detector import Detector, InferenceModel
    from kgarden.models.base.keras_files import load_model
    from kgarden.training.coco_metrics import CocoMetrics
    from kgarden.utils.paste_masks import paste_masks

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
    "load_model": "kgarden.models.base.keras_files",
    "InferenceModel": "kgarden.models.base.detector",
    "Predictor": "kgarden.inference.predictor",
    "Detections": "kgarden.inference.detections",
    "train": "kgarden.commands.train",
    "evaluate": "kgarden.commands.evaluate",
    "predict": "kgarden.commands.predict",
    "export": "kgarden.commands.export",
    "paste_masks": "kgarden.utils.paste_masks",
    "CocoMetrics": "kgarden.training.coco_metrics",
    "UserError": "kgarden.errors",
}
__all__ = [
    "CocoMetrics",
    "Detections",
    "Detector",
    "InferenceModel",
    "Predictor",
    "Recipe",
    "UserError",
    "__version__",
    "build_datasets",
    "build_model",
    "build_optimizer",
    "evaluate",
    "export",
    "load_model",
    "load_recipe",
    "load_run",
    "paste_masks",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kgarden' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "tensorflow":
            raise
        from kgarden.errors import UserError

        needed = "needs TensorFlow, on the JAX backend too: pip install 'tensorflow~=2.21.0'"
        raise UserError(f"kgarden.{name} {needed}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def version_complaint(installed: Mapping[str, str] | None = None) -> str | None:
    """Returns one line on versions outside the tested window, or None.

    Args:
        installed: {"keras": "3.15.1", ...}; None: the installed ones. A package may be absent.
    """
    installed = _installed() if installed is None else installed
    wrong = [
        name
        for name, tested in WINDOW.items()
        if name in installed and installed[name].split(".")[:2] != tested.split(".")
    ]
    if not wrong:
        return None
    versions = " and ".join(f"{name} {installed[name]}" for name in wrong)
    needed = " ".join(f"'{name}~={WINDOW[name]}.0'" for name in wrong)
    return f"kgarden {__version__} is not tested with {versions}: pip install {needed}"


def _installed() -> dict[str, str]:
    versions = {}
    for name, distributions in {"keras": ["keras"], "tensorflow": ["tensorflow", "tensorflow-cpu"]}.items():
        for distribution in distributions:
            try:
                versions.setdefault(name, importlib.metadata.version(distribution))
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


if _complaint := version_complaint():
    warnings.warn(_complaint, stacklevel=2)

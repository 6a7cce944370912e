"""The garden: one paper, one file. This is the only place that compares model names."""

import difflib
import json

import keras

from kgarden.config.instantiate import instantiate
from kgarden.errors import UserError
from kgarden.models.atss import atss
from kgarden.models.base.detector import Detector
from kgarden.models.cascade_rcnn import cascade_rcnn
from kgarden.models.centernet import centernet
from kgarden.models.centernet2 import centernet2
from kgarden.models.custom import mask_rcnn, one_stage, two_stage
from kgarden.models.defcn import defcn
from kgarden.models.double_head import double_head
from kgarden.models.faster_rcnn import faster_rcnn
from kgarden.models.faster_rcnn_c4 import faster_rcnn_c4
from kgarden.models.fcos import fcos
from kgarden.models.fscascade import fscascade
from kgarden.models.gfl import gfl
from kgarden.models.pss import condinst_pss, pss
from kgarden.models.retinanet import retinanet
from kgarden.models.tsd import tsd
from kgarden.models.tsd_cascade import tsd_cascade

MODELS = {
    "atss": atss,
    "cascade_rcnn": cascade_rcnn,
    "centernet": centernet,
    "centernet2": centernet2,
    "condinst": condinst_pss,
    "defcn": defcn,
    "double_head": double_head,
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_c4": faster_rcnn_c4,
    "fcos": fcos,
    "fscascade": fscascade,
    "gfl": gfl,
    "mask_rcnn": mask_rcnn,
    "one_stage": one_stage,
    "pss": pss,
    "retinanet": retinanet,
    "tsd": tsd,
    "tsd_cascade": tsd_cascade,
    "two_stage": two_stage,
}


def build_detector(settings, num_classes, seed=0):
    """A detector from the `model` section of a recipe, with all its variables.

    Args:
        settings:    {"name": a key of MODELS, and arguments of its builder}.
        num_classes: C.
        seed:        of random choices in training.
    Returns:
        kgarden.models.base.detector.Detector, built.
    Raises:
        UserError: unknown name or setting.
    """
    settings = dict(settings)
    name = settings.pop("name", None)
    builder = builder_of(name)
    origin = {
        "settings": {"name": name, **settings},
        "num_classes": num_classes,
        "seed": seed,
        "precision": keras.config.dtype_policy().name,
    }
    detector = instantiate(builder, settings, "model", num_classes=num_classes, seed=seed)
    detector.origin = _as_json(origin)
    detector.build()
    return detector


def builder_of(name):
    """The builder of a model.

    Raises:
        UserError: no model of this name.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(MODELS)}"
        raise UserError(f"model.name: no model {name!r}; {hint}")
    return MODELS[name]


def _as_json(origin):
    """The builder's arguments as a .keras file holds them; None if a part was given as a layer."""
    try:
        return json.dumps(origin)
    except TypeError:
        return None


Detector.builder = staticmethod(build_detector)

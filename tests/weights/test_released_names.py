"""Names and shapes of CenterNet2's released models: backbone and neck map completely, one to one."""

import csv
import re

import numpy as np
import pytest
from support.golden import DIRECTORY, HERE

from kgarden.backbones import make_backbone
from kgarden.necks import make_neck
from kgarden.weights import detectron2
from kgarden.weights.reverse import state_dict_of
from kgarden.weights.state_dict import load_state_dict

RES2NET = {"name": "res2net101", "stride_in_1x1": True, "deformable_stages": [4, 5]}
X101 = {"name": "resnext101_32x8d", "deformable_stages": [4, 5]}
FCOS_BIFPN = {"name": "bifpn", "style": "fcos"}
MODELS = {
    "CenterNet2_X101-DCN_2x": (X101, {"name": "fpn"}),
    "CenterNet2_R2-101-DCN_896_4x": (RES2NET, {"name": "fpn"}),
    "CenterNet2_R2-101-DCN-BiFPN_1280_4x": (RES2NET, {"name": "bifpn", "channels": 288, "repeats": 7}),
    "CenterNet2_DLA-BiFPN-P3_24x": ("dla34", {**FCOS_BIFPN, "levels": [3, 5], "repeats": 4}),
    "CenterNet2_DLA-BiFPN-P5_640_16x": ("dla34", {"name": "bifpn"}),
    "CenterNet2_DLA-fcosBiFPN-P5_640_16x_ST": ("dla34", FCOS_BIFPN),
    "CenterNet-S4_DLA_8x": ("dla34", {"name": "dla_up"}),
    "nuImages_CenterNet2_DLA_640_8x": ("dla34", {"name": "dla_up"}),
}


class Trunk:
    """What `load_state_dict` reads of a model: its weights."""

    def __init__(self, *parts):
        self.weights = [weight for part in parts for weight in part.weights]


@pytest.mark.slow
@pytest.mark.parametrize("released", MODELS)
def test_backbone_and_neck_of_a_released_model(released):
    path = DIRECTORY / f"state_dict_keys_{released}.tsv"
    if not path.exists():
        path = HERE / path.name
    with open(path) as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["name"].startswith("backbone.")]
    shapes = {row["name"]: [int(side) for side in row["shape"].split("x") if side.isdigit()] for row in rows}
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

    backbone, neck = make_backbone(MODELS[released][0]), make_neck(MODELS[released][1])
    backbone.build((None, None, None, 3))
    neck.build([(None, None, None, width) for width in backbone.channels])
    table = detectron2.table_for(backbone, neck)
    load_state_dict(Trunk(backbone, neck), state, table, ignore=detectron2.IGNORE)
    written = state_dict_of(Trunk(backbone, neck), table)
    assert written.keys() == {
        name for name in state if not any(re.fullmatch(p, name) for p in detectron2.IGNORE)
    }

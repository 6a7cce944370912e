"""Names and shapes of CenterNet2's fourteen released models: each tensor has a place, each weight a name."""

import csv

import pytest
from support.golden import DIRECTORY, HERE
from support.unfilled import blank, unfilled

from kgarden.models import build_detector
from kgarden.weights.projects import match_weights, project_of

RES2NET = {"name": "res2net101", "stride_in_1x1": True, "deformable_stages": [4, 5]}
X101 = {"name": "resnext101_32x8d", "deformable_stages": [4, 5]}
FCOS_BIFPN = {"name": "bifpn", "style": "fcos"}
NARROW = {"num_convs": 1}  # of the models on one level at stride 4
ONE_LEVEL = {"size_ranges": [[0, 1e8]]}
DEFORMABLE = {"deformable": True}
R50 = {"name": "centernet2"}
ON_ONE_LEVEL = {"backbone": "dla34", "neck": {"name": "dla_up"}}
MODELS = {  # settings and number of classes
    "centernet2_r50": (R50, 80),
    "CenterNet2-F_R50_1x": ({**R50, "roi_head": {"name": "faster", "class_agnostic": True}}, 80),
    "CenterNet-FPN_R50_1x": ({"name": "centernet"}, 80),
    "LVIS_CenterNet2_R50_1x": (R50, 1203),
    "LVIS_CenterNet2_R50_Fed_1x": (R50, 1203),
    "O365_CenterNet2_R50_1x": (R50, 365),
    "CenterNet2_X101-DCN_2x": ({**R50, "backbone": X101, "proposer": DEFORMABLE}, 80),
    "CenterNet2_R2-101-DCN_896_4x": ({**R50, "backbone": RES2NET, "proposer": DEFORMABLE}, 80),
    "CenterNet2_R2-101-DCN-BiFPN_1280_4x": (
        {
            **R50,
            "backbone": RES2NET,
            "neck": {"name": "bifpn", "channels": 288, "repeats": 7},
            "proposer": DEFORMABLE,
        },
        80,
    ),
    "CenterNet2_DLA-BiFPN-P3_24x": (
        {
            **R50,
            "backbone": "dla34",
            "neck": {**FCOS_BIFPN, "levels": [3, 5], "repeats": 4},
            "proposer": {"size_ranges": [[0, 64], [48, 192], [128, 1e6]]},
        },
        80,
    ),
    "CenterNet2_DLA-BiFPN-P5_640_16x": ({**R50, "backbone": "dla34", "neck": {"name": "bifpn"}}, 80),
    "CenterNet2_DLA-fcosBiFPN-P5_640_16x_ST": ({**R50, "backbone": "dla34", "neck": FCOS_BIFPN}, 80),
    "CenterNet-S4_DLA_8x": ({"name": "centernet", **ON_ONE_LEVEL, "dense_head": {**NARROW, **ONE_LEVEL}}, 80),
    "nuImages_CenterNet2_DLA_640_8x": (
        {
            "name": "two_stage",
            **ON_ONE_LEVEL,
            "proposer": {"head": {"name": "centernet", **NARROW, **ONE_LEVEL, "width": 64}},
            "roi_head": {"name": "cascade"},
            "mask_head": {"name": "mask_rcnn"},
        },
        10,
    ),
}


def shapes_of(released):
    """{name: shape} of a released file; a scalar's is empty."""
    names = [f"{prefix}{released}.tsv" for prefix in ("state_dict_keys_", "")] + [
        f"{released}_state_dict_keys.tsv"
    ]
    path = next(folder / name for folder in (DIRECTORY, HERE) for name in names if (folder / name).exists())
    with open(path) as file:
        return {
            row["name"]: [int(side) for side in row["shape"].split("x") if side.isdigit()]
            for row in csv.DictReader(file, delimiter="\t")
        }


def test_there_are_fourteen():
    files = {path.name for folder in (DIRECTORY, HERE) for path in folder.glob("*state_dict_keys*.tsv")}
    assert len(files) == len(MODELS) == 14


@pytest.mark.parametrize("released", MODELS)
def test_a_released_model_is_matched_whole(released):
    settings, classes = MODELS[released]
    detector = unfilled(lambda: build_detector(settings, classes))
    state = blank(shapes_of(released))
    assert project_of(state) == "detectron2"
    matched = match_weights(detector, state, "detectron2")
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    used = sum(len(names) for names in matched.sources.values())
    assert used + len(matched.ignored) == len(state)

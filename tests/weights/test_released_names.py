"""Names and shapes of CenterNet2's fourteen released models: each tensor has a place, each weight a name."""

import csv

import pytest
from support.golden import DIRECTORY, HERE
from support.unfilled import blank, unfilled

from kgarden.config.loading import load_recipe
from kgarden.models import build_detector
from kgarden.weights.projects import match_weights, project_of

ON_ONE_LEVEL = {"backbone": "dla34", "neck": {"name": "dla_up"}}
NUIMAGES = {
    "name": "two_stage",
    **ON_ONE_LEVEL,
    "proposer": {"head": {"name": "centernet", "num_convs": 1, "size_ranges": [[0, 1e8]], "width": 64}},
    "roi_head": {"name": "cascade"},
    "mask_head": {"name": "mask_rcnn"},
}
MODELS = {  # recipe and row, or settings; number of classes
    "centernet2_r50": ("centernet2", None, 80),
    "CenterNet2-F_R50_1x": ("centernet2", "table1.f_centernet", 80),
    "CenterNet-FPN_R50_1x": ("centernet2", "table1.centernet", 80),
    "LVIS_CenterNet2_R50_1x": ("centernet2", None, 1203),
    "LVIS_CenterNet2_R50_Fed_1x": ("centernet2", None, 1203),
    "O365_CenterNet2_R50_1x": ("centernet2", None, 365),
    "CenterNet2_X101-DCN_2x": ("centernet2_large", None, 80),
    "CenterNet2_R2-101-DCN_896_4x": ("centernet2_large", "table10.r2_896_4x", 80),
    "CenterNet2_R2-101-DCN-BiFPN_1280_4x": ("centernet2_large", "table10.r2_bifpn_1280", 80),
    "CenterNet2_DLA-BiFPN-P3_24x": ("centernet2_realtime", "table2.p3_24x", 80),
    "CenterNet2_DLA-BiFPN-P5_640_16x": ("centernet2_realtime", "table2.p5_16x", 80),
    "CenterNet2_DLA-fcosBiFPN-P5_640_16x_ST": ("centernet2_realtime", "fcos_bifpn_p5_st", 80),
    "CenterNet-S4_DLA_8x": ("centernet2_realtime", "s4_8x", 80),
    "nuImages_CenterNet2_DLA_640_8x": (NUIMAGES, None, 10),
}


def build(recipe, row, classes):
    if isinstance(recipe, dict):
        return build_detector(recipe, classes)
    return build_detector(load_recipe(recipe, row=row).model.model_dump(exclude={"num_classes"}), classes)


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
    detector = unfilled(lambda: build(*MODELS[released]))
    state = blank(shapes_of(released))
    assert project_of(state) == "detectron2"
    matched = match_weights(detector, state, "detectron2")
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    used = sum(len(names) for names in matched.sources.values())
    assert used + len(matched.ignored) == len(state)

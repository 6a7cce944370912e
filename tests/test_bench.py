"""Benchmarks report what they measure; figures themselves belong in benchmarks/, not in tests."""

import pytest

from kgarden.bench import bench, made_up_batch
from kgarden.bench.steps import training_settings
from kgarden.recipe import load_recipe
from kgarden.schema import UserError, truth_is_valid

MODEL = {
    "name": "centernet2",
    "num_classes": 3,
    "backbone": {"name": "resnet18", "norm": "bn", "stem_channels": 8, "res2_channels": 8},
    "neck": {"channels": 32},
    "proposer": {"num_convs": 1, "train": 50, "test": 30},
    "roi_head": {"name": "faster", "width": 16},
}


def recipe():
    return load_recipe("quickstart", {"model": MODEL, "data.canvases": [[64, 96]], "data.batch_size": 2})


def test_inference_is_measured_whole_and_by_part():
    found = bench(recipe(), ["infer"], repeats=2)["infer"]
    assert found["canvas"] == [64, 96]
    assert found["trunks"] == pytest.approx(found["whole_s"] / found["resnet50_trunk_s"], rel=0.05)
    parts = found["parts"]
    assert {"pixels", "backbone", "neck", "proposer_head", "proposals", "roi_head", "selection"} <= set(parts)
    assert all(part["s"] > 0 for part in parts.values())


def test_made_up_batches_are_what_the_recipe_says():
    x, y = made_up_batch(recipe(), num_classes=3, batch_size=2, objects=4)
    assert x["images"].shape == (2, 64, 96, 3) and x["images"].dtype == "uint8"
    assert y["boxes"].shape == (2, 16, 4) and truth_is_valid(y).sum() == 8


def test_settings_are_measured_in_processes_of_their_own():
    settings = {"kept": {}, "again": {"remat": ["backbone"], "precision": "mixed_bfloat16"}}
    found = training_settings(recipe(), 2, None, settings, rounds=1)
    kept, again = (found["settings"][name] for name in ("kept", "again"))
    assert (kept["precision"], kept["remat"]) == ("float32", [])
    assert (again["precision"], again["remat"]) == ("mixed_bfloat16", ["backbone"])
    assert kept["step_over_first"] == 1.0 and again["step_s"] > 0
    assert again["memory_before_steps_gib"] <= again["peak_memory_gib"]
    with pytest.raises(UserError, match="ended with code .*neck"):
        training_settings(recipe(), 2, None, {"wrong": {"remat": ["neck"]}}, rounds=1)


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="'speed'"):
        bench(recipe(), ["speed"])

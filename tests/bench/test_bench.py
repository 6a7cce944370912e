"""Benchmarks report what they measure; figures themselves belong in benchmarks/, not in tests."""

import types

import keras
import numpy as np
import pytest
from support.marks import slow_on_jax, slow_on_jax_but

from kgarden.bench import bench
from kgarden.bench.cascade_stages import _up_to
from kgarden.bench.pss_nms import _selection_of, synthetic_maps
from kgarden.bench.steps import synthetic_batch, training_settings
from kgarden.bench.tsd_inference import base_of
from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.structures import truth_is_valid

MODEL = {
    "name": "centernet2",
    "num_classes": 3,
    "backbone": {"name": "resnet18", "norm": "bn", "stem_channels": 8, "res2_channels": 8},
    "neck": {"channels": 32},
    "proposer": {"num_convs": 1, "train": 50, "test": 30},
    "roi_head": {"name": "faster", "width": 16},
}


def small(changes):
    return load_recipe("quickstart", {"data.canvases": [[64, 96]], "data.batch_size": 2, **changes})


def recipe():
    return small({"model": MODEL})


def test_inference_is_timed_whole_and_by_part():
    found = bench(recipe(), ["infer"], repeats=2)["infer"]
    assert found["canvas"] == [64, 96]
    assert found["trunks"] == pytest.approx(found["whole_s"] / found["resnet50_trunk_s"], rel=0.05)
    parts = found["parts"]
    assert {"pixels", "backbone", "neck", "proposer_head", "proposals", "roi_head", "selection"} <= set(parts)
    assert all(part["s"] > 0 for part in parts.values())


def test_synthetic_batches_follow_the_recipe():
    x, y = synthetic_batch(recipe(), num_classes=3, batch_size=2, objects=4)
    assert x["images"].shape == (2, 64, 96, 3) and x["images"].dtype == "uint8"
    assert y["boxes"].shape == (2, 16, 4) and truth_is_valid(y).sum() == 8


@slow_on_jax
def test_settings_are_measured_in_separate_processes(monkeypatch):
    model = {key: MODEL[key] for key in ("num_classes", "backbone", "neck")}
    changes = {
        "model": {**model, "name": "fcos", "dense_head": {"num_convs": 1}},
        "schedule.optimizer": {"name": "sgd"},
    }
    recipe = small(changes)  # a step that is traced quickly
    settings = {"kept": {}, "again": {"remat": ["backbone"], "precision": "mixed_bfloat16"}}
    found = training_settings(recipe, 2, None, settings, rounds=1)
    kept, again = (found["settings"][name] for name in ("kept", "again"))
    assert (kept["precision"], kept["remat"]) == ("float32", [])
    assert (again["precision"], again["remat"]) == ("mixed_bfloat16", ["backbone"])
    assert kept["step_over_first"] == 1.0 and again["step_s"] > 0
    assert again["memory_before_steps_gib"] <= again["peak_memory_gib"]
    failed = types.SimpleNamespace(returncode=1, stderr="Traceback\nUserError: remat: neck\n")
    monkeypatch.setattr("kgarden.bench.steps.subprocess.run", lambda *args, **more: failed)
    with pytest.raises(UserError, match="failed with exit code 1: UserError: remat: neck"):
        training_settings(recipe, 2, None, {"wrong": {"remat": ["neck"]}}, rounds=1)


def pss_recipe(base):
    model = {key: MODEL[key] for key in ("num_classes", "backbone", "neck")}
    model |= {"name": "pss", "base": {"name": base, "num_convs": 1, "norm": "gn"}}
    sizes = {"data.canvases": [[256, 320]], "data.short_side_px": 256, "data.long_side_px": 310}
    return load_recipe("quickstart", {"model": model, **sizes})


@slow_on_jax
def test_selection_is_timed_with_and_without_nms():
    found = bench(pss_recipe("fcos"), ["nms"], repeats=1)["nms"]
    assert found["canvas"] == [256, 320] and found["picture"] == [256, 310]
    assert found["places"] == 32 * 40 + 16 * 20 + 8 * 10 + 4 * 5 + 2 * 3
    for ratio in ("network_over_base", "no_nms_over_nms"):
        assert 0 < found[ratio][0] <= found[ratio][1] <= found[ratio][2]
    assert found["whole_s"] == pytest.approx(found["network_s"] + found["no_nms_s"], abs=1e-4)
    with pytest.raises(UserError, match="is not a PSS recipe"):
        bench(recipe(), ["nms"])


@pytest.mark.slow
def test_heads_are_timed_relative_to_a_single_head():
    model = {key: MODEL[key] for key in ("num_classes", "backbone", "neck")}
    model |= {"name": "double_head", "proposals": {"test": {"total": 20}}}
    conv = {"blocks": 2, "non_local": False, "width": 16, "middle": 8}
    model["roi_head"] = {"num_samples": 8, "fc_head": {"width": 16}, "conv_head": conv}
    small = {"model": model, "data.canvases": [[64, 96]], "data.batch_size": 1}
    found = bench(load_recipe("quickstart", small), ["heads"], repeats=1)["heads"]
    base, both = (found["infer"][name] for name in ("single_fc", "double_head"))
    assert base["over_base"] == [1.0, 1.0, 1.0] and found["proposals"] == 20
    assert both["over_base"][1] == pytest.approx(both["s"] / base["s"], rel=0.05)
    assert {"fc_head", "roi_align_x1", "roi_head"} <= set(base["parts"])
    assert set(both["parts"]) - set(base["parts"]) == {"conv_head", "roi_align_x1.3"}
    assert found["train"]["double_head_ext"]["s"] > 0 and found["train"]["batch_size"] == 1
    with pytest.raises(UserError, match="is not a double_head recipe"):
        bench(recipe(), ["heads"])


def test_stages_are_timed_relative_to_a_plain_cascade(monkeypatch):
    """A stage is what it adds to those before; a cascade alone has nothing to be compared with."""
    seconds = {  # of rounds: up to stage 1, up to stage 2, whole
        "cascade": ([1.0, 2.0, 2.0], [2.0, 4.0, 5.0], [10.0, 10.0, 10.0]),
        "lfs": ([2.0, 2.0, 2.0], [6.0, 3.0, 8.0], [11.0, 12.0, 13.0]),
    }
    seen = []

    def timed(calls, repeats):
        if ("lfs", 2) in calls:
            calls["lfs", 2]()
        seen.extend(calls)
        return {(name, what): np.array(seconds[name][{1: 0, 2: 1}.get(what, 2)]) for name, what in calls}

    monkeypatch.setattr("kgarden.bench.cascade_stages.rounds", timed)
    monkeypatch.setattr("kgarden.bench.cascade_stages.CONFIGURATIONS", list(seconds))
    model = {key: MODEL[key] for key in ("num_classes", "backbone", "neck")}
    rpn = {"rpn": {"width": 8}, "proposals": {"test": {"total": 20}}}
    model |= {"name": "fscascade", "roi_head": {"width": 8, "ious": [0.5, 0.6]}, **rpn}
    found = bench(small({"model": model}), ["stages"], repeats=3)["stages"]
    assert seen == [(name, what) for what in (1, 2, "whole") for name in seconds]
    assert found["canvas"] == [64, 96] and found["proposals"] == 20 and found["peak_memory_gib"] > 0
    assert found["heads"]["lfs"] == {
        "s": 6.0,
        "over_base": [1.175, 1.6, 2.3],  # 3, 0.75 and 1.6
        "stages": {
            "stage 1": {"s": 2.0, "over_base": [1.0, 1.0, 1.5]},
            "stage 2": {"s": 4.0, "over_base": [1.25, 2.0, 3.0]},  # 4 / 1, 1 / 2, 6 / 3
        },
    }
    assert found["whole"] == {
        "cascade": {"s": 10.0, "over_base": [1.0, 1.0, 1.0]},
        "lfs": {"s": 12.0, "over_base": [1.15, 1.2, 1.25]},
    }
    seconds["centernet2"] = seconds["lfs"]
    alone = {**MODEL, "roi_head": {"name": "cascade", "width": 8, "ious": [0.5, 0.6]}}
    found = bench(small({"model": alone}), ["stages"], repeats=3)["stages"]
    assert found["whole"] == {"centernet2": {"s": 12.0}} and "over_base" not in found["heads"]["centernet2"]
    with pytest.raises(UserError, match="has no cascade; use cascade_rcnn or fscascade"):
        bench(recipe(), ["stages"])

    class Head:
        test_stage = None

        def __call__(self, *arguments):
            return {"stages": [(number, arguments) for number in range(self.test_stage)]}

    head = Head()
    assert _up_to(head, 2)("pyramid", "proposals", "size") == (1, ("pyramid", "proposals", "size"))
    assert head.test_stage is None


def test_deformable_convolution_is_timed_relative_to_the_plain_one():
    found = bench(recipe(), ["deform"], repeats=1)["deform"]
    assert found["map"] == [2, 4, 6, 256]
    for which in ("forward", "forward_and_gradients"):
        plain, deformable, (_, ratio, _) = found[which].values()
        rounding = 1e-4 * (1 + ratio)  # of the two times, s
        assert ratio * plain == pytest.approx(deformable, abs=rounding)


def test_deformable_pooling_is_timed_relative_to_roi_align(monkeypatch):
    monkeypatch.setattr("kgarden.bench.roi_pooling.BOXES", 8)
    found = bench(recipe(), ["pool"], repeats=1)["pool"]
    assert found["canvas"] == [64, 96]
    for which in ("forward", "forward_and_gradients"):
        align, deformable, (_, ratio, _) = found[which].values()
        assert ratio * align == pytest.approx(deformable, abs=1e-4 * (1 + ratio))


def tsd_recipe(**more):
    model = {key: MODEL[key] for key in ("num_classes", "backbone", "neck")} | {"name": "tsd", **more}
    return small({"model": {**model, "proposals": {"test": {"total": 20}}}, "data.batch_size": 1})


@pytest.mark.slow
def test_tsd_is_timed_relative_to_faster_rcnn():
    found = bench(tsd_recipe(roi_head={"width": 16, "offset_width": 8}), ["tsd"], repeats=1)["tsd"]
    assert found["canvas"] == [64, 96] and found["proposals"] == 20
    for which in ("head", "whole"):
        base, tsd, (_, ratio, _) = found[which].values()
        assert ratio * base == pytest.approx(tsd, abs=1e-4 * (1 + ratio))
    with pytest.raises(UserError, match="is not a tsd recipe"):
        bench(recipe(), ["tsd"])


def test_the_baseline_of_tsd_has_all_other_parts():
    base = base_of(tsd_recipe(roi_head={"width": 16, "offset_width": 8}, configuration="release"))
    model = base.model.model_dump()
    assert (model["name"], model["convention"]) == ("faster_rcnn", "mmdetection_1")
    assert model["roi_head"] == {"width": 16} and "configuration" not in model
    assert model["proposals"] == {"test": {"total": 20}} and model["neck"]["channels"] == 32
    row = load_recipe("tsd", row="table1.baseline").model.model_dump()
    assert base_of(load_recipe("tsd")).model.model_dump() == row | {"roi_head": {}}


@pytest.mark.parametrize("base", slow_on_jax_but(["fcos", "gfl", "retinanet"], kept=["fcos"]))
def test_synthetic_maps_exceed_the_score_threshold(base):
    """Many pairs for every object before NMS; after it, and by the branch, about one for each."""
    detector = build_model(pss_recipe(base), 3)
    x = {"images": np.zeros((1, 256, 320, 3), "uint8"), "size_hw": np.int32([[256, 310]])}
    raw = keras.tree.map_structure(keras.ops.convert_to_numpy, detector(x))
    raw, boxes = synthetic_maps(detector.dense_head.base, raw, x["size_hw"][0])
    assert boxes.shape == (1, sum(np.prod(level) for level in detector.dense_head.base.levels(raw)), 4)
    sure = [1 / (1 + np.exp(-level)) > 0.05 for level in raw["classes"]]
    assert 200 < sum(level.sum() for level in sure) < 20_000
    found = _selection_of(detector)(x, raw, boxes, keras.ops.zeros(()))
    scores = keras.ops.convert_to_numpy(found["scores"])[0]
    assert (keras.ops.convert_to_numpy(found["boxes"]) <= [310, 256, 310, 256]).all()
    assert 5 <= (scores > 0.41).sum() <= 20  # above what the other classes of a chosen place can have
    assert detector.dense_head.base.boxes(raw).shape == boxes.shape  # it decodes as before


def test_unknown_benchmark_is_an_error():
    with pytest.raises(UserError, match="--what speed is not supported"):
        bench(recipe(), ["speed"])

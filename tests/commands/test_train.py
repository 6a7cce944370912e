"""Training around `fit`: files, resuming, averages, refusals, timing."""

import errno
import io
import json
import os
import pathlib
import signal
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from support.fake_detector import CATEGORIES, RECIPE, StandIn, StandInData

from kgarden import build
from kgarden.commands import evaluate as evaluation_module
from kgarden.commands import train
from kgarden.config.loading import load_recipe
from kgarden.errors import TrainingFailed, UserError
from kgarden.inference.predictor import compiled_inference
from kgarden.metrics import report
from kgarden.metrics.figures import all_figures
from kgarden.metrics.registry import is_better
from kgarden.ops.jit import compiled
from kgarden.optimizers.optimizers import SGD
from kgarden.training import trainer
from kgarden.training.checkpoint import has_checkpoint, load_checkpoint, not_finite, save_checkpoint
from kgarden.training.loggers import JsonLines
from kgarden.training.reporter import Reporter
from kgarden.training.weight_averaging import ExponentialMovingAverage

pytestmark = pytest.mark.tensorflow
KNOWN = {"images": 10, "objects": 10, "masks": 0, "shards": {"a": "digest"}, "ground_truth": "digest"}


class Lines(Reporter):
    """A reporter that remembers what it said."""

    def __init__(self):
        self.out = io.StringIO()
        super().__init__(Console(file=self.out, width=200, highlight=False))

    @property
    def text(self):
        return self.out.getvalue()


@pytest.fixture
def recipe_of(tmp_path, monkeypatch):
    """recipe_of(**overrides) -> Recipe whose model and data are stand-ins."""

    def prepare_data(recipe, cache=None, progress=None, on_classes=None):
        return StandInData(tmp_path)

    def build_detector(settings, num_classes, seed=0):
        detector = StandIn(num_classes, seed)
        detector.build()
        return detector

    monkeypatch.setattr(build, "prepare_data", prepare_data)
    monkeypatch.setattr(build, "build_detector", build_detector)
    monkeypatch.setattr(report, "all_figures", lambda analysis: {})  # half the time of such a training
    path = tmp_path / "standin.yaml"
    path.write_text(RECIPE)
    return lambda **overrides: load_recipe(path, {k.replace("__", "."): v for k, v in overrides.items()})


def array(variable):
    return keras.ops.convert_to_numpy(variable.value)


def values_of(detector):
    """{name below the model: value}"""
    values = {variable.path.split("/", 1)[-1]: array(variable) for variable in detector.weights}
    assert len(values) == len(detector.weights)
    return values


def weights_of(path, recipe):
    detector = build.build_model(recipe, 2)
    detector.load_weights(path)
    return values_of(detector)


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], err_msg=name, **{"rtol": 0, **tolerance})


def jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_directory_has_all_documented_files(recipe_of, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "all_figures", all_figures)
    recipe, run, lines = recipe_of(), tmp_path / "run", Lines()
    evaluation = train.train(recipe, run, reporter=lines)

    assert evaluation["metrics"]["ap50"] == 100.0  # squares lie on cells: the answer can be perfect
    assert json.loads((run / "evaluation.json").read_text())["metrics"] == evaluation["metrics"]
    assert evaluation["recipe_sha256"] == recipe.digest()
    results = json.loads((run / "detections.json").read_text())
    assert len(results) == 10 and {one["category_id"] for one in results} <= {3, 7}
    assert {one["image_id"] for one in results} == set(range(100, 110))
    assert load_recipe(run / "recipe.yaml").digest() == recipe.digest()
    assert json.loads((run / "labels.json").read_text()) == CATEGORIES
    assert sorted(path.name for path in (run / "pictures").iterdir()) == ["100.png", "101.png"]
    figures = {"pr_curves.png", "confusion_matrix.png", "errors.png"}
    assert {path.name for path in (run / "evaluation").iterdir()} == figures | {
        "analysis.json",
        "per_class.csv",
    }
    assert json.loads((run / "evaluation/analysis.json").read_text())["right"] == 10
    assert list((run / "tensorboard").glob("events*"))
    assert (run / "checkpoint" / "latest.npz").is_file()
    with h5py.File(run / "model.weights.h5") as stored:
        assert "optimizer" not in stored
    assert not [path for path in run.rglob(".*")]  # nothing half-written stays

    metrics = jsonl(run / "metrics.jsonl")
    training = [line for line in metrics if "loss" in line]
    assert [line["step"] for line in training] == [1, 4, 8, 12]
    assert all(np.isfinite(line["head/class"]) and line["images_per_s"] > 0 for line in training)
    assert all(line["gradient_norm"] > 0 and line["traces"] == 1 for line in training)
    assert training[0]["lr"] == pytest.approx(0.05) and training[-1]["lr"] == 0.5
    assert [line["step"] for line in metrics if "val/ap50" in line] == [4, 8, 12]
    words = ("head/class", "images/s", "waiting for data", "ETA", "with compilation", "(warm-up)", "AP50")
    for word in words:
        assert word in lines.text, word
    assert "\x1b" not in lines.text  # plain lines where there is no terminal


def test_terms_are_means_since_the_last_report(recipe_of, tmp_path):
    """Reports of one step each, and one report of all: their means agree."""
    often, seldom = tmp_path / "often", tmp_path / "seldom"
    train.train(recipe_of(evaluate__every=1), often, reporter=Lines())
    train.train(recipe_of(evaluate__every=12), seldom, reporter=Lines())
    each = [line["head/class"] for line in jsonl(often / "metrics.jsonl") if "loss" in line]
    first, rest = (line["head/class"] for line in jsonl(seldom / "metrics.jsonl") if "loss" in line)
    assert len(each) == 12 and len(set(each)) == 12
    assert first == pytest.approx(each[0], rel=1e-5) and rest == pytest.approx(np.mean(each[1:]), rel=1e-5)


def stop_at(step, monkeypatch):
    """The process gets SIGTERM in the middle of this step."""
    whole = trainer.Trainer.on_train_batch_end

    def hit(self, batch, logs=None):
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(self, batch, logs)

    monkeypatch.setattr(trainer.Trainer, "on_train_batch_end", hit)


@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"]
)
def test_stopped_run_resumes_exactly(recipe_of, tmp_path, monkeypatch, precision):
    recipe, whole, parts = recipe_of(precision=precision), tmp_path / "whole", tmp_path / "parts"
    train.train(recipe, whole, reporter=Lines())

    lines = Lines()
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        assert train.train(recipe, parts, reporter=lines) is None
    assert "stopped at step 6" in lines.text and not (parts / "evaluation.json").exists()
    with open(parts / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')  # of a process that was killed later
    lines = Lines()
    train.train(recipe, parts, reporter=lines)
    assert "resuming from step 6" in lines.text

    for name in ("model.weights.h5", "best.weights.h5"):
        for one, other in zip(
            weights_of(whole / name, recipe), weights_of(parts / name, recipe), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    with np.load(whole / "checkpoint/latest.npz") as one, np.load(parts / "checkpoint/latest.npz") as other:
        assert one.files == other.files and len(one.files) > 10
        for name in set(one.files) - {"words"}:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    steps = [line["step"] for line in jsonl(parts / "metrics.jsonl") if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_finished_run_is_only_reevaluated(recipe_of, tmp_path):
    recipe, run = recipe_of(), tmp_path / "run"
    first = train.train(recipe, run, reporter=Lines())
    before = (run / "checkpoint/latest.npz").read_bytes()
    again = train.train(recipe, run, reporter=Lines())
    assert again["metrics"] == first["metrics"] and again["step"] == first["step"]
    assert (run / "checkpoint/latest.npz").read_bytes() == before


def test_changed_data_are_said_on_resume_and_on_evaluation(recipe_of, tmp_path, monkeypatch):
    """The run keeps what it began with; other classes are refused, and its list of classes stays."""
    run, sets = tmp_path / "run", {"train": [KNOWN], "val": [KNOWN]}
    monkeypatch.setattr(StandInData, "identity", lambda self: sets)
    monkeypatch.setattr(evaluation_module, "prepare_data", lambda *args, **kwargs: StandInData(tmp_path))
    lines = Lines()
    train.train(recipe_of(schedule__steps=4), run, reporter=lines)
    assert json.loads((run / "data.json").read_text()) == sets and "when the run began" not in lines.text
    assert "notes" not in evaluation_module.evaluate_run(run)[0]
    sets = {"train": [KNOWN], "val": [{**KNOWN, "images": 12}]}
    told = "data.val: 12 images, 10 when the run began"
    train.train(recipe_of(schedule__steps=4), run, reporter=lines)
    assert told in lines.text.splitlines()
    assert evaluation_module.evaluate_run(run)[0]["notes"] == [told]
    assert "notes" not in evaluation_module.evaluate_run(run, data="other")[0]  # asked for
    monkeypatch.setattr(StandInData, "categories", [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}])
    with pytest.raises(UserError, match=r"only .*labels\.json has green \(id 3\); only the data has blue"):
        train.train(recipe_of(schedule__steps=4), run, reporter=lines)
    with pytest.raises(UserError, match=r"only data\.val has blue \(id 3\)"):
        evaluation_module.evaluate_run(run)
    assert json.loads((run / "labels.json").read_text()) == CATEGORIES


def test_other_recipe_is_rejected_and_fresh_moves_the_run_aside(recipe_of, tmp_path):
    run, lines = tmp_path / "run", Lines()
    train.train(recipe_of(), run, reporter=Lines())
    with pytest.raises(UserError, match=r"differs in schedule\.base_lr, schedule\.warmup\.steps"):
        train.train(recipe_of(schedule__base_lr=0.4, schedule__warmup__steps=2), run, reporter=lines)
    train.train(recipe_of(schedule__steps=4), run, fresh=True, reporter=lines)
    assert load_recipe(run).schedule.steps == 4
    assert load_recipe(tmp_path / "run.1").schedule.steps == 12 and "run.1" in lines.text
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(UserError, match="not empty"):
        train.train(recipe_of(), tmp_path / "other", reporter=lines)


def test_non_finite_loss_reports_step_term_and_batch(recipe_of, tmp_path, monkeypatch):
    true_loss, run = StandIn.loss_of, tmp_path / "run"

    def poisoned(self, y, y_pred):
        return true_loss(self, y, y_pred) / keras.ops.cast(
            self.step < 9, "float32"
        )  # 1 / 0 in the tenth step

    monkeypatch.setattr(StandIn, "loss_of", poisoned)
    ids = [(row + 9 * 4) * 5 % 64 for row in range(4)]
    said = rf"step 10: loss, head/class no longer finite, on the images {', '.join(map(str, ids))} .*base_lr"
    with pytest.raises(TrainingFailed, match=said):
        train.train(recipe_of(), run, reporter=Lines())
    with np.load(run / "bad_batch.npz") as batch:
        assert batch["image_id"].tolist() == ids and batch["images"].shape == (4, 64, 96, 3)
    with np.load(run / "checkpoint/latest.npz") as kept:
        assert json.loads(str(kept["words"]))["state"]["step"] == 8
        assert all(np.isfinite(kept[name]).all() for name in kept.files if name != "words")


def test_best_weights_are_kept(recipe_of, tmp_path, monkeypatch):
    """AP rises, then falls: the weights of the second evaluation are kept and evaluated at the end."""
    scores = iter([10.0, 30.0, 20.0])
    real = trainer.evaluate

    def scripted(*args, **kwargs):
        evaluation, results = real(*args, **kwargs)
        evaluation["metrics"]["ap"] = next(scores, evaluation["metrics"]["ap"])
        return evaluation, results

    monkeypatch.setattr(trainer, "evaluate", scripted)
    lines = Lines()
    assert train.train(recipe_of(), tmp_path / "run", reporter=lines)["step"] == 8
    assert "best 30.0 at step 8" in lines.text
    best = weights_of(tmp_path / "run/best.weights.h5", recipe_of())
    last = weights_of(tmp_path / "run/model.weights.h5", recipe_of())
    assert (best["step"], last["step"]) == (8, 12)
    assert not np.array_equal(best["dense/kernel"], last["dense/kernel"])


def test_last_weights_are_kept_while_nothing_can_be_measured(recipe_of, tmp_path, monkeypatch):
    """Without objects AP is undefined at every evaluation, and no weights are called the best."""
    real = trainer.evaluate

    def unmeasured(*args, **kwargs):
        evaluation, results = real(*args, **kwargs)
        evaluation["metrics"]["ap"] = None
        return evaluation, results

    monkeypatch.setattr(trainer, "evaluate", unmeasured)
    lines, run = Lines(), tmp_path / "run"
    evaluation = train.train(recipe_of(), run, reporter=lines)
    assert evaluation["step"] == 12 and evaluation["best_step"] == 12
    assert (run / "best.weights.h5").read_bytes() == (run / "model.weights.h5").read_bytes()
    assert "not measured, so nothing can be compared; the weights of step 12 are kept" in lines.text
    assert "best so far" not in lines.text and "best 0.0" not in lines.text
    assert "evaluating the last weights" in lines.text
    assert [line["val/ap"] for line in jsonl(run / "metrics.jsonl") if "val/ap" in line] == [None] * 3


@pytest.mark.parametrize(
    "scores,kept",
    [
        ((None, None), 2),
        ((None, 0.0), 2),
        ((0.0, None), 1),
        ((None, 5.0, None), 2),
        ((5.0, 0.0, None), 1),
        ((5.0, 5.0), 1),
    ],
)
def test_measured_weights_are_better_than_unmeasured_ones(scores, kept):
    best = best_at = None
    for number, score in enumerate(scores, start=1):
        if is_better(score, best):
            best, best_at = score, number
    assert best_at == kept


@pytest.mark.parametrize(
    "value,best,best_step,said",
    [
        (None, None, None, "no weights saved yet"),
        (None, None, 8, "not measured, so nothing can be compared; the weights of step 8 are kept"),
        (None, 3.0, 4, "not measured; best 3.0 at step 4"),
        (2.0, 3.0, 4, "4 images, best 3.0 at step 4"),
        (3.0, 3.0, 8, "best so far"),
    ],
)
def test_line_of_an_evaluation_says_what_is_best(value, best, best_step, said):
    lines = Lines()
    lines.total = 8
    evaluation = {"headline": "ap", "metrics": {"ap": value}, "images": 4}
    lines.interval(8, evaluation, best=best, best_step=best_step)
    assert lines.text.strip().endswith(said)


def test_near_zero_first_evaluation_is_explained(recipe_of, tmp_path, monkeypatch):
    """Ground truth of other pictures: told once while training and once at the end; the training goes on."""

    def prepare_data(recipe, cache=None, progress=None, on_classes=None):
        data = StandInData(tmp_path)
        truth = json.loads(data.annotations.read_text())
        for one in truth["images"]:
            one["id"] += 1000
        for one in truth["annotations"]:
            one["image_id"] += 1000
        data.annotations.write_text(json.dumps(truth))
        return data

    monkeypatch.setattr(build, "prepare_data", prepare_data)
    lines = Lines()
    evaluation = train.train(recipe_of(), tmp_path / "run", reporter=lines)
    assert evaluation["metrics"]["ap"] is None and evaluation["step"] > 0
    (cause,) = evaluation["explanation"]
    assert "None of the 10 evaluated images is in the ground truth" in cause
    told = [n for n, line in enumerate(lines.text.splitlines()) if line.startswith("why: None of the 10")]
    steps = [n for n, line in enumerate(lines.text.splitlines()) if " images, " in line]
    assert len(told) == 2 and len(steps) == 3 and told[0] == steps[0] + 1


def test_first_metric_selects_the_best_weights(recipe_of, tmp_path, monkeypatch):
    """VOC rises and falls while COCO's AP only rises."""
    scores = iter([10.0, 30.0, 20.0])
    real = trainer.evaluate

    def scripted(*args, **kwargs):
        evaluation, results = real(*args, **kwargs)
        evaluation["metrics"]["voc07_map"] = next(scores, 30.0)
        return evaluation, results

    monkeypatch.setattr(trainer, "evaluate", scripted)
    lines = Lines()
    recipe = recipe_of(evaluate__metrics=["voc07", "coco"])
    evaluation = train.train(recipe, tmp_path / "run", reporter=lines)
    assert evaluation["step"] == 8 and "best 30.0 at step 8" in lines.text
    assert "VOC07 mAP 30.0  AP " in lines.text
    assert "voc07_ap" in evaluation["per_class"][0] and "ap" in evaluation["per_class"][0]
    written = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert written["headline"] == "voc07_map" and len(written["metrics"]) == 13
    assert "val/voc07_map" in (tmp_path / "run/metrics.jsonl").read_text()


def test_evaluation_uses_the_ema_and_training_does_not(recipe_of, tmp_path):
    """The learnt path is the same with and without averages; the weights that are kept are not."""
    with_averages, without = tmp_path / "a", tmp_path / "b"
    train.train(recipe_of(), with_averages, reporter=Lines())
    train.train(recipe_of(schedule__ema=None), without, reporter=Lines())
    with (
        np.load(with_averages / "checkpoint/latest.npz") as one,
        np.load(without / "checkpoint/latest.npz") as two,
    ):
        names = [name for name in two.files if name.startswith("weights/")]
        for name in names:
            np.testing.assert_array_equal(one[name], two[name])
        kept = weights_of(with_averages / "model.weights.h5", recipe_of())
        for n, value in enumerate(kept.values()):
            np.testing.assert_array_equal(one[f"averages/{n:05d}"], value)
        moved = [not np.allclose(one[name], value) for name, value in zip(names, kept.values(), strict=True)]
        assert sum(moved) == 6  # all but the step


def test_ema_by_hand():
    """Weights and statistics of norms; the decay grows from 1/10; whole numbers are copied."""
    detector = StandIn(2)
    detector.build()
    averages, expected = (
        ExponentialMovingAverage(detector.weights, 0.25, compiled),
        [array(v) for v in detector.weights],
    )
    for time_, value in enumerate([1.0, 5.0, -2.0]):
        decay = min(0.25, (1 + time_) / (10 + time_))
        for n, variable in enumerate(detector.weights):
            variable.assign(keras.ops.full(variable.shape, value, variable.dtype))
            if variable is detector.step:
                expected[n] = array(variable)
            else:
                expected[n] = decay * expected[n] + (1 - decay) * value
        averages.update()
    assert "moving_mean" in {variable.name for variable in detector.weights}
    with averages.in_place():
        for variable, value in zip(detector.weights, expected, strict=True):
            np.testing.assert_allclose(array(variable), value, rtol=1e-5, err_msg=variable.path)
    assert all((array(variable) == -2).all() for variable in detector.weights)


def parts_of_a_training(classes):
    detector = StandIn(classes)
    detector.build()
    optimizer = keras.optimizers.SGD(momentum=0.9)
    optimizer.build(detector.trainable_variables)
    return detector, optimizer, None


def test_checkpoint_of_another_model_is_rejected(tmp_path):
    parts = parts_of_a_training
    save_checkpoint(tmp_path, *parts(2), {"step": 3})
    assert load_checkpoint(tmp_path, *parts(2)) == {"step": 3}
    with pytest.raises(UserError, match=r"dense/kernel.*\[3, 2\].*\[3, 5\]"):
        load_checkpoint(tmp_path, *parts(5))


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path):
    """Cut, overwritten, a flipped bit, values that are not finite; with none before it, one line."""
    detector, optimizer, none = parts_of_a_training(2)
    flat = np.arange(6, dtype="float32").reshape(3, 2)
    for step in (3, 4):
        detector.dense.kernel.assign(flat * step)
        save_checkpoint(tmp_path, detector, optimizer, none, {"step": step})
    whole = (tmp_path / "latest.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index((flat * 4).tobytes()) + 5] ^= 1
    detector.dense.kernel.assign(flat * np.nan)
    save_checkpoint(tmp_path / "nan", detector, optimizer, none, {"step": 5})
    nan = (tmp_path / "nan/latest.npz").read_bytes()
    odd = io.BytesIO()
    np.savez(odd, words=np.array('{"shapes": [], "state": {"step": 5}}'))
    for damaged in (whole[:500], b"", b"{}", bytes(flipped), nan, odd.getvalue()):
        lines = []
        (tmp_path / "latest.npz").write_bytes(damaged)
        detector.dense.kernel.assign(0 * flat)
        state = load_checkpoint(tmp_path, detector, optimizer, none, say=lines.append)
        np.testing.assert_array_equal(array(detector.dense.kernel), flat * 3)
        assert state == {"step": 3}, damaged[:20]
        (line,) = lines
        assert line.startswith(f"{tmp_path}/latest.npz: the checkpoint is damaged (")
        assert line.endswith("going on from the one before it, previous.npz of step 3")
        assert (tmp_path / "damaged.npz").read_bytes() == damaged  # not in the way of the next one
    (tmp_path / "previous.npz").write_bytes(whole[:500])
    with pytest.raises(UserError, match=r"previous.npz: the checkpoint is damaged .* use --fresh") as raised:
        load_checkpoint(tmp_path, detector, optimizer, none)
    assert "\n" not in str(raised.value)


def test_a_process_killed_between_the_two_renames_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    detector, optimizer, none = parts_of_a_training(2)
    save_checkpoint(tmp_path, detector, optimizer, none, {"step": 3})
    rename = os.replace

    def killed(source, target):
        if pathlib.Path(target).name == "latest.npz":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, detector, optimizer, none, {"step": 4})
    monkeypatch.undo()
    assert has_checkpoint(tmp_path) and not (tmp_path / "latest.npz").exists()
    assert load_checkpoint(tmp_path, detector, optimizer, none) == {"step": 3}
    save_checkpoint(tmp_path, detector, optimizer, none, {"step": 4})
    assert load_checkpoint(tmp_path, detector, optimizer, none) == {"step": 4}
    with pytest.raises(UserError, match="no checkpoint; use --fresh"):
        load_checkpoint(tmp_path / "empty", detector, optimizer, none)


def test_the_norm_of_a_skipped_step_damages_no_checkpoint(tmp_path):
    """Loss scaling skips a step whose gradient overflows; nothing but the norm of it is infinite."""
    detector, _, none = parts_of_a_training(2)
    optimizer = SGD(0.1)
    optimizer.build(detector.trainable_variables)
    optimizer.gradient_norm.assign(np.inf)
    assert not_finite(detector, optimizer, none) is None
    save_checkpoint(tmp_path, detector, optimizer, none, {"step": 3})
    assert load_checkpoint(tmp_path, detector, optimizer, none) == {"step": 3}
    momentum = optimizer.momenta[0]
    momentum.assign(np.full(momentum.shape, np.inf))
    assert not_finite(detector, optimizer, none) == momentum.path


def test_no_checkpoint_holds_what_is_not_finite(recipe_of, tmp_path, monkeypatch):
    """The loss stays finite, the weights do not: step 6 is not saved, nor evaluated, nor are its weights."""
    real, run = StandIn.loss_of, tmp_path / "run"

    def poisoned(self, y, y_pred):
        loss = real(self, y, y_pred)
        # the derivative of sqrt at 0 is infinite, times 0 NaN: a finite loss with a gradient that is not
        return loss + keras.ops.sqrt(keras.ops.where(self.step < 5, 1.0, 0 * loss))

    monkeypatch.setattr(StandIn, "loss_of", poisoned)
    with pytest.raises(TrainingFailed, match=r"step 6: .* no longer finite, though .* step 4 is kept; lower"):
        train.train(recipe_of(schedule__checkpoint_every=2, evaluate__every=6), run, reporter=Lines())
    with np.load(run / "checkpoint/latest.npz") as kept:
        assert json.loads(str(kept["words"]))["state"]["step"] == 4
        assert all(np.isfinite(kept[name]).all() for name in kept.files if name != "words")
    assert not (run / "best.weights.h5").exists()


def test_stages_are_trained_in_turn(recipe_of, tmp_path):
    """The second stage begins with what the first one learnt, and the last stage's files are the run's."""
    recipe = recipe_of(
        stages=[
            {"schedule": {"steps": 4}},
            {"schedule": {"steps": 1, "base_lr": 1e-9, "warmup": None, "ema": None}, "freeze": ["norm"]},
        ]
    )
    train.train(recipe, tmp_path / "run", reporter=Lines())
    first = weights_of(tmp_path / "run/stages/1/model.weights.h5", recipe)
    last = weights_of(tmp_path / "run/model.weights.h5", recipe)
    assert (first.pop("step"), last.pop("step")) == (4, 1)  # steps of this stage
    assert len(first) == 6
    assert_same(first, last, atol=1e-6)
    assert (tmp_path / "run/evaluation.json").exists() and (
        tmp_path / "run/stages/1/evaluation.json"
    ).exists()


def test_init_takes_weights_or_parts_of_a_run(recipe_of, tmp_path):
    run = tmp_path / "run"
    train.train(recipe_of(), run, reporter=Lines())
    learnt = weights_of(run / "best.weights.h5", recipe_of()) | {"step": 0}
    untouched = values_of(build.build_model(recipe_of(), 2))
    whole = values_of(build.build_model(recipe_of(init={"run": str(run)}), 2))
    part = values_of(build.build_model(recipe_of(init={"run": str(run), "parts": ["norm"]}), 2))
    assert_same(whole, learnt)
    assert_same(part, {**untouched, **{name: learnt[name] for name in learnt if name.startswith("norm/")}})
    assert not np.allclose(learnt["norm/gamma"], untouched["norm/gamma"])
    with pytest.raises(UserError, match="no part 'neck'"):
        build.build_model(recipe_of(init={"run": str(run), "parts": ["neck"]}), 2)
    with pytest.raises(UserError, match="no weights found"):
        build.build_model(recipe_of(init={"run": str(tmp_path)}), 2)


def test_two_canvases_give_two_graphs_with_static_shapes(recipe_of):
    """Portrait and landscape in turn, several times: `fit` and `predict` trace each once."""
    traced = []

    class Watched(StandIn):
        def call(self, x, training=False):
            traced.append((training, *x["images"].shape))
            return super().call(x, training)

    detector = Watched(2)
    detector.build()
    detector.compile(build.build_optimizer(recipe_of()))
    detector.optimizer.build(detector.trainable_variables)

    def batches():
        for n in range(6):
            hw = (64, 96) if n % 2 else (96, 64)
            x = {"images": np.zeros((2, *hw, 3), "uint8"), "size_hw": np.int32([hw, hw])}
            yield x, {"labels": np.zeros((2, 1), "int32")}

    spec = (
        {"images": tf.TensorSpec((2, None, None, 3), tf.uint8), "size_hw": tf.TensorSpec((2, 2), tf.int32)},
        {"labels": tf.TensorSpec((2, 1), tf.int32)},
    )
    detector.fit(tf.data.Dataset.from_generator(batches, output_signature=spec), verbose=0)
    assert sorted(traced) == [(True, 2, 64, 96, 3), (True, 2, 96, 64, 3)] and int(detector.step) == 6
    model = compiled_inference(detector)
    traced.clear()
    for x, _ in batches():
        assert model.predict_on_batch(x)["boxes"].shape == (2, 2, 4)
    assert sorted(traced) == [(False, 2, 64, 96, 3), (False, 2, 96, 64, 3)]


@pytest.mark.parametrize("slow,expected", [("data", (0.6, 1.0)), ("step", (0.0, 0.3))])
def test_data_wait_is_measured(slow, expected):
    """50 ms in the pipeline against 50 ms in the step, both behind a prefetch."""

    def pause(x):
        time.sleep(0.05)
        return x

    batches = tf.data.Dataset.range(100).batch(1)
    if slow == "data":
        batches = batches.map(lambda x: tf.numpy_function(pause, [x], tf.int64))
    wait = trainer.DataWait()
    iterator = iter(trainer.measure_wait(batches.prefetch(2), wait))
    next(iterator)
    wait.take()
    started = time.perf_counter()
    for _ in range(10):
        next(iterator)
        if slow == "step":
            time.sleep(0.05)
    share = wait.take() / (time.perf_counter() - started)
    assert expected[0] <= share <= expected[1]


def test_metrics_are_written_once_for_each_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for after, steps in [(0, (1, 2, 3)), (2, (3, 4))]:
        file = JsonLines(path, after)
        for step in steps:
            file.add(step, {"loss": 1.0 * step + after})
    assert [(line["step"], line["loss"]) for line in jsonl(path)] == [(1, 1.0), (2, 2.0), (3, 5.0), (4, 6.0)]


def test_training_continues_on_a_full_disk(recipe_of, tmp_path, monkeypatch):
    """The second of three checkpoints cannot be written, nor the best weights at that time."""
    calls = iter(range(1, 100))

    def full(real):
        def write(*args, **kwargs):
            if next(calls) in (2, 3):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return write

    monkeypatch.setattr(np, "savez", full(np.savez))
    lines, run = Lines(), tmp_path / "run"
    assert train.train(recipe_of(schedule__checkpoint_every=2), run, reporter=lines) is not None
    assert "step 4: the checkpoint could not be written (No space left on device)" in lines.text
    assert "the checkpoint of step 2 is kept" in lines.text
    assert sorted(path.name for path in (run / "checkpoint").iterdir()) == ["latest.npz", "previous.npz"]


def test_training_continues_if_best_weights_cannot_be_written(recipe_of, tmp_path, monkeypatch):
    """The first evaluation keeps nothing, the second does; the last weights cannot be kept either."""
    real, calls = trainer.save_weights, iter(range(1, 100))

    def full(detector, path):
        if next(calls) == 1 or path.name == "model.weights.h5":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(detector, path)

    monkeypatch.setattr(trainer, "save_weights", full)
    lines, run = Lines(), tmp_path / "run"
    assert train.train(recipe_of(), run, reporter=lines)["weights"] == "best.weights.h5"
    assert "best.weights.h5 could not be written (No space left on device)" in lines.text
    assert "no weights saved yet" in lines.text and "model.weights.h5 could not be written" in lines.text


def test_learning_rate_that_does_not_fit_the_training_is_refused_before_anything_runs(recipe_of, tmp_path):
    cosine = {"schedule__steps": 2, "schedule__decay": {"name": "cosine"}}
    with pytest.raises(UserError, match=r"schedule\.warmup\.steps is 3, the training has 2 steps"):
        train.train(recipe_of(**cosine), tmp_path / "run", reporter=Lines())
    stages = [{"schedule": {"steps": 4}}, {"schedule": {"decay": {"at": [2], "factor": 0.1}}}]
    with pytest.raises(UserError, match=r"schedule\.decay\.at has 2, inside the warm-up of 3 steps"):
        train.train(recipe_of(stages=stages), tmp_path / "run", reporter=Lines())
    assert not (tmp_path / "run").exists()


def test_hdf5_never_meets_a_full_disk(tmp_path, monkeypatch):
    """It would crash the process at its end: room is reserved first, of at least the file's size."""
    detector, *_ = parts_of_a_training(2)
    path, asked = tmp_path / "a.weights.h5", []
    monkeypatch.setattr(os, "posix_fallocate", lambda file, start, size: asked.append(size))
    trainer.save_weights(detector, path)
    assert asked[0] >= path.stat().st_size
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(StandIn, "save_weights", None)
    with pytest.raises(UserError, match="a.weights.h5: cannot be written .No space left on device"):
        trainer.save_weights(detector, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_run_is_extended(recipe_of, tmp_path):
    """The rate follows the longer schedule from there; all else goes on: as if it had been stopped at 12."""
    run = tmp_path / "run"
    train.train(recipe_of(), run, reporter=Lines())
    lines = Lines()
    assert train.train(recipe_of(schedule__steps=16), run, reporter=lines) is not None
    assert "resuming from step 12 of 16" in lines.text and load_recipe(run).schedule.steps == 16
    assert jsonl(run / "metrics.jsonl")[-1]["step"] == 16
    with pytest.raises(UserError, match="can be extended but not shortened"):
        train.train(recipe_of(schedule__steps=14), run, reporter=Lines())

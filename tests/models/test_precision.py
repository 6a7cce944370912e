"""Under mixed precision the network computes in sixteen bits, all about boxes and losses in float32."""

import functools
import inspect
import sys
from typing import NamedTuple

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops
from support.marks import slow_on_jax
from support.variants import CLASSES, COMPOSED, VARIANTS, batch

from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.heads.selection import Selection
from kgarden.layers.precision import dtype_policy_scope
from kgarden.models import build_detector
from kgarden.ops import float32
from kgarden.optimizers.optimizers import SGD, AdamW, LossScaled
from kgarden.optimizers.schedules import learning_rate

ON_JAX = keras.backend.backend() == "jax"
WATCHED = tuple(f"kgarden.{name}" for name in ("ops.boxes", "ops.nms", "ops.matching", "targets", "losses"))
FAR_BOX = [261.5, 5.25, 301.25, 41.75]  # px; bfloat16 knows 260 and 262
TOLERANCE = {"bfloat16": 0.05, "float16": 0.01}


def built(variant, precision):
    with dtype_policy_scope(precision):
        keras.utils.set_random_seed(0)
        return build_detector(VARIANTS[variant], CLASSES)


def floats(values):
    """Every tensor of floating-point numbers in any structure."""
    leaves = keras.tree.flatten(values)
    return [leaf for leaf in leaves if hasattr(leaf, "dtype") and "float" in dtype_of(leaf)]


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def watch(monkeypatch):
    """[(name, floating-point arguments and results)] of every function of WATCHED, and of every Selection."""
    seen = []

    def watched(name, function):
        @functools.wraps(function)
        def spy(*args, **kwargs):
            result = function(*args, **kwargs)
            values = [args, kwargs, result] if name != "Selection" else [args[1:], kwargs, result]
            seen.append((name, floats(values)))
            return result

        return spy

    for module in [module for name, module in sys.modules.items() if name.startswith("kgarden.")]:
        for name, function in list(vars(module).items()):
            if inspect.isfunction(function) and function.__module__.startswith(WATCHED):
                monkeypatch.setattr(module, name, watched(f"{function.__module__}.{name}", function))
    monkeypatch.setattr(Selection, "__call__", watched("Selection", Selection.__call__))
    return seen


def record(monkeypatch, owner, name):
    """Results of a method, from now on."""
    results, method = [], getattr(owner, name)

    def recorded(*args, **kwargs):
        results.append(method(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(owner, name, recorded)
    return results


def far_batch():
    """A wide canvas with an object at FAR_BOX in each picture."""
    x, y = batch(height=64, width=320)
    y["boxes"][:, 0] = FAR_BOX
    return x, y


def losses(detector, x, y):
    """Terms of a step that is not taken."""
    return detector.loss_terms(x, y, detector(x, training=True), training=True)


class Run(NamedTuple):
    """A loss and detections in sixteen bits on `far_batch`, and what was handed on the way to them."""

    detector: object
    narrow: str
    terms: dict
    found: dict
    pyramid: list
    proposals: list
    candidates: dict
    calls: list


@pytest.fixture(scope="module")
def run(request):
    variant, precision = request.param
    detector = built(variant, precision)
    x, y = far_batch()

    def learn_and_detect(x, y):
        with keras.StatelessScope(), pytest.MonkeyPatch.context() as monkeypatch:
            calls = watch(monkeypatch)
            proposals = []
            if hasattr(detector, "proposer"):
                proposals = record(monkeypatch, detector.proposer, "proposals")
            terms = losses(detector, x, y)
            proposals = proposals[:1]
            pyramids = record(monkeypatch, detector, "pyramid")
            candidates = record(monkeypatch, detector, "candidates")
            found = detector.detect(x, detector(x))
        seen.append(calls)
        return terms, found, pyramids[0], proposals, candidates[0]

    seen = []
    if ON_JAX:  # one operation after the other takes minutes there, and types are known without numbers
        import jax

        results = jax.eval_shape(learn_and_detect, x, y)
    else:
        results = learn_and_detect(*keras.tree.map_structure(ops.convert_to_tensor, (x, y)))
    return Run(detector, precision.removeprefix("mixed_"), *results, seen[0])


def runs(precision, quick, **marks):
    """Parameters of every variant, slow where not `quick`; {variant: mark}."""
    return [
        pytest.param(
            (name, precision),
            id=f"{name}-{precision}",
            marks=marks.get(name, [] if name in quick else pytest.mark.slow),
        )
        for name in VARIANTS
    ]


IN_BFLOAT16 = runs("mixed_bfloat16", VARIANTS.keys() - COMPOSED, centernet2=pytest.mark.both_backends)
# float16 differs in the numbers alone: two detectors with every kind of part hold it quickly.
IN_BOTH = IN_BFLOAT16 + runs("mixed_float16", {"centernet2", "condinst_pss"})


@pytest.mark.parametrize("run", IN_BOTH, indirect=True)
def test_boxes_targets_and_losses_are_float32(run):
    assert {dtype_of(level) for level in run.pyramid} == {run.narrow}  # the network computes in sixteen bits

    names = {name for name, _ in run.calls}
    assert "Selection" in names and any("losses" in name for name in names)
    seen = {(name, dtype_of(value)) for name, values in run.calls for value in values}
    assert not {(name, dtype) for name, dtype in seen if dtype != "float32"}
    assert {dtype_of(value) for value in floats([run.terms, run.found])} == {"float32"}
    if not ON_JAX:
        assert_far_box_survives([value for _, values in run.calls for value in values])
        values = floats([run.terms, run.found])
        assert all(np.isfinite(ops.convert_to_numpy(value)).all() for value in values)


def assert_far_box_survives(values):
    """It is handed on as it is, and nowhere rounded as the network would round it."""
    boxes = [array for array in map(_array, values) if array is not None and array.shape[-1:] == (4,)]
    whole = np.float32(FAR_BOX)
    rounded = whole.astype(ml_dtypes.bfloat16).astype("float32")
    assert any((array == whole).all(axis=-1).any() for array in boxes)
    assert not any((array == rounded).all(axis=-1).any() for array in boxes)


def _array(value):
    """None for what stands for a value inside of a loop."""
    try:
        return ops.convert_to_numpy(value)
    except NotImplementedError:
        return None


@pytest.mark.tensorflow  # this and what follows looks at numbers, slow to come by on JAX without compiling
@pytest.mark.parametrize("run", IN_BFLOAT16, indirect=True)
def test_predicted_boxes_are_finer_than_sixteen_bits(run):
    """A coordinate that went through bfloat16 is one of its numbers: from 128 to 256 a whole number of px."""
    boxes = ops.convert_to_numpy(run.candidates["boxes"]).reshape(-1)
    boxes = boxes[(boxes > 128) & (boxes < 304)]
    assert len(boxes) > 20
    # Sides that lie on a cell's centre are among its numbers; all of them would be.
    assert np.mean(boxes == boxes.astype(ml_dtypes.bfloat16).astype("float32")) < 0.7


@pytest.mark.tensorflow
def test_what_predicts_boxes_computes_in_float32():
    """Distances around 8 strides would be told apart by sixteenths of a stride: 8 px at stride 128."""
    detector = built("centernet2", "mixed_bfloat16")
    x, _ = batch()
    raw = detector(x, training=True)
    proposals = detector.proposer.proposals(raw["proposer"], x["size_hw"], training=False)
    stages = detector.roi_head(raw["pyramid"], proposals, x["size_hw"])["stages"]
    for predicted in (raw["proposer"]["ltrb"][0], stages[0]["deltas"]):
        values = ops.convert_to_numpy(predicted)
        values = values[values != 0]
        assert np.mean(values == values.astype(ml_dtypes.bfloat16).astype("float32")) < 0.2


@pytest.mark.tensorflow
@pytest.mark.parametrize("run", IN_BOTH, indirect=True)
def test_losses_agree_with_float32(run, monkeypatch):
    """Second stages learn from the same proposals: which they are changes with the last bits of scores."""
    whole = run.detector
    assert {dtype_of(variable) for variable in whole.trainable_variables} == {"float32"}
    for layer in whole._flatten_layers():
        monkeypatch.setattr(layer, "dtype_policy", keras.DTypePolicy("float32"))
    if run.proposals:
        monkeypatch.setattr(whole.proposer, "proposals", lambda *_, **__: run.proposals[0])
    x, y = far_batch()
    assert {dtype_of(level) for level in whole.pyramid(x)} == {"float32"}
    with keras.StatelessScope():
        expected = losses(whole, x, y)
    assert run.terms.keys() == expected.keys()
    for name, term in expected.items():
        assert float(run.terms[name]) == pytest.approx(float(term), rel=TOLERANCE[run.narrow], abs=1e-6), name


# --- float16: scaled losses ---------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda: SGD(learning_rate(0.01, 100, warmup=(4, 0.1)), clip_norm=5.0, weight_decay=1e-4),
    "adamw": lambda: AdamW(learning_rate(1e-3, 100, cosine=True), clip_value=1.0),
}


def compiled_float16(optimizer):
    """On TensorFlow SGD in a graph, whose tracing takes seconds, AdamW without."""
    detector = built("fcos", "mixed_float16")
    how = {"jit_compile": ON_JAX, "run_eagerly": not ON_JAX and optimizer == "adamw"}
    detector.compile(optimizer=LossScaled(OPTIMIZERS[optimizer](), initial_scale=2.0**8), **how)
    detector.optimizer.build(detector.trainable_variables)
    return detector


def arrays(variables):
    return [ops.convert_to_numpy(variable.value).copy() for variable in variables]


@pytest.mark.parametrize(
    "optimizer",
    ["sgd", pytest.param("adamw", marks=[pytest.mark.slow] * ON_JAX)],  # compiles for minutes there
)
def test_an_overflow_is_left_out_and_training_goes_on(optimizer):
    detector = compiled_float16(optimizer)
    x, y = batch()
    weights, inner = detector.trainable_variables, detector.optimizer.inner_optimizer
    before = arrays(weights)
    detector.train_on_batch(x, y)
    first = arrays(weights)
    assert any(not np.array_equal(a, b) for a, b in zip(before, first, strict=True))

    detector.optimizer.dynamic_scale.assign(2.0**60)  # more than float16 holds
    state = arrays(inner.variables)
    detector.reset_metrics()
    logs = detector.train_on_batch(x, y, return_dict=True)
    for one, other in zip([*first, *state], arrays([*weights, *inner.variables]), strict=True):
        np.testing.assert_array_equal(one, other)  # weights, momenta and the step of the learning rate
    assert float(detector.optimizer.dynamic_scale) == 2.0**59
    assert float(detector.first_bad.result()) == 0 and all(np.isfinite(value) for value in logs.values())
    assert int(detector.step) == 2  # what is drawn at random goes on

    detector.optimizer.dynamic_scale.assign(2.0**10)
    for _ in range(3):
        logs = detector.train_on_batch(x, y, return_dict=True)
    assert int(inner.iterations) == 4
    assert all(np.isfinite(values).all() for values in arrays(detector.weights))
    assert any(not np.array_equal(a, b) for a, b in zip(first, arrays(weights), strict=True))
    assert all("float32" == dtype_of(v) for v in detector.optimizer.variables if "float" in dtype_of(v))


@slow_on_jax
def test_a_loss_that_is_not_finite_is_reported_in_float16_too():
    detector = compiled_float16("adamw")
    x, y = batch()
    detector.trainable_variables[-1].assign(np.full(detector.trainable_variables[-1].shape, np.nan))
    detector.train_on_batch(x, y)
    assert float(detector.first_bad.result()) == 1


def test_a_recipe_forbids_and_allows_tf32():
    narrow = {"model.backbone.stem_channels": 8, "model.backbone.res2_channels": 16}
    before = float32._setting_of_backend()[0]
    build_model(load_recipe("quickstart", narrow | {"allow_tf32": False}), 3)
    forbidden = float32._setting_of_backend()[0]
    build_model(load_recipe("quickstart", narrow), 3)
    assert forbidden == ("highest" if ON_JAX else False)
    assert float32._setting_of_backend()[0] == before


def test_a_global_dtype_policy_is_not_overruled_silently():
    with dtype_policy_scope("mixed_bfloat16"):
        with pytest.raises(UserError, match="policy is mixed_bfloat16, the recipe's precision float32: set"):
            build_model(load_recipe("quickstart"), 3)

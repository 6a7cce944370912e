"""Under mixed precision the network computes in sixteen bits, all about boxes and losses in float32."""

import contextlib
import functools
import inspect
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from kgarden.heads.selection import Selection
from kgarden.models import build_detector
from kgarden.optimizers import SGD, AdamW, LossScaled, learning_rate

sys.path.append(str(Path(__file__).parent))
from test_detector import CLASSES, VARIANTS, batch  # noqa: E402

ON_JAX = keras.backend.backend() == "jax"
POLICIES = ("mixed_bfloat16", "mixed_float16")
WATCHED = tuple(f"kgarden.{name}" for name in ("ops.boxes", "ops.nms", "ops.matching", "targets", "losses"))
FAR = 1001.5  # px: bfloat16 knows 1000 and 1004, float16 knows it


@contextlib.contextmanager
def policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def built(variant, precision):
    with policy(precision):
        keras.utils.set_random_seed(0)
        return build_detector(VARIANTS[variant], CLASSES)


def floats(values):
    """Every tensor of floating-point numbers in any structure."""
    leaves = keras.tree.flatten(values)
    return [leaf for leaf in leaves if hasattr(leaf, "dtype") and "float" in dtype_of(leaf)]


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


@pytest.fixture
def calls(monkeypatch):
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


def far_batch():
    """A wide canvas with an object at FAR in each picture."""
    x, y = batch(height=64, width=1056)
    y["boxes"][:, 0] = [FAR, 5.25, FAR + 40.5, 41.75]
    return x, y


@pytest.mark.parametrize("precision", POLICIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_boxes_targets_and_losses_are_float32(variant, precision, calls):
    detector = built(variant, precision)
    x, y = far_batch()
    y = {name: ops.convert_to_tensor(value) for name, value in y.items()}
    raw = detector(x, training=True)
    narrow = {dtype_of(level) for level in detector.pyramid(x)}
    assert narrow == {precision.removeprefix("mixed_")}  # the network does compute in sixteen bits
    terms = detector.loss_terms(x, y, raw, training=True)
    trained = len(calls)
    found = detector.detect(x, detector(x))
    assert 0 < trained < len(calls)

    wrong = {(name, dtype_of(value)) for name, values in calls for value in values}
    assert not {(name, dtype) for name, dtype in wrong if dtype != "float32"}
    for value in [*terms.values(), *floats(found)]:
        assert dtype_of(value) == "float32" and np.isfinite(ops.convert_to_numpy(value)).all()

    # The far box is handed on as it is, and nowhere rounded as the network would round it.
    boxes = [ops.convert_to_numpy(v) for _, values in calls[:trained] for v in values if v.shape[-1:] == (4,)]
    assert any((value == FAR).any() for value in boxes)
    rounded = {FAR + side: float(np.asarray(FAR + side, ml_dtypes.bfloat16)) for side in (0, 40.5)}
    assert not any((value == wrong).any() for value in boxes for wrong in rounded.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_predicted_boxes_are_finer_than_sixteen_bits(variant):
    """A coordinate that went through bfloat16 is one of its numbers: from 512 to 1024 a multiple of 4 px."""
    detector = built(variant, "mixed_bfloat16")
    x, _ = far_batch()
    boxes = ops.convert_to_numpy(detector.candidates(x, detector(x))["boxes"]).reshape(-1)
    boxes = boxes[(boxes > 256) & (boxes < 1040)]
    assert len(boxes) > 20
    assert np.mean(boxes == boxes.astype(ml_dtypes.bfloat16).astype("float32")) < 0.2


def test_what_predicts_boxes_computes_in_float32():
    """Distances around 8 strides would be told apart by sixteenths of a stride: 8 px at stride 128."""
    detector = built("centernet2", "mixed_bfloat16")
    x, y = batch()
    raw = detector(x, training=True)
    proposals = detector.proposer.proposals(raw["proposer"], x["size_hw"], training=False)
    stages = detector.roi_head(raw["pyramid"], proposals, x["size_hw"])["stages"]
    for predicted in (raw["proposer"]["ltrb"][0], stages[0]["deltas"]):
        values = ops.convert_to_numpy(predicted)
        values = values[values != 0]
        assert np.mean(values == values.astype(ml_dtypes.bfloat16).astype("float32")) < 0.2


@pytest.mark.parametrize("precision, rtol", [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_agree_with_float32(variant, precision, rtol):
    x, y = batch()
    whole, mixed = built(variant, "float32"), built(variant, precision)
    for one, other in zip(mixed.variables, whole.variables, strict=True):
        assert one.dtype == other.dtype  # the weights that are trained are float32
        one.assign(other.value)
    expected, got = (d.loss_terms(x, y, d(x, training=True), training=True) for d in (whole, mixed))
    assert got.keys() == expected.keys()
    for name, term in expected.items():
        assert float(got[name]) == pytest.approx(float(term), rel=rtol, abs=1e-6), name


# --- float16: scaled losses ---------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda: SGD(learning_rate(0.01, 100, warmup=(4, 0.1)), clip_norm=5.0, weight_decay=1e-4),
    "adamw": lambda: AdamW(learning_rate(1e-3, 100, cosine=True), clip_value=1.0),
}


def compiled_float16(optimizer, variant="centernet2_faster"):
    detector = built(variant, "mixed_float16")
    detector.compile(optimizer=LossScaled(OPTIMIZERS[optimizer]()), jit_compile=ON_JAX)
    detector.optimizer.build(detector.trainable_variables)
    return detector


def arrays(variables):
    return [ops.convert_to_numpy(variable.value).copy() for variable in variables]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
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
    assert logs["first_bad_step"] == 0 and all(np.isfinite(value) for value in logs.values())
    assert int(detector.step) == 2  # what is drawn at random goes on

    detector.optimizer.dynamic_scale.assign(2.0**10)
    for _ in range(3):
        logs = detector.train_on_batch(x, y, return_dict=True)
    assert int(inner.iterations) == 4
    assert all(np.isfinite(values).all() for values in arrays(detector.weights))
    assert any(not np.array_equal(a, b) for a, b in zip(first, arrays(weights), strict=True))
    assert all("float32" == dtype_of(v) for v in detector.optimizer.variables if "float" in dtype_of(v))


def test_a_loss_that_is_not_finite_is_reported_in_float16_too():
    detector = compiled_float16("sgd")
    x, y = batch()
    detector.trainable_variables[-1].assign(np.full(detector.trainable_variables[-1].shape, np.nan))
    logs = detector.train_on_batch(x, y, return_dict=True)
    assert logs["first_bad_step"] == 1

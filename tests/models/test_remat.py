"""Features that are computed again instead of kept: the same training with less memory."""

import keras
import numpy as np
import pytest
from keras import ops
from support.marks import slow_on_jax
from support.programs import run
from support.variants import CLASSES, VARIANTS, batch

from kgarden.backbones import make_backbone, staged
from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.layers.precision import dtype_policy_scope
from kgarden.optimizers.optimizers import SGD

pytestmark = pytest.mark.both_backends

ON_JAX = keras.backend.backend() == "jax"
SMALL = {"stem_channels": 8, "res2_channels": 8}
FROZEN = {"name": "resnet50", "norm": "frozen_bn", "res2_channels": 32, "freeze_at": 2}
WIDE = {"stem_channels": 32, "res2_channels": 32}
CASES = [
    ({"name": "resnet18", "norm": "bn", **SMALL}, "float32", 6),
    ({"name": "resnet18", "norm": "bn", **SMALL}, "mixed_bfloat16", 1),
    pytest.param({"name": "resnet18", "norm": "gn", **WIDE}, "float32", 6, marks=pytest.mark.slow),
    pytest.param(FROZEN, "float32", 6, marks=pytest.mark.slow),
]


class Sums(keras.Model):
    """A backbone and a loss that looks at all it gives."""

    def __init__(self, backbone, remat):
        super().__init__()
        self.backbone = backbone
        self.backbone.remat = remat
        self.backbone.build((None, None, None, 3))
        self.built = True

    def call(self, x, training=False):
        return self.backbone(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return sum(ops.mean(ops.square(ops.cast(features - 0.5, "float32"))) for features in y_pred)


def arrays(variables):
    return [ops.convert_to_numpy(variable.value).astype("float64") for variable in variables]


def trained_backbone(settings, remat, precision, steps=2):
    with dtype_policy_scope(precision):
        keras.utils.set_random_seed(0)
        model = Sums(make_backbone(settings), remat)
        model.compile(optimizer=keras.optimizers.SGD(1e-3, momentum=0.9), jit_compile=ON_JAX)
    before = arrays(model.variables)
    x = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
    for _ in range(steps):
        loss = model.train_on_batch(x, np.zeros(2))
    return before, arrays(model.variables), float(np.asarray(loss).ravel()[0])


@slow_on_jax
@pytest.mark.parametrize("settings, precision, blocks", CASES)
def test_weights_and_statistics_are_those_of_a_training_that_keeps_everything(
    settings, precision, blocks, monkeypatch
):
    monkeypatch.setattr(staged, "REMAT_BLOCKS", blocks)
    before, kept, loss = trained_backbone(settings, False, precision)
    _, again, loss_again = trained_backbone(settings, True, precision)
    assert loss_again == pytest.approx(loss, rel=1e-5 if precision == "float32" else 1e-2)
    if precision == "float32":
        return assert_alike(before, kept, again, 1e-3)
    flat = [np.concatenate([array.ravel() for array in arrays]) for arrays in (before, kept, again)]
    assert np.linalg.norm(flat[2] - flat[1]) < 0.1 * np.linalg.norm(flat[1] - flat[0])


def assert_alike(before, one, other, share):
    """No weight is further apart than a share of the way that its tensor went."""
    assert sum(not np.array_equal(a, b) for a, b in zip(before, one, strict=True)) > 20
    for old, a, b in zip(before, one, other, strict=True):
        way = np.abs(a - old).max()
        assert np.abs(a - b).max() <= share * way + 1e-7
        assert way > 0 or np.array_equal(b, old)


@slow_on_jax
def test_the_key_of_a_recipe_changes_memory_and_nothing_else():
    trained = []
    for remat in ([], ["backbone"]):
        model = {**VARIANTS["two_stage"], "num_classes": CLASSES}
        recipe = load_recipe("quickstart", {"model": model, "remat": remat})
        keras.utils.set_random_seed(0)
        detector = build_model(recipe)
        assert detector.backbone.remat is bool(remat)
        detector.compile(optimizer=SGD(0.01), jit_compile=ON_JAX)
        before = arrays(detector.weights)
        logs = detector.train_on_batch(*batch(), return_dict=True)
        trained.append((before, arrays(detector.weights), logs))
    (before, kept, logs), (_, again, logs_again) = trained
    assert_alike(before, kept, again, 1e-3)
    for name, value in logs.items():
        assert logs_again[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_a_part_that_cannot_is_named():
    with pytest.raises(UserError, match=r"remat: 'neck' is not supported; use one of: backbone"):
        build_model(load_recipe("quickstart", {"remat": ["backbone", "neck"]}), num_classes=3)


@pytest.mark.skipif(not ON_JAX, reason="TensorFlow's memory is measured in a process of its own")
def test_jax_keeps_less():
    """Bytes that the way forward hands to the way back."""
    import jax

    def kept(remat):
        keras.utils.set_random_seed(0)
        model = Sums(make_backbone(CASES[0][0]), remat)
        state = [variable.value for variable in model.non_trainable_variables]

        def loss(weights, x):
            features, _ = model.stateless_call(weights, state, x, training=True)
            return model.compute_loss(y_pred=features)

        x = np.zeros((2, 256, 256, 3), "float32")
        _, way_back = jax.vjp(lambda w: loss(w, x), [v.value for v in model.trainable_variables])
        return sum(leaf.nbytes for leaf in jax.tree.leaves(way_back))

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_largest_memory_of_a_process_falls():
    def peak(remat):
        before, after = map(float, run("remat", remat).split()[-2:])
        return after - before

    assert peak(1) < 0.85 * peak(0)

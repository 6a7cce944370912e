"""Every family against timm's networks with random weights; skipped without torch and timm."""

import functools

import numpy as np
import pytest
from keras import ops

from kgarden.backbones import make_backbone
from kgarden.weights import timm as names
from kgarden.weights.state_dict import load_state_dict
from kgarden.weights.torchvision import resnet_names

torch = pytest.importorskip("torch", reason="torch is not installed here")
timm = pytest.importorskip("timm", reason="timm is not installed here", exc_type=ImportError)

PAIRS = {
    "mobilenet_v2": (
        "mobilenetv2_100",
        functools.partial(names.inverted_residual_names, repeats=names.MOBILENET_V2),
    ),
    "efficientnet_lite0": (
        "tf_efficientnet_lite0",
        functools.partial(names.inverted_residual_names, repeats=names.EFFICIENTNET_LITE0),
    ),
    "dla34": ("dla34", names.dla_names),
    "resnet18": ("resnet18", resnet_names),
    "resnet152": ("resnet152", resnet_names),
    "resnext101_32x4d": ("resnext101_32x4d", resnet_names),
    "res2net50": ("res2net50d", names.res2net_names),
    "seresnext50_32x4d": ("legacy_seresnext50_32x4d", names.seresnext_names),
    "senet154": ("legacy_senet154", names.senet_names),
}
LIGHT = {"mobilenet_v2", "efficientnet_lite0", "dla34", "resnet18"}
SETTINGS = {"res2net50": {"pool_at_stride_1": True}}


@pytest.mark.parametrize(
    "name", [name if name in LIGHT else pytest.param(name, marks=pytest.mark.slow) for name in PAIRS]
)
def test_features_equal_timm(name):
    theirs, table = PAIRS[name]
    torch.manual_seed(0)
    levels = (2, 3, 4, 5) if name == "dla34" else (1, 2, 3, 4)  # DLA's maps begin at stride 1
    network = timm.create_model(theirs, features_only=True, out_indices=levels).eval()
    state = random_statistics({key: value.numpy() for key, value in network.state_dict().items()})
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    x = np.random.default_rng(1).normal(size=(1, 64, 96, 3)).astype("float32")
    with torch.no_grad():
        expected = network(torch.from_numpy(x.transpose(0, 3, 1, 2)))

    backbone = make_backbone({"name": name, "norm": "frozen_bn", **SETTINGS.get(name, {})})
    backbone.build((None, None, None, 3))
    load_state_dict(backbone, state, table(""), ignore=names.IGNORE)
    for got, wanted in zip(backbone(x), expected, strict=True):
        wanted = wanted.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ops.convert_to_numpy(got), wanted, atol=1e-4 * wanted.std())


def random_statistics(state):
    """Batch norms that neither vanish nor grow, instead of those of a new network."""
    rng = np.random.default_rng(0)
    change = {
        "running_mean": lambda old: rng.normal(size=old.shape, scale=0.2),
        "running_var": lambda old: rng.uniform(0.8, 1.2, old.shape),
    }
    return {
        key: change.get(key.rsplit(".", 1)[-1], lambda old: old)(value).astype(value.dtype)
        for key, value in state.items()
    }

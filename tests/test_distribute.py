"""Who shares a batch, and what is refused."""

import json

import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from kgarden.distribute import strategy_of  # noqa: E402
from kgarden.schema import UserError  # noqa: E402


def test_one_device_needs_no_strategy():
    assert strategy_of(1, 7) is tf.distribute.get_strategy()
    if not tf.config.list_physical_devices("GPU"):
        assert strategy_of("all", 7) is tf.distribute.get_strategy()


def test_a_cpu_is_not_split_after_tensorflow_has_started():
    tf.constant(1) + 1
    with pytest.raises(UserError, match="start a new process"):
        strategy_of(2 + len(tf.config.list_logical_devices("CPU")), 8)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}, "names 2 workers"),
        ("{", "not understood"),
        ([1], "not understood"),
    ],
)
def test_several_machines_are_refused(monkeypatch, config, message):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UserError, match=message):
        strategy_of(1, 8)


def test_a_cluster_of_one_is_this_machine(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1"]}, "task": {}}))
    assert strategy_of(1, 8) is tf.distribute.get_strategy()

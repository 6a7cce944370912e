"""Distribution on TensorFlow: construction from TF_CONFIG, and what is refused."""

import json

import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from kgarden.errors import TrainingFailed, UserError  # noqa: E402
from kgarden.training import distribution  # noqa: E402


def test_one_device_needs_no_strategy():
    assert distribution.make_cluster(1).strategy is tf.distribute.get_strategy()
    if not tf.config.list_physical_devices("GPU"):
        assert distribution.make_cluster("all").strategy is tf.distribute.get_strategy()


def test_splitting_the_cpu_after_initialisation_is_rejected():
    tf.constant(1) + 1
    with pytest.raises(UserError, match="start a new process"):
        distribution.make_cluster(2 + len(tf.config.list_logical_devices("CPU")))


def test_batch_size_must_be_divisible_by_replicas():
    cluster = distribution.Cluster(tf.distribute.get_strategy())
    cluster.check(7)
    cluster.check(8, micro_batches=4)
    with pytest.raises(UserError, match="8 is not divisible by 1 replicas x 3 micro-batches"):
        cluster.check(8, micro_batches=3)


def set_tf_config(monkeypatch, workers, index, role="worker"):
    config = {"cluster": workers, "task": {"type": role, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))


def test_the_chief_has_index_zero(monkeypatch):
    set_tf_config(monkeypatch, {"worker": ["b:1", "c:1"], "chief": ["a:1"]}, 1)
    assert distribution._read_tf_config() == (("a:1", "b:1", "c:1"), 2)
    set_tf_config(monkeypatch, {"worker": ["b:1", "c:1"], "chief": ["a:1"]}, 0, "chief")
    assert distribution._read_tf_config() == (("a:1", "b:1", "c:1"), 0)
    set_tf_config(monkeypatch, {"worker": ["a:1", "b:1"]}, "1")  # some launchers write the index as a string
    assert distribution._read_tf_config() == (("a:1", "b:1"), 1)


@pytest.mark.parametrize(
    "config, message",
    [
        ("{", "cannot be parsed"),
        ("[1]", "cannot be parsed"),
        ({"cluster": {"worker": 3}}, "cannot be parsed"),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}},
            "no worker 2 among",
        ),
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}, "no chief 0"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}, "twice"),
        ({"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {}}, "role 'ps' is not supported"),
    ],
)
def test_invalid_tf_config_is_rejected(monkeypatch, config, message):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UserError, match=message):
        distribution.make_cluster(1)


def test_tf_config_with_one_worker_is_a_single_machine(monkeypatch):
    set_tf_config(monkeypatch, {"worker": ["a:1"]}, 0)
    assert distribution.make_cluster(1) == distribution.Cluster(tf.distribute.get_strategy())


def test_a_worker_without_gpus_has_one_replica(monkeypatch):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    set_tf_config(monkeypatch, {"worker": ["a:1", "b:1"]}, 0)
    with pytest.raises(UserError, match="a worker without GPUs has one"):
        distribution.make_cluster(2)


LOST = tf.errors.UnavailableError(None, None, "recvmsg:Connection reset by peer")
ABORTED = tf.errors.InternalError(None, None, "node x\nCollective ops is aborted by: a task has crashed")
FULL = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


@pytest.mark.parametrize("error, reason", [(LOST, "UnavailableError"), (ABORTED, "a task has crashed")])
def test_a_lost_worker_is_reported_in_one_line(error, reason):
    cluster = distribution.Cluster(tf.distribute.get_strategy(), 1, ("a:1", "b:1"))
    with pytest.raises(TrainingFailed, match="worker 1 of 2: another worker does not respond") as caught:
        with cluster.fail_together():
            raise error
    assert "\n" not in str(caught.value) and reason in str(caught.value)


@pytest.mark.parametrize("error, workers", [(FULL, ("a:1", "b:1")), (LOST, ())])
def test_an_error_of_this_worker_is_raised_unchanged(error, workers):
    with pytest.raises(type(error)):
        with distribution.Cluster(tf.distribute.get_strategy(), 0, workers).fail_together():
            raise error

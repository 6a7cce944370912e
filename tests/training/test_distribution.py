"""Who shares a batch, and what is refused."""

import json

import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from kgarden.errors import TrainingFailed, UserError  # noqa: E402
from kgarden.training import distribution  # noqa: E402


def test_one_device_needs_no_strategy():
    assert distribution.team_of(1).strategy is tf.distribute.get_strategy()
    if not tf.config.list_physical_devices("GPU"):
        assert distribution.team_of("all").strategy is tf.distribute.get_strategy()


def test_a_cpu_is_not_split_after_tensorflow_has_started():
    tf.constant(1) + 1
    with pytest.raises(UserError, match="start a new process"):
        distribution.team_of(2 + len(tf.config.list_logical_devices("CPU")))


def test_a_batch_must_be_dealt_evenly():
    team = distribution.Team(tf.distribute.get_strategy())
    team.check(7)
    team.check(8, micro_batches=4)
    with pytest.raises(UserError, match="8 pictures cannot be dealt to 1 replicas in 3 micro-batches"):
        team.check(8, micro_batches=3)


def configured(monkeypatch, workers, index, role="worker"):
    config = {"cluster": workers, "task": {"type": role, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))


def test_the_chief_comes_first(monkeypatch):
    configured(monkeypatch, {"worker": ["b:1", "c:1"], "chief": ["a:1"]}, 1)
    assert distribution._cluster() == (("a:1", "b:1", "c:1"), 2)
    configured(monkeypatch, {"worker": ["b:1", "c:1"], "chief": ["a:1"]}, 0, "chief")
    assert distribution._cluster() == (("a:1", "b:1", "c:1"), 0)
    configured(monkeypatch, {"worker": ["a:1", "b:1"]}, "1")  # some launchers write the number as a word
    assert distribution._cluster() == (("a:1", "b:1"), 1)


@pytest.mark.parametrize(
    "config, message",
    [
        ("{", "not understood"),
        ("[1]", "not understood"),
        ({"cluster": {"worker": 3}}, "not understood"),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}},
            "no worker 2 among",
        ),
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}, "no chief 0"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}, "twice"),
        ({"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {}}, "the role ps has no work"),
    ],
)
def test_a_cluster_that_cannot_be(monkeypatch, config, message):
    monkeypatch.setenv("TF_CONFIG", config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(UserError, match=message):
        distribution.team_of(1)


def test_a_cluster_of_one_is_this_machine(monkeypatch):
    configured(monkeypatch, {"worker": ["a:1"]}, 0)
    assert distribution.team_of(1) == distribution.Team(tf.distribute.get_strategy())


def test_a_worker_without_gpus_has_one_replica(monkeypatch):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    configured(monkeypatch, {"worker": ["a:1", "b:1"]}, 0)
    with pytest.raises(UserError, match="a worker without GPUs has one"):
        distribution.team_of(2)


LOST = tf.errors.UnavailableError(None, None, "recvmsg:Connection reset by peer")
ABORTED = tf.errors.InternalError(None, None, "node x\nCollective ops is aborted by: a task has crashed")
FULL = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


@pytest.mark.parametrize("error, said", [(LOST, "UnavailableError"), (ABORTED, "a task has crashed")])
def test_a_lost_worker_is_told_in_one_line(error, said):
    team = distribution.Team(tf.distribute.get_strategy(), 1, ("a:1", "b:1"))
    with pytest.raises(TrainingFailed, match="worker 1 of 2: another worker no longer answers") as told:
        with team.one_for_all():
            raise error
    assert "\n" not in str(told.value) and said in str(told.value)


@pytest.mark.parametrize("error, workers", [(FULL, ("a:1", "b:1")), (LOST, ())])
def test_a_fault_of_its_own_stays_what_it_is(error, workers):
    with pytest.raises(type(error)):
        with distribution.Team(tf.distribute.get_strategy(), 0, workers).one_for_all():
            raise error

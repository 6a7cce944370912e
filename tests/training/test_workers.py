"""Several workers, here two processes on loopback, train as one machine does; losing one ends all."""

import json
import socket
import time

import numpy as np
import pytest
from support.programs.forks import forks

from tfrecords.converters import shapes

pytestmark = pytest.mark.tensorflow

PATIENCE_S = 300
KILLED = -9


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def start():
    """start([argument, ...], cluster, index): a process of support/programs/workers.py."""

    def started(arguments, cluster=None, index=0, **more):
        if cluster:
            task = {"type": "worker", "index": index}
            more["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": task})
        return forks().start("workers", *arguments, **more)

    return started


@pytest.fixture(scope="module")
def two_workers(start):
    """[(exit code, what it said), ...] of a chief and a second worker; further arguments for the second."""

    def ended(*arguments, of_second=()):
        cluster = [f"localhost:{port}" for port in free_ports(2)]
        second = start([*arguments, *of_second], cluster, 1)
        chief = start(arguments, cluster, 0)
        return [chief.ended(PATIENCE_S), second.ended(PATIENCE_S)]

    return ended


def state_of(folder):
    with np.load(folder / "checkpoint" / "latest.npz") as stored:
        return {name: stored[name] for name in stored.files if name != "words"}


def assert_near(one, other, rtol):
    """Every array within a share of its own largest number."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        size = np.abs(value).max() if value.size else 0
        np.testing.assert_allclose(other[name], value, atol=rtol * max(size, 1e-3), rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training pictures in one shard: fewer than workers."""
    folder = tmp_path_factory.mktemp("workers")
    shapes.build(folder / "train", count=24, seed=0, size_hw=(96, 128), shards=1)
    shapes.build(folder / "val", count=6, seed=1, size_hw=(96, 128))
    return folder


@pytest.fixture(scope="module")
def whole(data, two_workers, tmp_path_factory):
    """The run of two workers that nobody disturbed."""
    folder = tmp_path_factory.mktemp("two") / "run"
    for code, said in two_workers(data, folder, 1):
        assert code == 0, said
    return folder


def test_two_workers_equal_two_replicas(start, data, whole, tmp_path):
    code, said = start([data, tmp_path / "run", 2]).ended(PATIENCE_S)
    assert code == 0, said
    assert_near(state_of(tmp_path / "run"), state_of(whole), 2e-3)
    ours, theirs = (json.loads((run / "evaluation.json").read_text()) for run in (tmp_path / "run", whole))
    assert ours["metrics"]["ap"] == pytest.approx(theirs["metrics"]["ap"], abs=1)


@pytest.mark.slow
def test_killed_worker_ends_the_others_and_all_resume(two_workers, data, whole, tmp_path):
    run = tmp_path / "run"
    began = time.monotonic()
    (code, said), (second, _) = two_workers(data, run, 1, of_second=("after a step", 4))
    assert second == KILLED
    assert code == 1 and time.monotonic() - began < PATIENCE_S, said
    assert "worker 0 of 2: another worker does not respond" in said
    for code, said in two_workers(data, run, 1):
        assert code == 0, said
    assert_near(state_of(whole), state_of(run), 1e-5)


def test_worker_that_never_connects(start, data, tmp_path):
    cluster = [f"localhost:{port}" for port in free_ports(2)]
    code, said = start([data, tmp_path / "run", 1], cluster, 0, WAIT_S="5").ended(PATIENCE_S)
    assert code == 1 and f"waiting for {cluster[1]}" in said


@pytest.mark.slow
def test_signal_to_one_worker_stops_all_at_the_same_step(two_workers, data, whole, tmp_path):
    for code, said in two_workers(data, tmp_path / "run", 1, of_second=("told to stop", 3)):
        assert code == 4, said
    for code, said in two_workers(data, tmp_path / "run", 1):
        assert code == 0, said
    assert_near(state_of(whole), state_of(tmp_path / "run"), 1e-5)


@pytest.mark.slow
def test_run_directory_that_is_not_shared(start, data, tmp_path):
    cluster = [f"localhost:{port}" for port in free_ports(2)]
    second = start([data, tmp_path / "elsewhere", 1], cluster, 1)
    chief = start([data, tmp_path / "run", 1], cluster, 0)
    code, said = second.ended(PATIENCE_S)
    assert code == 2 and "the same command on all workers, with a --run on shared storage" in said
    code, said = chief.ended(PATIENCE_S)
    assert code == 1 and "another worker does not respond" in said

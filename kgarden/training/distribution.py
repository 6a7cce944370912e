"""Distribution on TensorFlow: one device, MirroredStrategy, or MultiWorkerMirroredStrategy (TF_CONFIG).

`replicas` of the recipe sets the number of devices of a machine; TF_CONFIG in the environment lists several
machines, each of which runs the same command. The batch size of a recipe is the global one, over all replicas
of all machines.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import signal
from collections.abc import Callable

import keras
import tensorflow as tf

from kgarden.errors import TrainingFailed, UserError

WAIT_S = 600  # seconds that a worker waits for the others at start-up


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All replicas of a training, and the index of this worker among them.

    Args:
        strategy: tf.distribute.Strategy; TensorFlow's default one for a single device.
        index:    of this worker; 0 is the chief, the only one that evaluates and writes files.
        workers:  addresses of all workers; empty on a single machine.
    """

    strategy: tf.distribute.Strategy
    index: int = 0
    workers: tuple[str, ...] = ()

    @property
    def is_chief(self) -> bool:
        """Whether this worker evaluates and writes files."""
        return self.index == 0

    @property
    def worker_position(self) -> tuple[int, int]:
        """(index of this worker, number of workers): which slice of each batch this worker loads."""
        return self.index, max(len(self.workers), 1)

    @property
    def local_replicas(self) -> int:
        """Number of replicas on this machine."""
        return self.strategy.num_replicas_in_sync // self.worker_position[1]

    def check(self, batch_size: int, micro_batches: int = 1) -> None:
        """Checks that a batch can be divided among all replicas and micro-batches.

        Raises:
            UserError: it is not divisible, or the backend does not support it.
        """
        count = self.strategy.num_replicas_in_sync * micro_batches
        if batch_size % count:
            raise UserError(
                f"data.batch_size: {batch_size} is not divisible by {count // micro_batches} replicas x "
                f"{micro_batches} micro-batches; use a multiple of {count}"
            )
        backend = keras.backend.backend()
        if count > 1 and backend != "tensorflow":
            raise UserError(
                f"replicas and schedule.micro_batches are not supported on {backend}; "
                f"use KERAS_BACKEND=tensorflow"
            )

    def distribute_dataset(self, batches):
        """Returns a dataset for `fit` that gives the next element of `batches` to each replica in turn."""
        if self.strategy.num_replicas_in_sync == 1:
            return batches
        return self.strategy.distribute_datasets_from_function(lambda context: batches)

    def any(self, *flags):
        """Returns whether each flag is set on any worker; a collective call.   tuple of bool."""
        if not self.workers:
            return tuple(map(bool, flags))
        return tuple((self._sum([float(flag) for flag in flags]) > 0).tolist())

    def barrier(self):
        """Blocks until all workers have reached this call."""
        self.any(True)

    def all_equal(self, number):
        """Returns whether all workers pass the same number; a collective call."""
        count = self.worker_position[1]
        mean, squares = (
            self._sum([number, number**2]) / (self.local_replicas * count) if count > 1 else (0, 0)
        )
        return squares == mean**2

    def _sum(self, values):
        """Returns sums over all replicas."""
        sums = _sum_over_replicas(self.strategy, tf.constant(values, tf.float64))
        return self.strategy.experimental_local_results(sums)[0].numpy()

    @contextlib.contextmanager
    def fail_together(self):
        """Ends this worker with a one-line error when another worker is lost.

        Raises:
            TrainingFailed: another worker does not respond.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if not self.workers or not _is_lost(error):
                raise
            raise TrainingFailed(
                f"worker {self.index} of {len(self.workers)}: another worker does not respond "
                f"({_reason(error)}); run the same command on all workers to resume from the last checkpoint"
            ) from error


@tf.function(autograph=False)
def _sum_over_replicas(strategy, values):
    def summed(values):
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

    return strategy.run(summed, args=(values,))


def _is_lost(error):
    """Returns whether another worker is the cause, rather than an error of this one (out of memory)."""
    lost = tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError
    return isinstance(error, lost) or "aborted by" in (error.message or "")


def _reason(error):
    """Returns TensorFlow's reason for the loss of a worker, in a few words."""
    lines = [line.strip() for line in (error.message or "").splitlines()]
    reason = next((line for line in lines if "aborted by" in line), lines[0] if lines else "")
    return reason.partition("aborted by: ")[2][:100] or type(error).__name__


# --- construction -----------------------------------------------------------------------------------


def make_cluster(replicas: int | str, log: Callable[[str], None] = print) -> Cluster:
    """Builds the cluster; must be called before TensorFlow has used a device.

    Args:
        replicas: number of devices of each machine, or "all".
        log:      function of a line, called before a long wait.
    Returns:
        Cluster.
    Raises:
        UserError: fewer devices than requested, or an invalid TF_CONFIG.
    """
    workers, index = _read_tf_config()
    if len(workers) > 1:
        return Cluster(_multi_worker_strategy(replicas, workers, index, log), index, workers)
    if replicas == 1:
        return Cluster(tf.distribute.get_strategy())
    devices = _devices(replicas)
    return Cluster(
        tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
    )


def make_deterministic() -> None:
    """Enables deterministic ops for the rest of the process: bitwise reproducible on the same machine."""
    tf.config.experimental.enable_op_determinism()


def _read_tf_config():
    """Returns (addresses of the workers, index of this one) from TF_CONFIG; ((), 0) without it."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return (), 0
    example = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        roles, task = config.get("cluster", {}), config.get("task", {})
        kinds = [(role, n) for role in ("chief", "worker") for n in range(len(roles.get(role, ())))]
        addresses = tuple(roles[role][n] for role, n in kinds)
        me = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, AttributeError, TypeError, KeyError):
        raise UserError(f"TF_CONFIG: cannot be parsed; use the form {example}") from None
    if others := sorted(set(roles) - {"chief", "worker"}):
        raise UserError(
            f"TF_CONFIG: role {others[0]!r} is not supported; list all machines under 'worker', "
            f"for example {example}"
        )
    if len(addresses) > 1 and me not in kinds:
        raise UserError(f"TF_CONFIG: there is no {me[0]} {me[1]} among {', '.join(addresses)}")
    if len(set(addresses)) < len(addresses):
        raise UserError(f"TF_CONFIG: an address is listed twice: {', '.join(addresses)}")
    return addresses, kinds.index(me) if len(addresses) > 1 else 0


def _multi_worker_strategy(replicas, workers, index, log):
    """Returns the strategy of several machines, once all of them are connected."""
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"TF_CONFIG: several workers are not supported on {keras.backend.backend()}; "
            f"use KERAS_BACKEND=tensorflow"
        )
    gpus = tf.config.list_physical_devices("GPU")
    if replicas != "all":
        if replicas > max(len(gpus), 1):
            raise UserError(
                f"replicas: {replicas} requested, this worker has {len(gpus)} GPUs"
                if gpus
                else "replicas: a worker without GPUs has one replica; start more workers instead"
            )
        tf.config.set_visible_devices(gpus[:replicas], "GPU")
    others = ", ".join(address for number, address in enumerate(workers) if number != index)
    log(f"worker {index} of {len(workers)}: waiting for {others}; exits if they do not connect in {WAIT_S} s")
    with _exit_after(WAIT_S):
        cluster = Cluster(tf.distribute.MultiWorkerMirroredStrategy(), index, workers)
        with cluster.fail_together():
            cluster.barrier()
    return cluster.strategy


@contextlib.contextmanager
def _exit_after(seconds):
    """Exits with code 1 if the block takes longer; Ctrl-C exits immediately.

    TensorFlow waits for its peers in native code that holds the interpreter lock, so neither a thread nor a
    signal handler of Python can end the wait.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    with open(os.devnull, "w") as sink:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sink)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGINT, interrupt)


def _devices(replicas):
    """Returns the names of the devices: GPUs if there are any, else logical devices of the CPU."""
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if not gpus:
        return [f"CPU:{n}" for n in range(1 if replicas == "all" else _split_cpu(replicas))]
    if replicas != "all" and replicas > len(gpus):
        raise UserError(f"replicas: {replicas} requested, this machine has {len(gpus)} GPUs")
    return [gpu.name for gpu in gpus[: len(gpus) if replicas == "all" else replicas]]


def _split_cpu(count):
    """Splits the CPU into logical devices: not faster, but it behaves like several GPUs."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except (RuntimeError, ValueError):
        if len(tf.config.list_logical_devices("CPU")) < count:
            raise UserError(
                f"replicas: {count} on a CPU must be set before TensorFlow is initialised; "
                "start a new process"
            ) from None
    return count

"""Who shares a batch: devices of this machine, and other machines.

`replicas` of the recipe chooses devices of a machine (`MirroredStrategy`); TF_CONFIG in the environment names
several machines (`MultiWorkerMirroredStrategy`), each of which runs the same command. The batch size of a
recipe is that of all replicas of all machines together.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import signal

import keras
import tensorflow as tf

from kgarden.errors import TrainingFailed, UserError

WAIT_S = 600  # how long a worker waits for the others when it starts


@dataclasses.dataclass(frozen=True)
class Team:
    """Everyone who takes part in a step.

    Args:
        strategy: tf.distribute.Strategy; TensorFlow's default one for a single device.
        index:    of this worker; 0 is the chief, who alone evaluates and writes.
        workers:  addresses of all workers; empty on a single machine.
    """

    strategy: tf.distribute.Strategy
    index: int = 0
    workers: tuple = ()

    @property
    def is_chief(self):
        return self.index == 0

    @property
    def share(self):
        """Which part of each batch this worker prepares: (index, of how many)."""
        return self.index, max(len(self.workers), 1)

    @property
    def pieces(self):
        """Into how many pieces that part goes: one for each replica of this machine."""
        return self.strategy.num_replicas_in_sync // self.share[1]

    def check(self, batch_size, micro_batches=1):
        """Can a batch be dealt to everyone?

        Raises:
            UserError: no; or it can only on another backend.
        """
        count = self.strategy.num_replicas_in_sync * micro_batches
        if batch_size % count:
            raise UserError(
                f"data.batch_size: {batch_size} pictures cannot be dealt to {count // micro_batches} "
                f"replicas in {micro_batches} micro-batches: take a multiple of {count}"
            )
        backend = keras.backend.backend()
        if count > 1 and backend != "tensorflow":
            raise UserError(
                f"replicas, schedule.micro_batches: need the TensorFlow backend, this is {backend}"
            )

    def dealt(self, batches):
        """A dataset of pieces -> what `fit` takes: in each step every replica gets the next piece."""
        if self.strategy.num_replicas_in_sync == 1:
            return batches
        return self.strategy.distribute_datasets_from_function(lambda context: batches)

    def any(self, *flags):
        """Whether a flag is up on any worker; all workers must ask at the same time.   tuple of bool."""
        if not self.workers:
            return tuple(map(bool, flags))
        return tuple((self._sum([float(flag) for flag in flags]) > 0).tolist())

    def meet(self):
        """Go on when everyone has come here."""
        self.any(True)

    def agree(self, number):
        """Whether all workers have the same number."""
        count = self.share[1]
        mean, squares = self._sum([number, number**2]) / (self.pieces * count) if count > 1 else (0, 0)
        return squares == mean**2

    def _sum(self, values):
        """Sums over all replicas."""
        sums = _everywhere(self.strategy, tf.constant(values, tf.float64))
        return self.strategy.experimental_local_results(sums)[0].numpy()

    @contextlib.contextmanager
    def one_for_all(self):
        """When a worker is lost the others cannot go on: they end in one line.

        Raises:
            TrainingFailed: a worker no longer answers.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if not self.workers or not _is_lost(error):
                raise
            raise TrainingFailed(
                f"worker {self.index} of {len(self.workers)}: another worker no longer answers "
                f"({_reason(error)}); start the same command on all: they go on from the last checkpoint"
            ) from error


@tf.function(autograph=False)
def _everywhere(strategy, values):
    def summed(values):
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))

    return strategy.run(summed, args=(values,))


def _is_lost(error):
    """Whether another worker is the cause; faults of this one, such as a full memory, stay what they are."""
    gone = tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError
    return isinstance(error, gone) or "aborted by" in (error.message or "")


def _reason(error):
    """What TensorFlow says of a lost worker, in a few words."""
    lines = [line.strip() for line in (error.message or "").splitlines()]
    told = next((line for line in lines if "aborted by" in line), lines[0] if lines else "")
    return told.partition("aborted by: ")[2][:100] or type(error).__name__


# --- making a team --------------------------------------------------------------------------------


def team_of(replicas, say=print):
    """Everyone who takes part; must be asked for before TensorFlow has used a device.

    Args:
        replicas: how many devices of each machine work together, or "all".
        say:      function of a line, for what takes long.
    Returns:
        Team.
    Raises:
        UserError: fewer devices than asked for, or a TF_CONFIG that is wrong.
    """
    workers, index = _cluster()
    if len(workers) > 1:
        return Team(_joined(replicas, workers, index, say), index, workers)
    if replicas == 1:
        return Team(tf.distribute.get_strategy())
    devices = _devices(replicas)
    return Team(tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy())


def be_deterministic():
    """Sums in a fixed order, for the rest of the process: the same bits on the same machine."""
    tf.config.experimental.enable_op_determinism()


def _cluster():
    """(addresses of the workers, number of this one), of TF_CONFIG; ((), 0) without it."""
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
        raise UserError(f"TF_CONFIG: not understood; it looks like {example}") from None
    if others := sorted(set(roles) - {"chief", "worker"}):
        raise UserError(f"TF_CONFIG: the role {others[0]} has no work here; name workers, as {example}")
    if len(addresses) > 1 and me not in kinds:
        raise UserError(f"TF_CONFIG: there is no {me[0]} {me[1]} among {', '.join(addresses)}")
    if len(set(addresses)) < len(addresses):
        raise UserError(f"TF_CONFIG: an address stands there twice: {', '.join(addresses)}")
    return addresses, kinds.index(me) if len(addresses) > 1 else 0


def _joined(replicas, workers, index, say):
    """The strategy of several machines, once all of them have come."""
    if keras.backend.backend() != "tensorflow":
        raise UserError("TF_CONFIG: several workers need the TensorFlow backend")
    gpus = tf.config.list_physical_devices("GPU")
    if replicas != "all":
        if replicas > max(len(gpus), 1):
            raise UserError(
                f"replicas: {replicas} asked for, a worker has {len(gpus)} GPUs"
                if gpus
                else "replicas: a worker without GPUs has one; start more workers instead"
            )
        tf.config.set_visible_devices(gpus[:replicas], "GPU")
    others = ", ".join(address for number, address in enumerate(workers) if number != index)
    say(f"worker {index} of {len(workers)}, waiting for {others}; ends if they do not come within {WAIT_S} s")
    with _for_at_most(WAIT_S):
        team = Team(tf.distribute.MultiWorkerMirroredStrategy(), index, workers)
        with team.one_for_all():
            team.meet()
    return team.strategy


@contextlib.contextmanager
def _for_at_most(seconds):
    """Exit with code 1 if this takes longer; Ctrl-C ends it at once.

    TensorFlow waits for its peers without letting Python run, so neither a thread nor a signal handler of
    Python can end the wait.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGINT, interrupt)


def _devices(replicas):
    """Names of the devices that work together: GPUs if there are any, else parts of the CPU."""
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if not gpus:
        return [f"CPU:{n}" for n in range(1 if replicas == "all" else _split_cpu(replicas))]
    if replicas != "all" and replicas > len(gpus):
        raise UserError(f"replicas: {replicas} asked for, this machine has {len(gpus)} GPUs")
    return [gpu.name for gpu in gpus[: len(gpus) if replicas == "all" else replicas]]


def _split_cpu(count):
    """Several logical devices on one CPU: nothing is faster, but everything works as on several GPUs."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except (RuntimeError, ValueError):
        if len(tf.config.list_logical_devices("CPU")) < count:
            raise UserError(
                f"replicas: {count} on a CPU must be chosen before TensorFlow has started: "
                "start a new process"
            ) from None
    return count

"""Which devices of this machine share a batch.

`replicas` of the recipe: one, some or all, by a `MirroredStrategy`. The batch size of a recipe is that of all
replicas together. Several machines do not train together yet; a TF_CONFIG that asks for it is refused.
"""

import json
import os

import keras
import tensorflow as tf

from kgarden.schema import UserError


def strategy_of(replicas, batch_size, micro_batches=1):
    """The strategy of a training; must be asked for before TensorFlow has used a device.

    Args:
        replicas:      how many devices of this machine work together, or "all".
        batch_size:    of all replicas together.
        micro_batches: parts in which each replica takes its share.
    Returns:
        tf.distribute.Strategy; TensorFlow's default one for a single device.
    Raises:
        UserError: fewer devices than asked for, a batch that cannot be dealt out, or several workers.
    """
    _refuse_workers()
    if replicas == 1:
        strategy = tf.distribute.get_strategy()
    else:
        devices = _devices(replicas)
        strategy = (
            tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
        )
    count = strategy.num_replicas_in_sync * micro_batches
    if batch_size % count:
        raise UserError(
            f"data.batch_size: {batch_size} pictures cannot be dealt to {count // micro_batches} replicas in "
            f"{micro_batches} micro-batches: take a multiple of {count}"
        )
    backend = keras.backend.backend()
    if count > 1 and backend != "tensorflow":
        raise UserError(f"replicas, schedule.micro_batches: need the TensorFlow backend, this is {backend}")
    return strategy


def be_deterministic():
    """Sums in a fixed order, for the rest of the process: the same bits on the same machine."""
    tf.config.experimental.enable_op_determinism()


def _refuse_workers():
    """A cluster in TF_CONFIG would be ignored silently: training on several machines is not built yet."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return
    try:
        roles = json.loads(text).get("cluster", {})
        workers = [address for role in ("chief", "worker") for address in roles.get(role, ())]
    except (ValueError, AttributeError, TypeError):
        raise UserError("TF_CONFIG: not understood; unset it: one machine trains at a time") from None
    if len(workers) > 1:
        raise UserError(
            f"TF_CONFIG names {len(workers)} workers: training on several machines is not built yet; unset it"
        )


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

"""Data parallelism on the JAX backend over the devices of one machine, with `keras.distribution`.

    with data_parallel("all", batch_size=16).scope():
        detector = kgarden.build_model(recipe, num_classes=80)
        detector.compile(optimizer=kgarden.build_optimizer(recipe), jit_compile=True)
        detector.fit(batches, steps_per_epoch=1000, shuffle=False)

Every device holds the whole model and a slice of the batch. The batch is one global array, and a sum in the
program is a sum over all devices: losses divide by the objects of the whole batch, batch normalisation uses
the statistics of the whole batch, and the weights equal those of one device, up to rounding. The counterpart
on TensorFlow is kgarden/training/distribution.py.
"""

import contextlib

import keras

from kgarden.errors import UserError


def data_parallel(replicas: int | str = "all", batch_size: int | None = None) -> "DataParallel":
    """Builds a distribution over devices of this machine; build, compile and fit inside its `scope()`.

    Args:
        replicas:   number of devices, or "all": GPUs or TPUs if there are any, else devices of the CPU
                    (XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight).
        batch_size: global batch size, checked immediately; None: it is checked at the first batch.
    Returns:
        DataParallel.
    Raises:
        UserError: another backend, too few devices, several machines, or an indivisible batch size.
    """
    backend = keras.backend.backend()
    if backend != "jax":
        raise UserError(f"data_parallel is not supported on {backend}; use KERAS_BACKEND=jax")
    devices = keras.distribution.list_devices()
    count = len(devices) if replicas == "all" else replicas
    if type(count) is not int or count < 1:
        raise UserError(f'replicas: {replicas!r} is not a number of devices; use 1, 2, ... or "all"')
    if count > len(devices):
        raise UserError(f"replicas: {count} requested, JAX finds {len(devices)} ({', '.join(devices)})")
    distribution = DataParallel(devices=devices[:count])
    if distribution.num_processes > 1:
        raise UserError("data_parallel: several processes are not supported on JAX; use one machine")
    if batch_size is not None:
        distribution.check(batch_size)
    return distribution


class DataParallel(keras.distribution.DataParallel):
    """keras.distribution.DataParallel with a one-line error for an indivisible batch."""

    def check(self, batch_size: int) -> None:
        """Raises UserError if the batch size is not divisible by the number of devices."""
        count = self.num_model_replicas
        if batch_size % count:
            raise UserError(
                f"data.batch_size: {batch_size} is not divisible by {count} devices; "
                f"use a multiple of {count}"
            )

    def get_data_layout(self, data_shape):
        self.check(data_shape[0])
        return super().get_data_layout(data_shape)

    @contextlib.contextmanager
    def scope(self):
        """Distributes what is built and fitted inside the block over the devices."""
        with super().scope():
            try:
                yield
            except UserError:
                raise
            except ValueError as error:
                # Keras requests layouts at the first batch only; JAX rejects a smaller batch later.
                if "evenly divide" not in str(error):
                    raise
                raise UserError(
                    f"a batch is not divisible by {self.num_model_replicas} devices; every batch, including "
                    f"the last one, must hold a multiple of {self.num_model_replicas} images"
                ) from error

"""Several devices of one machine share a batch on the JAX backend, through `keras.distribution`.

    with data_parallel("all", batch_size=16).scope():
        detector = kgarden.build_model(recipe, num_classes=80)
        detector.compile(optimizer=kgarden.build_optimizer(recipe), jit_compile=True)
        detector.fit(batches, steps_per_epoch=1000, shuffle=False)

Every device holds the whole model and a part of the pictures. The batch stays one array, and a sum in the
program is a sum over all devices: losses divide by the objects of the whole batch, batch norm sees all of it,
and the weights are those of one device, up to rounding. On TensorFlow,
kgarden/training/distribution.py does this.
"""

import contextlib

import keras

from kgarden.errors import UserError


def data_parallel(replicas="all", batch_size=None):
    """A distribution over devices of this machine; build, compile and fit inside of its `scope()`.

    Args:
        replicas:   how many devices share a batch, or "all": GPUs or TPUs if there are any, else parts of the
                    CPU: XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight.
        batch_size: of all devices together, to be looked at now; None: when the first batch comes.
    Returns:
        DataParallel.
    Raises:
        UserError: another backend, too few devices, several machines, or a batch that cannot be dealt out.
    """
    backend = keras.backend.backend()
    if backend != "jax":
        raise UserError(f"data_parallel: needs the JAX backend, this is {backend}: set KERAS_BACKEND=jax")
    devices = keras.distribution.list_devices()
    count = len(devices) if replicas == "all" else replicas
    if type(count) is not int or count < 1:
        raise UserError(f'replicas: {replicas!r} is no number of devices: 1, 2, ... or "all"')
    if count > len(devices):
        raise UserError(f"replicas: {count} asked for, JAX sees {len(devices)} ({', '.join(devices)})")
    distribution = DataParallel(devices=devices[:count])
    if distribution.num_processes > 1:
        raise UserError("data_parallel: one machine trains at a time on JAX; do not join several processes")
    if batch_size is not None:
        distribution.check(batch_size)
    return distribution


class DataParallel(keras.distribution.DataParallel):
    """Keras' own, which says in one line that a batch cannot be dealt out."""

    def check(self, batch_size):
        """Raises UserError for a batch that cannot be dealt out."""
        count = self.num_model_replicas
        if batch_size % count:
            raise UserError(
                f"data.batch_size: {batch_size} pictures cannot be dealt to {count} devices: "
                f"take a multiple of {count}"
            )

    def get_data_layout(self, data_shape):
        self.check(data_shape[0])
        return super().get_data_layout(data_shape)

    @contextlib.contextmanager
    def scope(self):
        """What is built and fitted inside is spread over the devices."""
        with super().scope():
            try:
                yield
            except UserError:
                raise
            except ValueError as error:
                # Keras asks for layouts at the first batch alone; JAX refuses a smaller one that comes later.
                if "evenly divide" not in str(error):
                    raise
                raise UserError(
                    f"a batch cannot be dealt to {self.num_model_replicas} devices: each, the last one too, "
                    f"must hold a multiple of {self.num_model_replicas} pictures"
                ) from error

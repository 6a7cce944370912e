"""Batches that eight devices of JAX cannot share; prints what is said of each.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m support.programs.uneven
"""

import keras
import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.ops.replicas import num_batch_parts
from kgarden.training.jax_data_parallel import data_parallel


def model():
    made = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    made.compile("sgd", lambda y, p: ops.mean((y - p) ** 2) / num_batch_parts(), jit_compile=True)
    return made


def fit(pictures, batch_size):
    with data_parallel().scope():
        x = np.ones((pictures, 3), "float32")
        model().fit(x, x[:, :2], batch_size=batch_size, verbose=0)


def main():
    for attempt in (lambda: data_parallel(batch_size=6), lambda: fit(12, 6), lambda: fit(20, 8)):
        try:
            attempt()
        except UserError as error:
            print(error)
        else:
            print("nothing")
    with data_parallel().scope():
        trained = model()
        trained.fit(np.ones((8, 3)), np.ones((8, 2)), batch_size=8, verbose=0)
        # predictions are not dealt out, inside the scope and outside
        inside = trained.predict_on_batch(np.ones((3, 3), "float32"))
    outside = trained.predict_on_batch(np.ones((3, 3), "float32"))
    np.testing.assert_array_equal(inside, outside)
    print(f"an answer for {len(outside)} pictures")


if __name__ == "__main__":
    main()

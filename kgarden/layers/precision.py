"""Mixed precision: the dtype policy under which layers are made."""

import contextlib

import keras


@contextlib.contextmanager
def dtype_policy_scope(name):
    """Layers made inside this context have the dtype policy of that name, such as "mixed_bfloat16"."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

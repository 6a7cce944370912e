"""Mixed precision: scope of the dtype policy under which layers are built."""

import contextlib

import keras


@contextlib.contextmanager
def dtype_policy_scope(name):
    """Layers created in this scope have the named dtype policy, such as "mixed_bfloat16"."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

"""Kernels of TensorFlow's operations, which are kept from test to test."""


def keep():
    """Has `keras.utils.set_random_seed` set Keras' seed alone.

    `tf.random.set_seed` forgets every kernel, since some hold a seed, and to make one again takes longer than
    ten small operations. Nothing here draws from TensorFlow's own seed: Keras, the models and the data
    pipeline hand each operation theirs.
    """
    import tensorflow as tf

    tf.random.set_seed = lambda seed: None

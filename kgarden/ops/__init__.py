"""Pure functions on batched arrays of static shape, in keras.ops; independent of layers and recipes."""

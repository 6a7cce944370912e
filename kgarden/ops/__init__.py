"""Pure functions on batched arrays of static shape, in keras.ops: they know no layer and no recipe."""

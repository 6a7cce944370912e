"""Prefixes of the goldens that a run cannot compare.

The run fails if a prefix stands here although all its arrays are compared: take yours off when done.
"""

# Parts of the data pipeline, which is tf.data: compared where TensorFlow is, and there alone.
NEED_TENSORFLOW = {
    "cn2_efficientdet_crop",
}

# Parts of kgarden that do not exist yet: none. A golden of a part to come is named here until it is built.
NOT_YET = set()

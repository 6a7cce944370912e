"""Custom gradients: used by trainings, and not registered by predictions, whose graphs then can be freed."""

import gc

import keras
import numpy as np
import pytest
from keras import ops
from support.gradients import value_and_gradients

from kgarden.models.base.static_shapes import StaticShapeModel, ready_to_predict
from kgarden.ops.gradients import custom_gradient, without_gradients


@custom_gradient
def square(x):
    """x * x with a gradient of 7, which no other way would give."""
    return x * x, lambda upstream: 7.0 * upstream


class Squares(StaticShapeModel):
    def call(self, x):
        return square(x)


def test_the_gradient_is_the_given_one_and_the_value_does_not_depend_on_it():
    x = ops.convert_to_tensor(np.float32([3.0]))
    assert float(square(x)[0]) == 9
    with without_gradients():
        assert float(square(x)[0]) == 9
    _, [slope] = value_and_gradients(lambda x: ops.sum(square(x)), [np.float32([3.0])])
    np.testing.assert_array_equal(slope, [7])


@pytest.mark.tensorflow
def test_graphs_of_predictions_are_freed():
    """One more graph for each model would stay otherwise."""
    import tensorflow as tf

    def graphs_after_a_prediction():
        model = ready_to_predict(Squares())
        np.testing.assert_array_equal(model.predict_on_batch(np.float32([[2, 3]])), [[4, 9]])
        del model
        keras.backend.clear_session()
        gc.collect()
        return sum(isinstance(one, tf.Graph) for one in gc.get_objects())

    assert graphs_after_a_prediction() == graphs_after_a_prediction() == graphs_after_a_prediction()

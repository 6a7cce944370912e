import textwrap

import numpy as np
import pytest
from keras import ops
from support.programs import run

from kgarden.ops.replicas import counted, global_mean, num_replicas, sum_over_replicas


def test_one_replica_sums_to_itself():
    x = np.float32([1, 2])
    assert num_replicas() == 1
    np.testing.assert_array_equal(ops.convert_to_numpy(sum_over_replicas(ops.convert_to_tensor(x))), x)


@pytest.mark.tensorflow
def test_two_replicas():
    """Within a replica: the sum over both. Outside of any: the value itself. In a process of its own,
    because the devices of TensorFlow are fixed once it has started."""
    program = """
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        from kgarden.ops.replicas import num_replicas, sum_over_replicas

        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

        @tf.function
        def step(x):
            assert num_replicas() == 2
            return sum_over_replicas(x), sum_over_replicas(x[None] * [1.0, 10.0])

        mine = strategy.experimental_distribute_values_from_function(lambda c: tf.constant([3.0, 4.0])[
            c.replica_id_in_sync_group])
        scalar, vector = strategy.run(step, (mine,))
        for part in strategy.experimental_local_results(scalar):
            assert float(part) == 7.0, part
        for part in strategy.experimental_local_results(vector):
            assert part.numpy().tolist() == [7.0, 70.0], part
        with strategy.scope():
            assert float(sum_over_replicas(tf.constant(5.0))) == 5.0
        print("agreed")
    """
    assert run("-c", textwrap.dedent(program)).strip().endswith("agreed")


def test_a_mean_of_micro_batches_is_that_of_the_batch():
    """Two of them with 3 and 7 objects: each divides by ten and counts twice, so that their mean is exact."""
    with counted([ops.convert_to_tensor(10.0)], 2):
        assert float(global_mean(ops.convert_to_tensor(6.0), 3.0)) == pytest.approx(6 / 10 * 2)
    assert float(global_mean(ops.convert_to_tensor(6.0), 3.0)) == pytest.approx(2)
    assert float(global_mean(ops.convert_to_tensor(6.0), 0.0)) == pytest.approx(6)
    assert float(global_mean(ops.convert_to_tensor(6.0), 0.0, 1e-6)) == pytest.approx(6e6)

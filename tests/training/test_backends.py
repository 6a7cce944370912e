"""TensorFlow and JAX train alike: the same losses and weights; each goes on from the other's checkpoint.

A training runs in a process of its own (support/programs/backends.py) and leaves arrays, compared here.
"""

import functools
import importlib.util
import re

import h5py
import numpy as np
import pytest
from support import programs

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("jax", "tensorflow")),
        reason="needs TensorFlow and JAX side by side: pip install '.[test,jax]'",
    ),
]
VARIANTS = [
    "centernet2_faster",
    pytest.param("centernet2", marks=pytest.mark.slow),
    pytest.param("centernet", marks=pytest.mark.slow),
]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile


def run(backend, program, *arguments):
    """What a program prints under a backend, in a process of its own."""
    flags = QUICK if backend == "jax" else ""
    return programs.run_on(backend, program, *arguments, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


@pytest.fixture(scope="module", params=VARIANTS)
def result(request, tmp_path_factory):
    """result(name) -> (losses, {path: array}) of one training of this variant."""
    folder = tmp_path_factory.mktemp("backends")
    for backend in ("tensorflow", "jax", "tensorflow"):  # the last one for the checkpoint that JAX has left
        run(backend, "backends", folder, request.param)

    @functools.cache
    def read(name):
        with np.load(folder / f"{request.param}.{name}.npz") as stored:
            arrays = {key: stored[key].astype("float64") for key in stored.files}
        terms = {key: arrays.pop(key) for key in list(arrays) if key.startswith("terms/")}
        return terms, arrays

    return read


def assert_trained_alike(result, one, other):
    """Two trainings that saw the same batches: losses of the steps that both took, and all that they hold."""
    (terms, arrays), (more_terms, more_arrays) = result(one), result(other)
    common = terms.keys() & more_terms.keys()
    steps = {term.split("/")[1] for term in common}
    assert steps >= {"2", "3", "4"} and len(common) >= 5 * len(steps)
    for term in common:  # of boxes, 1e-7 of a loss of 1 is the rounding of corners at 100 px
        np.testing.assert_allclose(more_terms[term], terms[term], rtol=1e-5, atol=5e-7, err_msg=term)

    assert list(arrays) == list(more_arrays) and len(arrays) > 200
    _, start = result("start")
    apart, way = {}, {}
    for path, array in arrays.items():
        group = group_of(path)
        if group != "optimizer":
            np.testing.assert_allclose(more_arrays[path], array, rtol=1e-5, atol=1e-5, err_msg=path)
        apart[group] = apart.get(group, 0) + np.sum((more_arrays[path] - array) ** 2)
        way[group] = way.get(group, 0) + np.sum((start[path] - array) ** 2)
    # Lengths over all tensors. One activation that rounding puts on the other side of zero changes a gradient
    # by some per cent for a channel, so the momenta, which are sums of gradients, get more room.
    limits = {"weights": 1e-4, "statistics": 1e-4, "averages": 1e-4, "optimizer": 5e-3}
    assert limits.keys() == way.keys()
    for group, limit in limits.items():
        assert 0 < way[group] and apart[group] ** 0.5 < limit * way[group] ** 0.5, group


def group_of(path):
    if re.search(r"/(average\d+|updates)$", path):
        return "averages"
    if "/sgd/" in path:
        return "optimizer"
    return "statistics" if "/moving_" in path else "weights"


def test_both_backends_give_equal_losses_and_weights(result):
    """Five steps of SGD with momentum, warm-up and weight decay."""
    assert_trained_alike(result, "tensorflow", "jax")


def test_jax_resumes_a_checkpoint_of_tensorflow(result):
    """Two steps there and three here are five there."""
    assert_trained_alike(result, "tensorflow", "from_tensorflow_on_jax")


def test_tensorflow_resumes_a_checkpoint_of_jax(result):
    assert_trained_alike(result, "jax", "from_jax_on_tensorflow")


@pytest.mark.parametrize("first,second", [("tensorflow", "jax"), ("jax", "tensorflow")])
def test_run_is_resumed_on_the_other_backend(tmp_path, first, second):
    """`kgarden train` on JAX reads its data through TensorFlow; files of a run belong to no backend."""
    run(first, "train_fake", tmp_path, tmp_path / "whole", 12)
    run(first, "train_fake", tmp_path, tmp_path / "parts", 8)
    said = run(second, "train_fake", tmp_path, tmp_path / "parts", 12)
    assert "resuming from step 8 of 12" in said
    for name in ("model.weights.h5", "best.weights.h5"):
        whole, parts = (stored(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert whole.keys() == parts.keys() and len(whole) == 7
        for path, array in whole.items():
            np.testing.assert_allclose(parts[path], array, rtol=1e-4, atol=1e-6, err_msg=path)


def stored(path):
    """{path in the file: array}"""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if hasattr(item, "dtype") else None)
    return found

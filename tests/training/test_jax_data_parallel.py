"""On JAX one device and eight reach the same weights; batches that cannot be dealt out are refused."""

import importlib.util
import pathlib
import re

import keras
import pytest
from support import programs

from kgarden.errors import UserError
from kgarden.training.jax_data_parallel import DataParallel, data_parallel

pytestmark = pytest.mark.both_backends

ROOT = pathlib.Path(__file__).parents[2]
ON_JAX = keras.backend.backend() == "jax"
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed here")
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # these compile in a third of the time
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
]


def run(program, *arguments):
    """Standard output of a program in a process of its own, where JAX has eight devices."""
    return programs.run_on("jax", program, *arguments, JAX_PLATFORMS="cpu", XLA_FLAGS=" ".join(FLAGS))


@needs_jax
@pytest.mark.parametrize(
    "variant,canvases",
    [("centernet", 1), ("two_stage", 1), pytest.param("centernet2", 2, marks=pytest.mark.slow)],
)
def test_eight_devices_equal_one(variant, canvases):
    """With the same global batches: terms divide by the objects of all, sampling follows the picture."""
    figures = run("data_parallel", variant, str(canvases)).split()
    weights, terms, moved, *devices = map(float, figures[-4:])
    assert moved > 0.5  # of the tensors, or there was nothing to compare
    assert devices == [8]  # hold the weights
    assert weights < 1e-3  # of the way that each went
    assert terms < 1e-5


@needs_jax
def test_indivisible_batches_are_rejected_in_one_line():
    """By their announced size, at the first batch, and at a smaller last one; then training goes on."""
    lines = run("uneven").strip().splitlines()[-4:]
    assert lines[0] == "data.batch_size: 6 is not divisible by 8 devices; use a multiple of 8"
    assert lines[1] == lines[0]
    assert lines[2].startswith("a batch is not divisible by 8 devices; every batch, including the last")
    assert lines[3] == "an answer for 3 pictures"


@needs_jax
@pytest.mark.slow
def test_the_script_of_the_docs_runs(tmp_path):
    """One step of it, on eight devices."""
    page = (ROOT / "docs" / "training.md").read_text()
    (script,) = re.findall(r"```python\n(.*?data_parallel.*?)```", page, re.DOTALL)
    assert '"schedule.steps": 20' in script
    shorter = script.replace('"schedule.steps": 20', '"schedule.steps": 1')
    (tmp_path / "script.py").write_text(shorter + "\nprint(detections['boxes'].shape)\n")
    assert run(tmp_path / "script.py").strip().endswith("(1, 100, 4)")


@pytest.mark.skipif(ON_JAX, reason="about the other backend")
def test_other_backends_are_rejected():
    with pytest.raises(UserError, match="not supported on tensorflow; use KERAS_BACKEND=jax"):
        data_parallel()


@pytest.mark.skipif(not ON_JAX, reason="about JAX")
def test_numbers_of_devices(monkeypatch):
    found = len(keras.distribution.list_devices())
    distribution = data_parallel(1, batch_size=3)
    assert isinstance(distribution, DataParallel) and distribution.num_model_replicas == 1
    assert data_parallel("all", batch_size=4 * found).num_model_replicas == found
    with pytest.raises(UserError, match=rf"replicas: 99 requested, JAX finds {found} \(\w+:0"):
        data_parallel(99)
    for replicas in (0, -1, "two", None, 2.0, True):
        with pytest.raises(UserError, match="is not a number of devices"):
            data_parallel(replicas)
    import jax

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="several processes are not supported on JAX"):
        data_parallel(1)

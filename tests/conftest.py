"""Pytest configuration: backends, keywords, and completeness of the comparison with reference numbers.

KERAS_BACKEND=jax runs the suite with TensorFlow impossible to import. Tests that need it carry the mark
`tensorflow` and are left out then; a module that cannot even be imported without it stands in
`collect_ignore` below or begins with `pytest.importorskip("tensorflow")`. Of the others the core runs: tests
of numerical packages, comparisons with reference numbers, and what carries the mark `both_backends`. The rest
is slow on JAX, which compiles each operation for each shape, and shows nothing there that the core does not.
"""

import atexit
import inspect
import os
import shutil
import sys
import tempfile

import pytest

ON_JAX = os.environ.get("KERAS_BACKEND") == "jax"
if ON_JAX:
    sys.modules["tensorflow"] = None  # `import tensorflow` raises ModuleNotFoundError from here on
    sys.modules["tf_keras"] = None
    # Compilation is most of the suite's time: programs are compiled quickly, and once for all workers.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
    )
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="kgarden-jax-")
        atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")

from support import eager_kernels, golden, host_initializers, memory, not_yet  # noqa: E402

if ON_JAX:
    collect_ignore = [
        "commands/test_train.py",
        "exporters/test_detector_export.py",
        "exporters/test_portable.py",
        "exporters/test_saved_model.py",
        "exporters/test_weights.py",
        "training/test_gradient_accumulation.py",
        "training/test_resume.py",
        "training/test_workers.py",
    ]

NUMERICAL = {"backbones", "layers", "losses", "necks", "ops", "optimizers", "targets"}  # directories of tests


def reads_goldens(function, visited):
    """Whether a function, or one of its module that it calls, opens reference files."""
    function = inspect.unwrap(function)
    if not inspect.isfunction(function) or function in visited:
        return False
    visited.add(function)
    names = set(function.__code__.co_names)
    called = [function.__globals__.get(name) for name in names]
    called = [one for one in called if getattr(one, "__module__", None) == function.__module__]
    return bool({"goldens", "Golden"} & names) or any(reads_goldens(one, visited) for one in called)


def pytest_itemcollected(item):
    """`-k golden` selects every test that reads reference numbers."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if any(isinstance(one, golden.Golden) for one in parameters) or (
        hasattr(item, "function") and reads_goldens(item.function, set())
    ):
        item.extra_keyword_matches.add("golden")


@pytest.hookimpl(tryfirst=True)  # before the selection by marks
def pytest_collection_modifyitems(config, items):
    if not ON_JAX:
        return
    needs_tensorflow = [item for item in items if item.get_closest_marker("tensorflow")]
    config.hook.pytest_deselected(items=needs_tensorflow)
    items[:] = [item for item in items if not item.get_closest_marker("tensorflow")]
    for item in items:
        if not is_core(item):
            item.add_marker("slow")


def pytest_collection_finish():
    if ON_JAX and "keras" in sys.modules:
        host_initializers.install()
    if "tensorflow" in sys.modules and not ON_JAX:
        eager_kernels.keep()


def pytest_runtest_logfinish():
    memory.release()


def is_core(item):
    """Whether a test runs on JAX without `-m slow`."""
    directory = item.path.relative_to(item.config.rootpath / "tests").parts[0]
    marked = item.get_closest_marker("both_backends")
    return bool(marked or directory in NUMERICAL or "golden" in item.extra_keyword_matches)


def is_whole_suite(config):
    """Does this run hold every test, so that what it did not compare was left out?"""
    asked = os.environ.get("KGARDEN_GOLDENS_COMPLETE")
    if asked is not None:
        return asked == "1"
    option = config.option
    narrowed = option.keyword or option.collectonly or option.deselect or getattr(option, "lf", False)
    everything = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return everything and not narrowed and option.markexpr == "not slow"


def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, "workeroutput"):  # a worker of pytest-xdist: the controller decides
        config.workeroutput["compared"] = sorted(golden.compared)
    elif is_whole_suite(config) and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        left_out = not_yet.NOT_YET | (not_yet.NEED_TENSORFLOW if ON_JAX else set())
        config.stash[FAULTS] = golden.faults_of_the_run(left_out)
        if config.stash[FAULTS]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    faults = config.stash.get(FAULTS, None)
    if faults:
        terminalreporter.section("reference numbers", red=True, bold=True)
        for fault in faults:
            terminalreporter.line(fault)
        terminalreporter.line(f"FAILED: {len(faults)} faults in the comparison with the references", red=True)
    elif faults == []:
        files = {file for file, _ in golden.compared}
        terminalreporter.line(f"every output of {len(files)} reference files compared")


FAULTS = pytest.StashKey[list]()


class CollectFromWorkers:
    """pytest-xdist: what each worker compared comes home when it ends."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        done = getattr(node, "workeroutput", {}).get("compared", [])
        golden.compared.update(map(tuple, done))


def pytest_configure(config):
    config.pluginmanager.register(CollectFromWorkers())

"""The house itself: who may import whom, who may touch TensorFlow and files, and that every recipe builds."""

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
import yaml
from support.unfilled import unfilled

from kgarden.build import build_model
from kgarden.config.loading import load_recipe, packaged_recipes
from kgarden.models import MODELS

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "kgarden").rglob("*.py"), *(ROOT / "tfrecords").rglob("*.py")])

# A unit (a file or folder of kgarden, or tfrecords) imports units of higher lines only.
TIERS = [
    {"errors", "structures", "tfrecords"},
    {"utils"},
    {"config", "metrics"},
    {"runs"},
    {"ops"},
    {"targets", "losses", "layers", "optimizers"},
    {"backbones", "necks", "heads"},
    {"models", "data"},
    {"weights"},
    {"build", "visualization"},
    {"inference"},
    {"evaluation"},
    {"training", "exporters", "analyze"},
    {"commands", "bench"},
    {"cli"},
]
RANK = {unit: rank for rank, tier in enumerate(TIERS) for unit in tier}

# at their top; of `training` and `commands` only what is named, the rest serves JAX too
MAY_IMPORT_TENSORFLOW = {"tfrecords", "data", "exporters", "commands.train", "commands.export"}
MAY_IMPORT_TENSORFLOW |= {
    f"training.{name}" for name in ("data_wait", "distribution", "gradient_accumulation", "trainer")
}
MAY_WHEN_ASKED = {
    "bench",
    "models",
    "ops",
    "training.loggers",
    "training.tensorboard_results",
}  # inside a function, behind a look at the backend, or in a *_sparse file

MAY_OPEN_FILES = {"tfrecords", "analyze", "bench", "build", "cli", "commands", "config", "data", "evaluation"}
MAY_OPEN_FILES |= {"exporters", "inference", "metrics", "runs", "training", "utils", "weights"}
OPENING = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "savez", "load_weights"}


def unit_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "tfrecords" else parts[1]


def module_of(path):
    """A module of `training` or `commands` by its own name, any other by its unit."""
    unit = unit_of(path)
    return f"{unit}.{path.stem}" if unit in ("training", "commands") else unit


def imported_modules(tree):
    """Every module that a file imports, wherever in it: "kgarden.ops.nms"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_units(tree):
    for module in imported_modules(tree):
        first, *rest = module.split(".")
        if first == "tfrecords":
            yield "tfrecords"
        elif first == "kgarden" and rest and rest[0] != "__version__":
            yield rest[0]


@pytest.fixture(scope="module")
def trees():
    assert len(SOURCES) > 50
    return {path: ast.parse(path.read_text()) for path in SOURCES}


def test_imports_go_down_only(trees):
    faults = []
    for path, tree in trees.items():
        unit = unit_of(path)
        if unit == "__init__":  # names are imported from their homes when they are first used
            continue
        assert unit in RANK, f"{path}: give {unit} a place in TIERS"
        for other in set(imported_units(tree)) - {unit}:
            if RANK.get(other, 99) >= RANK[unit]:
                faults.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not faults, "\n".join(faults)


def test_imports_have_no_cycles(trees):
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    edges = {name: set(imported_modules(trees[path])) & names.keys() for name, path in names.items()}
    done, stack = set(), []

    def visit(name):
        assert name not in stack, " -> ".join([*stack[stack.index(name) :], name])
        if name not in done:
            stack.append(name)
            for other in sorted(edges[name]):
                visit(other)
            done.add(stack.pop())

    for name in names:
        visit(name)


def test_tfrecords_imports_neither_kgarden_nor_keras(trees):
    for path, tree in trees.items():
        if unit_of(path) == "tfrecords":
            assert not {module.split(".")[0] for module in imported_modules(tree)} & {
                "kgarden",
                "keras",
                "jax",
            }


def test_tensorflow_is_imported_where_it_may_be(trees):
    faults = []
    for path, tree in trees.items():
        if "tensorflow" not in {module.split(".")[0] for module in imported_modules(tree)}:
            continue
        unit = module_of(path)
        at_top = any(
            isinstance(node, ast.Import | ast.ImportFrom)
            and "tensorflow" in {module.split(".")[0] for module in imported_modules(node)}
            for node in tree.body
        )
        if unit in MAY_IMPORT_TENSORFLOW or path.stem.endswith("_sparse"):
            continue
        if at_top or unit not in MAY_WHEN_ASKED:
            faults.append(str(path.relative_to(ROOT)))
    assert not faults, faults


def test_files_are_opened_where_they_may_be(trees):
    faults = []
    for path, tree in trees.items():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {getattr(call, "attr", getattr(call, "id", None)) for call in calls}
        if names & OPENING and unit_of(path) not in MAY_OPEN_FILES:
            faults.append(f"{path.relative_to(ROOT)}: {sorted(names & OPENING)}")
    assert not faults, faults


# Units whose matrix products carry coordinates, weights, masks or statistics: no network.
GEOMETRY = {"ops", "targets", "losses", "inference", "analyze"}
PRODUCTS = {"matmul", "dot", "einsum", "tensordot", "inner", "vdot", "conv", "depthwise_conv"}


def test_products_of_geometry_are_true_float32(trees):
    """Through kgarden/ops/float32.py; `@` is left to NumPy, in files that compute on the host."""
    faults = []
    for path, tree in trees.items():
        if unit_of(path) not in GEOMETRY or path.stem == "float32":
            continue
        for node in ast.walk(tree):
            of_keras = isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "ops"
            if of_keras and node.attr in PRODUCTS:
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: ops.{node.attr}")
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) and path.stem not in ON_HOST:
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: @")
    assert not faults, faults


ON_HOST = {"statistics"}


def test_random_numbers_do_not_depend_on_the_seed_of_tensorflow(trees):
    """A resumed training would draw others, and tests do not set it, see support/eager_kernels.py."""
    faults = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name.startswith("tf.random.") and not name.startswith("tf.random.stateless_"):
                faults.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not faults, faults


def test_no_file_is_longer_than_400_lines():
    long = {path.name: n for path in SOURCES if (n := len(path.read_text().splitlines())) > 400}
    assert not long


# A paper's file imports only papers of its year or earlier, so that imports are the family tree.
YEARS = {
    "faster_rcnn": 2015,
    "faster_rcnn_c4": 2015,
    "rpn": 2015,
    "cascade_rcnn": 2017,
    "mask_rcnn": 2017,
    "retinanet": 2017,
    "fcos": 2019,
    "fscascade": 2019,
    "atss": 2020,
    "condinst": 2020,
    "dense_bases": 2020,  # what CondInst and PSS are built on
    "double_head": 2020,
    "gfl": 2020,
    "tsd": 2020,
    "tsd_cascade": 2020,
    "centernet": 2021,
    "centernet2": 2021,
    "defcn": 2021,
    "pss": 2021,
}


def test_papers_import_only_older_papers(trees):
    folder, count = ROOT / "kgarden" / "models", 0
    for path in folder.glob("*.py"):
        if path.stem in ("__init__", "custom"):
            continue
        for module in imported_modules(trees[path]):
            other = module.removeprefix("kgarden.models.").split(".")[0]
            if module.startswith("kgarden.models.") and other != "base":
                count += 1
                assert YEARS[other] <= YEARS[path.stem], f"{path.stem} imports {other}"
    assert count > 20


def test_the_package_root_holds_few_modules():
    modules = [path for path in (ROOT / "kgarden").glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 8, sorted(path.stem for path in modules)


# Names that several files share, because they are about the same paper, format, stage or job.
SHARED_NAMES = {"atss", "centernet", "coco", "fcos", "files", "lvis", "roi", "voc"}


def test_file_names_are_unique():
    names = [path.stem for path in SOURCES if path.stem != "__init__"]
    assert {name for name in names if names.count(name) > 1} <= SHARED_NAMES


def test_tests_mirror_the_packages():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    for folder in folders:
        where = folder if folder.parts[:1] == ("tfrecords",) else "kgarden" / folder
        assert (ROOT / where).is_dir(), f"tests/{folder} mirrors no package"


def test_test_files_import_helpers_from_support_alone():
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text())
        modules = set(imported_modules(tree))
        assert not any(module.split(".")[-1].startswith("test_") for module in modules - TESTED), path
        assert "sys.path.append" not in path.read_text().replace('"sys.path.append"', ""), path


TESTED = {"kgarden.inference.test_time_augmentation"}


def test_calls_have_at_most_four_positional_arguments(trees):
    """Of functions and classes of kgarden and tfrecords."""
    kinds = ast.FunctionDef | ast.ClassDef
    ours = {node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, kinds)}
    faults = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            starred = isinstance(node, ast.Call) and any(isinstance(a, ast.Starred) for a in node.args)
            if isinstance(node, ast.Call) and len(node.args) > 4 + starred:
                function = node.func
                external = (
                    isinstance(function, ast.Attribute) and getattr(function.value, "id", "") in EXTERNAL
                )
                if getattr(function, "id", getattr(function, "attr", None)) in ours and not external:
                    faults.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not faults, faults


EXTERNAL = {"keras", "np", "ops", "tf"}


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed here")
def test_all_but_a_few_modules_are_imported_without_tensorflow():
    """On JAX, in a process of its own, with TensorFlow impossible to import."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if module_of(path) not in MAY_IMPORT_TENSORFLOW and not path.stem.endswith("_sparse")
    ]
    assert len(modules) > 40
    program = "import sys; sys.modules['tensorflow'] = None\nimport importlib\n"
    program += f"for module in {modules}: importlib.import_module(module)\nprint('imported')"
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


@pytest.mark.parametrize("stem", sorted(packaged_recipes()))
def test_every_recipe_builds(stem):
    """At its full size; the initialisers run in tests/models."""
    recipe = load_recipe(stem, overrides={"init": None})
    detector = unfilled(lambda: build_model(recipe, num_classes=recipe.model.num_classes or 6))
    assert detector.built and detector.count_params() > 1e6


def test_every_model_has_a_recipe_or_is_a_template():
    used = {load_recipe(stem).model.name for stem in packaged_recipes()}
    assert MODELS.keys() - used <= {"one_stage", "two_stage", "centernet"}
    assert used <= MODELS.keys()


def test_every_mutant_applies():
    """What it changes stands once in its file, and the files of its tests exist."""
    mutants = (ROOT / "tests" / "mutants" / "mutants.yaml").read_text()
    for mutant in yaml.load(mutants, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        assert (ROOT / mutant["file"]).read_text().count(mutant["before"]) == 1, mutant["name"]
        files = [one.split("::")[0] for one in mutant["tests"] if one.startswith("tests/")]
        assert files and all((ROOT / file).exists() for file in files), mutant["name"]

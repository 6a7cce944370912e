"""The harness that judges everything else: each rule must let the right pass and the wrong fail."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from support import golden

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(rules, arrays, **settings): a golden in a directory of its own; arrays `in_...` are inputs."""
    monkeypatch.setattr(golden, "DIRECTORY", tmp_path)
    monkeypatch.setattr(golden, "compared", set())
    golden.index.cache_clear()

    def make(rules, arrays, layout="none", name="toy", **settings):
        entry = {"prefix": "toy", "inputs": ["in_.*"], "outputs": list(rules), "tolerance": rules}
        (tmp_path / "index.json").write_text(json.dumps([entry | {"layout": layout}]))
        np.savez(tmp_path / f"{name}.npz", params=np.array(json.dumps(settings)), **arrays)
        golden.index.cache_clear()
        return next(g for g in golden.goldens("toy") if g.name == name)

    yield make
    golden.index.cache_clear()


def agrees(file, got, **kwargs):
    try:
        golden.assert_agrees(file, got, **kwargs)
    except AssertionError:
        return False
    return True


# --- the files of the repository ----------------------------------------------------------------------------


def test_every_file_has_an_entry_and_every_array_one_role():
    paths = sorted(golden.HERE.glob("*.npz"))
    assert len(paths) >= 105
    prefixes = set()
    for path in paths:
        file = golden.Golden(path)
        prefixes.add(file.entry["prefix"])
        assert file.params
        patterns = file.entry["inputs"] + file.entry["outputs"]
        for name in file.files:
            assert sum(bool(re.fullmatch(pattern, name)) for pattern in patterns) == 1, (path.name, name)
        for name in file.outputs:
            assert file.rule(name)
    described = {entry["prefix"] for entry in json.loads((golden.HERE / "index.json").read_text())}
    assert prefixes == described


def test_the_longest_prefix_wins():
    assert golden.entry_of("cn2_e2e_tiny_train")["prefix"] == "cn2_e2e_tiny_train"
    assert golden.entry_of("cn2_e2e_tiny_cascade")["prefix"] == "cn2_e2e_tiny"
    assert golden.entry_of("d2_nms")["prefix"] == "d2_nms"
    with pytest.raises(LookupError):
        golden.entry_of("d2_nmsx")
    with pytest.raises(LookupError):
        golden.goldens("no_such_prefix")


def test_geometry_has_one_tolerance():
    names = "d2_roi_align", "d2_nms", "d2_fpn_p2p6"
    files = [golden.Golden(golden.HERE / f"{name}.npz") for name in names]
    assert [file.is_convolutional for file in files] == [False, False, True]


# --- plain comparisons --------------------------------------------------------------------------------------


def test_missing_extra_and_wrong_arrays_fail(make):
    rules = {"a": {"rtol": 0, "atol": 0.1}, "b": {"exact": True}}
    a, b = np.float32([1, 2, 3]), np.int64([4, 5])
    file = make(rules, {"a": a, "b": b, "in_x": a})
    assert agrees(file, {"a": a, "b": b})
    assert agrees(file, {"a": a + 0.09, "b": b})
    assert not agrees(file, {"a": a + 0.11, "b": b})
    assert not agrees(file, {"a": a, "b": b + 1})
    assert not agrees(file, {"a": a})
    assert not agrees(file, {"a": a, "b": b, "in_x": a})
    assert not agrees(file, {"a": a, "b": b, "c": b})
    assert not agrees(file, {"a": a[:2], "b": b})
    assert not agrees(file, {"a": a, "b": b[:1]})
    assert not agrees(file, {"a": a * np.nan, "b": b})


def test_shapes_are_not_broadcast(make):
    file = make({"a": {"rtol": 0, "atol": 1}}, {"a": np.zeros((3, 1), "float32")})
    assert not agrees(file, {"a": 0.0})
    assert not agrees(file, {"a": np.zeros(3)})
    assert agrees(file, {"a": np.zeros((3, 1))})


def test_a_part_of_a_file(make):
    file = make({"a[0-9]": {"exact": True}}, {"a1": np.ones(2), "a2": np.ones(2)})
    assert agrees(file, {"a1": np.ones(2)}, only="a1")
    assert not agrees(file, {"a1": np.ones(2), "a2": np.ones(2)}, only="a1")
    assert not agrees(file, {}, only="b")
    assert golden.compared == {("toy", "a1")}


def test_unknown_words_fail(make):
    file = make({"a": {"atol": 1, "approximately": True}}, {"a": np.ones(2)})
    assert not agrees(file, {"a": np.ones(2)})
    file = make({"a": {"atol": 1, "times": "mean"}}, {"a": np.ones(2)})
    assert not agrees(file, {"a": np.ones(2)})


def test_times_std(make):
    stored = np.float32([0, 200])  # standard deviation 100
    file = make({"a": {"rtol": 0, "atol": 0.01, "times": "std"}}, {"a": stored})
    assert agrees(file, {"a": stored + 0.9})
    assert not agrees(file, {"a": stored + 1.1})


def test_the_second_tolerance_is_for_convolutions_on_gpus_that_round(make, monkeypatch):
    stored = np.float32([0, 200])  # standard deviation 100
    for layout, rounds in (("NCHW/OIHW", True), ("NCHW/OIHW", False), ("none", True)):
        monkeypatch.setattr(golden, "rounds_to_tf32", lambda rounds=rounds: rounds)
        rules = {"a": {"rtol": 0, "atol": 1e-4}, "b": {"exact": True}}
        file = make(rules, {"a": stored, "b": stored}, layout=layout)
        second = rounds and layout != "none"
        assert agrees(file, {"a": stored + 0.9, "b": stored}) == second
        assert not agrees(file, {"a": stored + np.float32([1.1, 0]), "b": stored})
        assert not agrees(file, {"a": stored, "b": stored + 1e-3})


def test_statistical(make):
    file = make({"f": {"rtol": 0, "atol": 0.03, "statistical": True}}, {"f": np.float32([0.5, 1])})
    assert agrees(file, {"f": np.float32([0.52, 1])})
    assert not agrees(file, {"f": np.float32([0.54, 1])})


# --- what is left out ---------------------------------------------------------------------------------------


def test_where(make):
    arrays = {"a": np.float32([[1, 1], [2, 2]]), "in_valid": np.array([True, False])}
    file = make({"a": {"rtol": 0, "atol": 0.1, "where": "in_valid"}}, arrays)
    assert agrees(file, {"a": np.float32([[1, 1], [np.nan, 7]])})
    assert not agrees(file, {"a": np.float32([[1, 7], [2, 2]])})


def test_skip_nan(make):
    file = make({"a": {"rtol": 0, "atol": 0.1, "skip_nan": True}}, {"a": np.float32([1, np.nan])})
    assert agrees(file, {"a": np.float32([1, 7])})
    assert not agrees(file, {"a": np.float32([7, np.nan])})


def test_skip_rows(make):
    arrays = {"a": np.arange(4), "b": np.arange(4)}
    file = make({"a|b": {"exact": True, "skip_rows": "edge"}}, arrays, edge=[1, 3])
    assert agrees(file, {"a": np.int64([0, 9, 2, 9]), "b": np.arange(4)})
    assert not agrees(file, {"a": np.int64([9, 1, 2, 3]), "b": np.arange(4)})


def test_skip_gt(make):
    arrays = {"a": np.int64([[0, 1, -1], [0, 1, -1]])}
    file = make({"a": {"exact": True, "skip_gt": "tied"}}, arrays, tied={"a": [[1, 1]]})
    assert agrees(file, {"a": np.int64([[0, 1, -1], [0, -1, 1]])})
    assert not agrees(file, {"a": np.int64([[0, -1, 1], [0, 1, -1]])})
    assert not agrees(file, {"a": np.int64([[0, 1, -1], [-1, 1, 0]])})


# --- orders -------------------------------------------------------------------------------------------------

ORDERED = {
    "boxes_im([0-9])": {"rtol": 0, "atol": 0.01, "order_by": "scores_im\\1"},
    "labels_im([0-9])": {"exact": True, "order_by": "scores_im\\1"},
    "scores_im([0-9])": {"rtol": 0, "atol": 0.001},
}
SCORES = np.float32([0.9, 0.5, 0.4995, 0.1])
BOXES = np.float32([[0] * 4, [1] * 4, [2] * 4, [3] * 4])
LABELS = np.int64([5, 6, 7, 8])


def rows(order, scores=SCORES):
    return {"boxes_im0": BOXES[order], "labels_im0": LABELS[order], "scores_im0": scores}


def test_rows_of_near_equal_scores_may_be_exchanged(make):
    file = make(ORDERED, rows([0, 1, 2, 3]))
    assert agrees(file, rows([0, 1, 2, 3]))
    assert agrees(file, rows([0, 2, 1, 3]))
    assert not agrees(file, rows([0, 2, 3, 1]))
    assert not agrees(file, rows([1, 0, 2, 3]))
    assert not agrees(file, rows([0, 1, 1, 3]))


def test_rows_move_as_a_whole(make):
    file = make(ORDERED, rows([0, 1, 2, 3]))
    got = rows([0, 2, 1, 3])
    got["labels_im0"] = LABELS
    assert not agrees(file, got)


def test_rows_are_sorted_by_score_first(make):
    stored, swapped = [1, 3, 0, 2], [2, 3, 0, 1]  # rows 1 and 2 have near-equal scores
    file = make(ORDERED, rows(stored, SCORES[stored]))
    assert agrees(file, rows(stored, SCORES[stored]))
    assert agrees(file, rows(swapped, SCORES[swapped]))
    assert not agrees(file, rows(stored[::-1], SCORES[stored]))


def test_scores_themselves_are_compared(make):
    file = make(ORDERED, rows([0, 1, 2, 3]))
    assert not agrees(file, rows([0, 1, 2, 3], SCORES + 0.002))


def test_rows_of_several_images(make):
    rules = {"boxes": {"atol": 0.01, "order_by": "scores"}, "scores": {"atol": 0.001}}
    boxes, scores = np.stack([BOXES, BOXES + 10]), np.stack([SCORES, SCORES])
    file = make(rules, {"boxes": boxes, "scores": scores})
    assert agrees(file, {"boxes": boxes[:, [0, 2, 1, 3]], "scores": scores})
    assert not agrees(file, {"boxes": boxes[::-1], "scores": scores})


def test_ties(make):
    arrays = {"keep": np.int64([3, 0, 1]), "in_scores": np.float32([0.5, 0.5, 0.2, 0.9])}
    file = make({"keep": {"exact": True, "ties": "in_scores"}}, arrays)
    assert agrees(file, {"keep": np.int64([3, 1, 0])})
    assert not agrees(file, {"keep": np.int64([0, 3, 1])})
    assert not agrees(file, {"keep": np.int64([3, 0, 0])})
    assert not agrees(file, {"keep": np.int64([3, 0, 2])})
    assert not agrees(file, {"keep": np.int64([3, 0])})
    assert not agrees(file, {"keep": np.int64([3, 0, 4])})


# --- params.compare -----------------------------------------------------------------------------------------


def test_the_file_changes_its_own_rule(make):
    rules = {"a.*": {"exact": True}, "b": {"rtol": 0, "atol": 1e-6}}
    arrays = {"a1": np.float32([1]), "b": np.float32([1])}
    file = make(rules, arrays, compare={"a.*": {"rtol": 0, "atol": 0.1}, "b": {"skip": "why"}})
    assert agrees(file, {"a1": np.float32([1.05])})
    assert agrees(file, {"a1": np.float32([1.05]), "b": np.float32([9])})
    assert not agrees(file, {"a1": np.float32([1.2])})
    assert golden.compared == {("toy", "a1"), ("toy", "b")}


def test_interchangeable_gt(make):
    box = [0, 0, 1, 1]
    arrays = {"in_x": np.zeros(1), "matched": np.int64([[2, 1, -1]])}
    rules = {"matched": {"exact": True}}
    arrays |= {"gt_boxes": np.float32([[box, [5, 5, 6, 6], box]]), "gt_labels": np.int64([[1, 1, 1]])}
    file = make(rules, arrays, compare={"matched": {"interchangeable_gt": True}})
    assert agrees(file, {"matched": np.int64([[0, 1, -1]])})
    assert not agrees(file, {"matched": np.int64([[1, 1, -1]])})
    assert not agrees(file, {"matched": np.int64([[0, 1, 0]])})
    arrays["gt_labels"] = np.int64([[1, 1, 2]])
    file = make(rules, arrays, compare={"matched": {"interchangeable_gt": True}})
    assert not agrees(file, {"matched": np.int64([[0, 1, -1]])})


# --- layouts ------------------------------------------------------------------------------------------------


def test_layouts(make):
    arrays = {
        "in_x": np.zeros((2, 3, 4, 5)),
        "in_image": np.zeros((3, 4, 5), np.uint8),
        "in_param/conv.weight": np.zeros((8, 2, 3, 5), np.float16),
        "in_boxes": np.zeros((7, 4)),
    }
    file = make({"y": {"exact": True}}, arrays, layout="NCHW/OIHW")
    assert file["in_x"].shape == (2, 4, 5, 3)
    assert file["in_image"].shape == (4, 5, 3)
    assert file["in_param/conv.weight"].shape == (3, 5, 2, 8)
    assert file["in_param/conv.weight"].dtype == np.float32
    assert file["in_boxes"].shape == (7, 4)
    assert file.raw("in_x").shape == (2, 3, 4, 5)
    fc = np.zeros((8, 2))
    assert golden.to_our_layout("param/fc.weight", fc, "NCHW/OIHW").shape == (2, 8)
    assert golden.to_our_layout("grad/roi_feat", arrays["in_x"], "NCHW/OIHW").shape == (2, 4, 5, 3)
    assert golden.to_our_layout("x", arrays["in_x"], "NHWC/HWIO").shape == (2, 3, 4, 5)


def test_outputs_are_compared_in_our_layout(make):
    y = np.arange(24, dtype="float32").reshape(1, 2, 3, 4)
    file = make({"y": {"exact": True}}, {"y": y}, layout="NCHW/OIHW")
    assert agrees(file, {"y": y.transpose(0, 2, 3, 1)})
    assert not agrees(file, {"y": y})


def test_a_matrix_behind_a_flattened_map_gives_the_same_product():
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(5, 2, 3, 4)), rng.normal(size=(24, 6))  # x: N, C, H, W
    ours = x.transpose(0, 2, 3, 1).reshape(5, -1) @ golden.flattened_hwc(matrix, (2, 3, 4))
    np.testing.assert_allclose(ours, x.reshape(5, -1) @ matrix)


# --- the recorder -------------------------------------------------------------------------------------------


def test_faults_of_a_run(make):
    make({"a": {"exact": True}, "b": {"exact": True}}, {"a": np.ones(1), "b": np.ones(1)})
    both = {("toy", "a"), ("toy", "b")}
    assert golden.faults_of_the_run(set(), both) == []
    assert golden.faults_of_the_run({"toy"}, {("toy", "a")}) == []
    assert "not compared: b" in golden.faults_of_the_run(set(), {("toy", "a")})[0]
    assert "take it off" in golden.faults_of_the_run({"toy"}, both)[0]
    assert "no prefix" in golden.faults_of_the_run({"gone"}, both)[0]


def make_suite(suite, body, not_yet):
    """The real conftest.py over one test file and one golden."""
    (suite / "tests" / "goldens").mkdir(parents=True)
    (suite / "tests" / "support").mkdir()
    helpers = ("eager_kernels", "golden", "host_initializers", "memory")
    for name in ("conftest.py", *(f"support/{helper}.py" for helper in helpers)):
        shutil.copy(HERE / name, suite / "tests" / name)
    shutil.copy(HERE.parent / "pyproject.toml", suite)
    entry = {"prefix": "toy", "inputs": [], "outputs": [".*"], "tolerance": {".*": {"exact": True}}}
    (suite / "tests" / "goldens" / "index.json").write_text(json.dumps([entry | {"layout": "none"}]))
    np.savez(suite / "tests" / "goldens" / "toy.npz", params=np.array("{}"), a=np.ones(1), b=np.ones(1))
    (suite / "tests" / "support" / "not_yet.py").write_text(
        f"NOT_YET = {not_yet}\nNEED_TENSORFLOW = {{'toy'}}\n"
    )
    (suite / "tests" / "test_toy.py").write_text(
        "import numpy as np, pytest\nfrom support import golden\n\n"
        "def test_toy():\n    [g] = golden.goldens('toy')\n"
        f"    {body}\n\ndef test_other():\n    pass\n"
    )


FORKS = """
import json, os, sys
import numpy, pytest, scipy.sparse.csgraph, xdist.plugin  # once for all suites

for number, (suite, arguments) in enumerate(json.load(sys.stdin)):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.chdir(suite)
        file = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1), os.dup2(file, 2)
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *arguments])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def run_suites(folder, suites, backend="tensorflow"):
    """Run pytest in a suite for each (body, not_yet, arguments); returns [(exit code, output), ...]."""
    asked = []
    for number, (body, not_yet, arguments) in enumerate(suites):
        asked.append((str(folder / f"{number}" / "suite"), arguments))
        make_suite(folder / f"{number}" / "suite", body, not_yet)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("KGARDEN_", "PYTEST_", "KERAS_"))}
    keep |= {"KERAS_BACKEND": backend, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", FORKS]
    done = subprocess.run(command, env=keep, input=json.dumps(asked), capture_output=True, text=True)
    outputs = [pathlib.Path(suite, "output.txt").read_text() for suite, _ in asked]
    assert done.returncode == 0, done.stderr
    return list(zip(map(int, done.stdout.split()), outputs, strict=True))


ALL = "golden.assert_agrees(g, {'a': np.ones(1), 'b': np.ones(1)})"
PART = "golden.assert_agrees(g, {'a': np.ones(1)}, only='a')"
HELPER = "def helper():\n    return golden.goldens('toy')"
BY_HELPER = f"{PART}\n\n{HELPER}\n\ndef test_third():\n    assert helper()"


def test_a_run_fails_for_what_it_left_out(tmp_path):
    """And the keyword golden follows the helpers of a module."""
    cases = [
        (ALL, "set()", [], 0, "every output of 1 reference files"),
        (ALL, "set()", ["-n", "2"], 0, "every output of 1 reference files"),
        (PART, "set()", [], 1, "not compared: b"),
        (PART, "set()", ["-n", "1"], 1, "not compared: b"),
        (PART, "{'toy'}", [], 0, "2 passed"),
        (ALL, "{'toy'}", [], 1, "take it off"),
        (PART, "set()", ["-k", "test_other"], 0, "1 passed"),
        (PART, "set()", ["-k", "golden"], 0, "1 passed, 1 deselected"),
        (PART, "set()", ["tests/test_toy.py"], 0, "2 passed"),
        (ALL.replace("ones", "zeros"), "set()", [], 1, "1 failed"),
        (BY_HELPER, "set()", ["-k", "golden"], 0, "2 passed, 1 deselected"),
    ]
    found = run_suites(tmp_path, [case[:3] for case in cases])
    for (*_, code, word), (got, output) in zip(cases, found, strict=True):
        assert word in output, output
        assert got == code, output


def test_what_needs_tensorflow_is_left_out_on_jax_alone(tmp_path):
    found = run_suites(tmp_path, [(PART, "set()", []), (ALL, "set()", [])], backend="jax")
    assert found[0][0] == 0
    assert found[1][0] == 1 and "take it off" in found[1][1]

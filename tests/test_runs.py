"""Run directories: who may have one."""

import io
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.runs import HEADER, LOCK, claimed, default_run, has_begun, load_categories, writer_of
from kgarden.training.reporter import Reporter
from kgarden.utils.files import write_json


@pytest.fixture
def reporter():
    return Reporter(Console(file=io.StringIO(), width=300))


@pytest.fixture
def recipe():
    return load_recipe("quickstart")


def other(recipe):
    return recipe.model_copy(update={"seed": recipe.seed + 1})


def test_a_start_that_fails_before_a_step_claims_no_directory(tmp_path, recipe, reporter):
    run = tmp_path / "run"
    with pytest.raises(RuntimeError), claimed(run, recipe, False, reporter):
        write_json(run / "labels.json", [])
        (run / "metrics.jsonl").touch()
        (run / "tensorboard").mkdir()
        raise RuntimeError
    assert not run.exists()
    with pytest.raises(RuntimeError), claimed(run, recipe, False, reporter):
        (run / "data/coco-0123456789abcdef").mkdir(parents=True)  # converted data are for the next start
        raise RuntimeError
    assert [path.name for path in run.iterdir()] == ["data"]
    with claimed(run, recipe, False, reporter):  # no step
        for name in ("mlflow_run.txt", "wandb_run.txt", "wandb/offline-run-1/run.wandb"):
            (run / name).parent.mkdir(exist_ok=True, parents=True)
            (run / name).touch()
    assert [path.name for path in run.iterdir()] == ["data"]
    with claimed(run, other(recipe), False, reporter):
        (run / "metrics.jsonl").write_text("{}")
    with pytest.raises(UserError, match="holds another recipe .differs in seed"):
        with claimed(run, recipe, False, reporter):
            pass
    assert not (run / LOCK).exists() and load_recipe(run).seed == recipe.seed + 1


def test_a_start_that_is_killed_while_it_clears_claims_no_directory(tmp_path, recipe, reporter, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), claimed(tmp_path, recipe, False, reporter):
        (tmp_path / "tensorboard").mkdir()
        monkeypatch.setattr(shutil, "rmtree", killed)
    monkeypatch.undo()
    with claimed(tmp_path, other(recipe), False, reporter):
        assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize("left", ["", HEADER + "name: qui", "\0\0\0"])
def test_a_half_written_recipe_of_a_killed_start_claims_no_directory(tmp_path, recipe, reporter, left):
    (tmp_path / "recipe.yaml").write_text(left)
    (tmp_path / ".kgarden-12-recipe.yaml").write_text("na")
    write_json(tmp_path / LOCK, {"pid": 2**22 + 1, "host": os.uname().nodename, "started": "2026"})
    with claimed(tmp_path, recipe, False, reporter):
        assert load_recipe(tmp_path).digest() == recipe.digest()
    assert "taking over from process 4194305" in reporter.console.file.getvalue()


def test_directories_of_others_are_not_claimed(tmp_path, recipe, reporter):
    """Photos, somebody's recipe, which its resolved form would replace, somebody's data, a file."""
    for name, files in {
        "photos": {"a.jpg": "x"},
        "project": {"recipe.yaml": "# mine\n" + recipe.to_yaml()},
        "data_of_mine": {"data/raw/a.csv": "x"},
    }.items():
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True)
            path.write_text(text)
        for fresh in (False, True):
            with pytest.raises(UserError, match=f"{name}.*use another --run"):
                with claimed(tmp_path / name, recipe, fresh, reporter):
                    pass
        found = {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*.*")}
        assert found == set(files) and all((tmp_path / name / f).read_text() == t for f, t in files.items())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"), claimed(tmp_path / "file", recipe, False, reporter):
        pass


def test_a_second_training_is_refused_while_the_first_runs(tmp_path, recipe, reporter):
    run = tmp_path / "run"
    program = (
        "import pathlib, sys\nfrom kgarden.config.loading import load_recipe\n"
        "from kgarden.runs import claimed\nfrom kgarden.training.reporter import Reporter\n"
        "run, recipe = pathlib.Path(sys.argv[1]), load_recipe('quickstart')\n"
        "for fresh in (False, True):\n"
        "    try: claimed(run, recipe, fresh, Reporter()).__enter__()\n"
        "    except ValueError as error: print(error)\n"
    )
    with claimed(run, recipe, False, reporter):
        before = (run / "recipe.yaml").read_bytes()
        command = [sys.executable, "-c", program, str(run)]
        done = subprocess.run(command, capture_output=True, text=True)
        said = f"{run} is in use by process {os.getpid()} on "
        assert [line.startswith(said) for line in done.stdout.splitlines()] == [True, True], done.stderr
        with pytest.raises(UserError, match="--json"), writer_of(run, print, "use --json"):
            pass
        assert (run / "recipe.yaml").read_bytes() == before
    assert not run.exists()


def test_fresh_moves_the_run_and_its_lock_aside(tmp_path, recipe, reporter):
    run = tmp_path / "run"
    for _ in range(2):
        with claimed(run, recipe, True, reporter):
            (run / "metrics.jsonl").write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.1"}
    assert has_begun(run) and has_begun(tmp_path / "run.1")
    assert not (run / LOCK).exists() and not (tmp_path / "run.1" / LOCK).exists()


def test_default_directories_are_inside_runs():
    assert default_run("a/b", "t.1") == pathlib.Path("runs/a/b.t.1")
    for name in ("../../x", "a/../../x", "/x", "..\\x", "", "a\nb", "a\0"):
        with pytest.raises(UserError, match="use --run"):
            default_run(name)


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[1]", '[{"id": 1}]', '[{"id": "x", "name": "a"}]', ""])
def test_damaged_labels_are_one_line_that_names_the_file(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UserError, match="labels.json: not") as raised:
        load_categories(tmp_path)
    assert "\n" not in str(raised.value)

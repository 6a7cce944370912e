"""Recipes on the command line: copies, keys, validation, differences; completion."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
import yaml

from kgarden import cli
from kgarden.backbones import BACKBONES
from kgarden.commands.key_reference import reference
from kgarden.commands.model_keys import model_keys
from kgarden.config.keys import arguments_in, kind_of, section_keys, transform_keys
from kgarden.config.loading import load_recipe, packaged_recipes
from kgarden.config.recipe import Data, Evaluate, Recipe
from kgarden.config.schedule import Ema, Optimizer

pytestmark = pytest.mark.tensorflow
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def call(capsys):
    """call("recipe", "keys") -> (exit code, standard output, standard error)."""

    def _call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return _call


def test_copies_are_the_packaged_files_and_overwrite_nothing(call, tmp_path):
    file = tmp_path / "mine.yaml"
    code, out, _ = call("recipe", "copy", "quickstart", file)
    assert code == 0 and file.read_bytes() == packaged_recipes()["quickstart"].read_bytes()
    file.write_text("mine")
    code, _, err = call("recipe", "copy", "quickstart", file)
    assert code == 2 and "exists already" in err and file.read_text() == "mine"
    code, _, err = call("recipe", "copy", "quickstrt", tmp_path / "b.yaml")
    assert code == 2 and "'quickstart'" in err and not (tmp_path / "b.yaml").exists()
    code, _, err = call("recipe", "copy", "quickstart", tmp_path / "none" / "b.yaml")
    assert code == 2 and err.count("\n") == 1


def test_types_in_words():
    def kind(section, name):
        return kind_of(section.__annotations__[name])

    assert kind(Data, "batch_size") == "integer > 0"
    assert kind(Data, "canvases") == "list of [integer > 0, integer > 0] or null"
    assert kind(Ema, "decay") == "number > 0 and < 1"
    assert kind(Optimizer, "betas") == "[number, number] or null"
    assert kind(Evaluate, "metrics").startswith("list of coco | voc07 | ")
    assert kind(Recipe, "replicas") == "integer > 0 or all" and kind(Recipe, "jit") == "true or false"
    assert kind(Recipe, "rows") == "mapping to section"


def test_entries_of_docstrings():
    text = """What it is.

    Args:
        a, b:  first,
               second line.
        other: with a: colon.
    Returns:
        c: no argument.
    """
    assert arguments_in(text) == {
        "a": "first, second line.",
        "b": "first, second line.",
        "other": "with a: colon.",
    }
    assert arguments_in(None) == arguments_in("Nothing.") == {}


def test_every_key_of_the_schema_has_its_default_and_a_meaning():
    keys = {one.key: one for one in (*section_keys(), *transform_keys())}
    assert not [one.key for one in keys.values() if not one.meaning]
    assert keys["schedule.micro_batches"][1:] == (
        "integer > 0",
        "1",
        "gradient accumulation: micro-batches for one update",
    )
    assert keys["schedule.base_lr"].default == "required" and keys["evaluate"].default == ""
    assert keys["evaluate.open_images.filter"].meaning.startswith("Which detections count: of verified")
    assert keys["augment.mixup.alpha"].default == "8" and "augment.mosaic.antialias" not in keys
    assert "data.train.N.glob" in keys and "data.val.N.glob" not in keys and "rows.ID.set" in keys


def test_settings_of_a_model_are_those_that_it_uses():
    """Against the packaged recipes: every key that one of them sets is listed for its model."""
    of_model = {}
    for stem in packaged_recipes():
        model = load_recipe(stem).model
        names = _names_in(model.model_dump())
        listed = of_model.setdefault((model.name, names), model_keys(model.name, dict(names)))
        keys = {one.key for one in listed}
        missing = [
            key for key in _dotted(model.model_extra or {}, "model") if not any(_holds(k, key) for k in keys)
        ]
        assert not missing, (stem, missing)
    defaults = {one.key: one.default for one in model_keys("centernet2")}
    assert (
        defaults["model.roi_head.ious"] == "[0.6, 0.7, 0.8]"
        and defaults["model.proposer.min_radius"] == "4.0"
    )
    assert defaults["model.roi_head.name"] == '"cascade"' and "model.num_classes" not in defaults
    other = {one.key for one in model_keys("centernet2", {"model.roi_head.name": "tsd"})}
    assert "model.roi_head.class_margin" in other and "model.roi_head.class_margin" not in defaults


def _names_in(settings, key="model"):
    """The choices of parts in a model's settings, hashable."""
    found = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _names_in(value, f"{key}.{name}")
        elif name in ("name", "configuration", "convention", "base") and key + name != "modelname":
            found.append((f"{key}.{name}", value))
    return tuple(found)


def _dotted(settings, key):
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{key}.{name}")
        else:
            yield f"{key}.{name}"


def _holds(listed, key):
    return key == listed or key.startswith(listed + ".") or listed.startswith(key + ".")


def test_the_page_of_keys_is_up_to_date(monkeypatch):
    monkeypatch.delitem(BACKBONES, "resnet10", raising=False)  # that other tests register
    assert (ROOT / "docs/keys.md").read_text() == reference(), "kgarden recipe keys --markdown docs/keys.md"


def test_keys_on_the_command_line(call):
    code, out, _ = call("recipe", "keys", "schedule.warmup")
    assert code == 0 and out.splitlines()[0] == "schedule.warmup  [section or null, default null]"
    assert "schedule.warmup.factor  [number >= 0, required]\n" in out and "schedule.base_lr" not in out
    norm = call("recipe", "keys", "--model", "fcos", "model.dense_head.norm")[1]
    assert norm.startswith("model.dense_head.norm  [") and "norm_groups" not in norm
    assert call("recipe", "keys", "schedule.wa")[1] == out
    assert "seed  [integer" in call("recipe", "keys", "seed")[1]
    code, _, err = call("recipe", "keys", "shedule")
    assert code == 2 and "no key begins with 'shedule'" in err
    code, _, err = call("recipe", "keys", "--model", "fcoss")
    assert code == 2 and "did you mean 'fcos'?" in err
    code, _, err = call("recipe", "keys", "--set", "model.neck=fpn")
    assert code == 2 and "--model" in err


def test_validation_tells_every_fault(call, tmp_path):
    file = tmp_path / "mine.yaml"
    text = packaged_recipes()["quickstart"].read_text()
    file.write_text(text.replace("seed: 0", "seed: -1").replace("  steps: 900", "  stps: 900"))
    code, out, err = call("recipe", "validate", file)
    assert code == 2 and out == "" and len(err.splitlines()) == 3
    for words in (
        "unknown key 'schedule.stps', did you mean 'steps'?",
        "seed = -1",
        "schedule.steps is missing",
    ):
        assert words in err

    file.write_text(text)
    wrong = ["augment=mixpu", "loggers=[mlflow]", "model.neck.chanels=3", "init.weights=none.weights.h5"]
    wrong += ["schedule.decay={name: steps, at: [5000], factor: 2.0}"]
    if importlib.util.find_spec("mlflow"):
        wrong.remove("loggers=[mlflow]")
    code, out, err = call("recipe", "validate", file, *(part for one in wrong for part in ("--set", one)))
    assert code == 2 and out == "" and len(err.splitlines()) == len(wrong), err
    assert "'mixup'" in err and "'channels'" in err and "none.weights.h5" in err
    assert all(line.startswith("kgarden: ") for line in err.splitlines())

    code, out, err = call("recipe", "validate", file)
    assert code == 0 and out == f"{file}: valid\n" and err == ""
    code, _, err = call("recipe", "validate", file, "--set", "data.canvases=[[100, 100]]")
    assert code == 2 and "data.canvases: 100x100 is not divisible" in err
    code, _, err = call("recipe", "validate", file, "--row", "none")
    assert code == 2 and "no row 'none'" in err


def test_differences_of_recipes_and_rows(call, tmp_path):
    copy = tmp_path / "a:b.yaml"
    tree = yaml.safe_load(packaged_recipes()["quickstart"].read_text())
    tree["schedule"]["steps"] = 5
    tree["augment"] = ["horizontal_flip", {"mixup": {"alpha": 4}}]
    del tree["model"]["pixels"]
    copy.write_text(yaml.safe_dump(tree))
    code, out, err = call("recipe", "diff", "quickstart", copy)
    assert code == 0 and sorted(out.splitlines()) == [
        "augment.1.mixup.alpha: (not set) -> 4",
        'model.pixels: "torchvision" -> (not set)',
        "schedule.steps: 900 -> 5",
    ], err
    assert call("recipe", "diff", copy, copy)[1] == "no difference\n"
    row = next(
        name for name, row in load_recipe("shapes_double_head").rows.items() if row.set and not row.recipe
    )
    code, out, _ = call("recipe", "diff", "shapes_double_head", f"shapes_double_head:{row}")
    changed = load_recipe("shapes_double_head").rows[row].set
    assert code == 0 and all(key in out for key in changed)
    assert "\nrows." not in call("recipe", "diff", "quickstart", "shapes_double_head")[1]


def test_completion_answers_the_shell():
    """Names of recipes, rows of the recipe on the line, keys of sections; the scripts name the program."""

    def answers(words):
        environment = {
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
            "_KGARDEN_COMPLETE": "complete_bash",
        }
        code = "import sys; from kgarden.cli import main; sys.exit(main([]))"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
        )
        return done.stdout.split()

    assert answers("kgarden train quick") == ["quickstart"]
    rows = load_recipe("shapes_double_head").rows
    assert answers("kgarden train shapes_double_head --row ") == list(rows)
    assert answers("kgarden train fcos --set schedule.warmup.f") == ["schedule.warmup.factor="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(call, shell):
    code, out, _ = call("completion", shell)
    assert code == 0 and f"_KGARDEN_COMPLETE=complete_{shell}" in out

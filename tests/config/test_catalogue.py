"""Summaries read from sources equal what the imported objects say."""

import os
import subprocess
import sys

import pytest

from kgarden import cli
from kgarden.cli.options import entry
from kgarden.config.catalogue import recipe_summaries, summaries
from kgarden.models import MODELS


def test_models_are_described_by_their_docstrings():
    found = summaries("models", "MODELS")
    assert list(found) == list(MODELS)
    for name, (text, _) in found.items():
        assert text == " ".join(MODELS[name].__doc__.split("\n\n")[0].split()) and text[-1] in ".)", name


@pytest.mark.tensorflow
def test_transforms_are_described_by_their_docstrings_and_defaults():
    from kgarden.data.transforms import describe

    found = summaries("data/transforms", "TRANSFORMS")
    for name, settings, first_line in describe():
        text, defaults = found.pop(name)
        assert text.startswith(first_line)
        assert {key: value for key, value in defaults.items() if key != "antialias"} == settings
    assert not found


def test_recipes_are_described_by_whole_sentences(capsys):
    found = recipe_summaries()
    assert found["bccd_fcos_pss"].endswith("a branch that is not detached.")  # two lines of the file
    assert "Six classes" not in found["quickstart"] and not any(
        "kgarden train" in text for text in found.values()
    )
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "  bccd_fcos_pss            FCOS_PSS, a detector" in out and "models:\n  atss " in out
    assert all(text in out for text in found.values())


def test_long_texts_are_wrapped_on_a_terminal_alone(monkeypatch):
    text = "word " * 30
    assert "\n" not in entry("name", text)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    first, *others = entry("name", text).splitlines()
    assert first.startswith("name                     word") and len(first) <= 60
    assert others and all(line.startswith(" " * 25 + "word") and len(line) <= 60 for line in others)


def test_lists_neither_import_the_backend_nor_print_its_messages():
    code = (
        "import sys, kgarden.cli\n"
        "for what in ('all', 'recipes', 'models', 'transforms', 'backbones', 'datasets'):\n"
        "    assert kgarden.cli.main(['list', what]) == 0\n"
        "assert not {'tensorflow', 'keras', 'jax', 'numpy'} & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr

"""What the start of a command sets in the environment, and what it leaves to the user."""

import os

import pytest

from kgarden import cli
from kgarden.cli import options

NAMES = ("TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")


@pytest.fixture
def environment(monkeypatch):
    """The process's environment without the variables that matter here."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the command sets is undone
        monkeypatch.delenv(name)
    return monkeypatch


def test_jax_keeps_programs_in_the_users_cache(environment, tmp_path):
    environment.setenv("HOME", str(tmp_path))
    options.keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache/kgarden/jax")
    environment.delenv("JAX_COMPILATION_CACHE_DIR")
    environment.setenv("XDG_CACHE_HOME", "/elsewhere")
    options.start_tensorflow(keep_programs=False)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    options.start_tensorflow()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere/kgarden/jax"
    environment.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    options.start_tensorflow()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"


def test_tensorflow_is_silent_unless_the_user_asks(environment, capsys):
    assert cli.main(["--version"]) == 0
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    environment.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    assert cli.main(["--version"]) == 0
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"

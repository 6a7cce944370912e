"""The real photos and annotations that tests may use: a directory named by KGARDEN_DATA."""

import os
import pathlib

import pytest

BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared/data"  # beside the repository
DATA = pathlib.Path(os.environ.get("KGARDEN_DATA", BESIDE))


def folder(*names):
    """A directory of the real data; skips the test if it is not there."""
    path = DATA.joinpath(*names)
    if not path.exists():
        pytest.skip(f"no real data at {path}: set KGARDEN_DATA")
    return path


def weights(name):
    """A real file of ImageNet weights, beside the data; skips the test if it is not there."""
    path = DATA.parent / "weights" / name
    if not path.exists():
        pytest.skip(f"no real weights at {path}: set KGARDEN_DATA")
    return path

"""The folder of an exported model: numbered versions, each written aside and renamed."""

import contextlib
import datetime
import json
import os
import pathlib
import shutil

import tensorflow as tf

from kgarden.errors import UserError


@contextlib.contextmanager
def new_version(to, form):
    """A folder to write into that becomes TO/<next free number>/ at the end, or vanishes on an error.

    Args:
        to:   parent of the version directories; made where it is missing.
        form: of the model. Versions of one folder are of one form: a server takes the highest.
    Yields:
        (folder to write into, path that it will have).
    Raises:
        UserError: a file is in the way, or versions of another form.
    """
    to = pathlib.Path(to)
    if to.exists() and not to.is_dir():
        raise UserError(f"{to}: is a file; name a directory for the export")
    to.mkdir(parents=True, exist_ok=True)
    versions = sorted(path for path in to.iterdir() if path.name.isdigit())
    for version in versions:
        if (other := _form_of(version)) != form:
            raise UserError(
                f"{version} is {other}, a server would mix it up with {form}: name another folder"
            )
    aside = to / f".exporting.{os.getpid()}"
    version = to / str(1 + max((int(path.name) for path in versions), default=0))
    try:
        aside.mkdir()
        yield aside, version
        os.rename(aside, version)  # refuses a directory that has come to be in the meantime
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _form_of(version):
    if (version / "saved_model.pb").is_file():
        return "saved_model"
    try:
        return json.loads((version / "metadata.json").read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return "not of kgarden"


def views_left_out(recipe):
    """A line on the views that an exported model does without, or None where there is one view anyway."""
    views = recipe.evaluate.views
    if views is None or views.number == 1:
        return None
    return (
        f"evaluate.views: the model answers from one view, at the test size, not from {views.number}; "
        f"`kgarden predict` merges them"
    )


def write_beside(folder, recipe, categories, metadata):
    """labels.txt, recipe.yaml and metadata.json: what a client has to know.

    Args:
        categories: [{"id", "name"}, ...] in label order.
        metadata:   what this form adds to what all have.
    """
    lines = [f"{category['id']} {category['name']}" for category in categories]
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    everything = {
        "model": recipe.model.name,
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "classes": categories,
        **metadata,
        **({"views": line} if (line := views_left_out(recipe)) else {}),
        "tensorflow": tf.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    (folder / "metadata.json").write_text(json.dumps(everything, indent=1) + "\n")

"""Version directories of exported models: numbered and written atomically."""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

import tensorflow as tf

from kgarden.errors import OutputError, UserError
from kgarden.utils.files import make_folder, writing
from kgarden.utils.process_lock import locked

ASIDE = ".exporting."  # then the process, or "lock"
OF_THE_DISK = tuple(
    os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
)


@contextlib.contextmanager
def new_version(to, form: str) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Context with a temporary folder that becomes TO/<next free number>/, or is deleted on an error.

    Args:
        to:   parent of the version directories; created if it is missing.
        form: format of the model. All versions in a folder have one format, because a server loads the
              highest.
    Yields:
        (temporary folder, final path).
    Raises:
        UserError: `to` is a file, holds versions of another format, or another process exports to it; or the
                   disk is full or read-only.
    """
    to = make_folder(to)
    with locked(to / f"{ASIDE}lock", str(to), say=lambda line: None):
        version = _next_version(to, form)
        for leftover in to.glob(f"{ASIDE}*[0-9]"):  # of an export that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        aside = to / f"{ASIDE}{os.getpid()}"
        try:
            with _writing(version):
                aside.mkdir()
                yield aside, version
                os.rename(aside, version)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _next_version(to, form):
    versions = sorted(path for path in to.iterdir() if path.name.isdigit())
    for version in versions:
        if (other := _form_of(version)) != form:
            raise UserError(
                f"{version} is {other}; versions in a folder must have one format: give another folder "
                f"for {form}"
            )
    return to / str(1 + max((int(path.name) for path in versions), default=0))


@contextlib.contextmanager
def _writing(version):
    """Raises OutputError where the version cannot be written, also by TensorFlow."""
    try:
        with writing(version):
            yield
    except tf.errors.OpError as error:
        reason = next((one for one in OF_THE_DISK if one in (error.message or "")), None)
        if reason is None:
            raise
        raise OutputError(version, reason) from error


def _form_of(version):
    if (version / "saved_model.pb").is_file():
        return "saved_model"
    try:
        return json.loads((version / "metadata.json").read_text())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return "not an export of kgarden"


def views_left_out(recipe) -> str | None:
    """Returns a line on the test-time views that an exported model omits; None if there is one view only."""
    views = recipe.evaluate.views
    if views is None or views.number == 1:
        return None
    return (
        f"evaluate.views: the exported model uses one view, at the test size, instead of {views.number}; "
        f"`kgarden predict` merges all views"
    )


def write_beside(folder: pathlib.Path, recipe, categories: list[dict], metadata: dict) -> None:
    """Writes labels.txt, recipe.yaml and metadata.json for clients.

    Args:
        folder:     temporary folder of the version.
        recipe:     the recipe of the model.
        categories: [{"id", "name"}, ...] in label order.
        metadata:   entries of the format, added to the common ones.
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

"""Files written aside and renamed, so that a reader never sees half of one."""

import json
import os
import pathlib

from kgarden.errors import UserError


def write_json(path, content):
    """A json file, whole at any time."""
    text = json.dumps(content, indent=1 if isinstance(content, dict) else None) + "\n"
    replace_file(pathlib.Path(path), text.encode())


def replace_file(path, content):
    """Write bytes aside, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path):
    """What a json file holds; UserError if it is not there or not whole."""
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no whole json file ({error})") from error

"""Class lists from label maps (.pbtxt), JSON, CSV or plain text."""

import csv
import json
import pathlib
import re

from tfrecords.files import read_text
from tfrecords.schema import DataError
from tfrecords.values import as_int, text

NAMED = 5  # classes that a message names
TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<word>[\w.+-]+)|(?P<mark>[{}:,;<>])"""
)


def read_labels(path):
    """Read a class list -> [{"id", "name"}, ...] by ascending id.

    Args:
        path: format by suffix: .pbtxt, a label map of the TF Object Detection API; .json, {id: name},
              {name: id}, [{"id", "name"}, ...], COCO JSON, or [name, ...]; .csv, lines of id,name with or
              without a header; anything else, one name per line. Names without ids get 1, 2, ...
    Raises:
        DataError: it cannot be read, an id is not an integer, or an id is duplicated.
    """
    path = pathlib.Path(path)
    content = read_text(path)
    reader = {".pbtxt": _from_pbtxt, ".json": _from_json, ".csv": _from_csv}.get(
        path.suffix.lower(), _from_lines
    )
    try:
        pairs = [(as_int(number), text(name)) for number, name in reader(content)]
    except (ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
        raise DataError(f"{path}: not a class list: {error}") from None
    numbers = [number for number, _ in pairs]
    if not pairs or None in numbers or not all(name for _, name in pairs):
        raise DataError(f"{path}: every class needs an integer id and a name")
    if len(set(numbers)) < len(numbers):
        duplicate = next(number for number in numbers if numbers.count(number) > 1)
        raise DataError(f"{path}: two classes have the id {duplicate}")
    return [{"id": number, "name": name} for number, name in sorted(pairs)]


def difference(one, other, *, names):
    """States how two lists of classes differ: which class, which id, in which file; None if they are equal.

    Args:
        one, other: [{"id", "name"}, ...] in label order.
        names:      of their two sources.
    """
    pairs = [[(category["id"], category["name"]) for category in categories] for categories in (one, other)]
    if pairs[0] == pairs[1]:
        return None
    (here, there), (mine, theirs) = names, ({name: number for number, name in listed} for listed in pairs)
    parts = []
    for place, ids, others in ((here, mine, theirs), (there, theirs, mine)):
        if alone := [f"{name} (id {number})" for name, number in ids.items() if name not in others]:
            parts.append(f"only {place} has {_some(alone)}")
    if moved := [name for name in mine if name in theirs and mine[name] != theirs[name]]:
        of_ids = (", ".join(f"{name} {ids[name]}" for name in moved[:NAMED]) for ids in (mine, theirs))
        parts.append(f"ids differ ({next(of_ids)} in {here}; {next(of_ids)} in {there})")
    if not parts:
        orders = [_some([name for _, name in listed]) for listed in pairs]
        parts.append(f"the order differs ({orders[0]} in {here}; {orders[1]} in {there})")
    return "; ".join(parts)


def _some(items):
    return ", ".join(items[:NAMED]) + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")


def _from_lines(content):
    return enumerate((line for line in map(str.strip, content.splitlines()) if line), 1)


def _from_csv(content):
    rows = [row for row in csv.reader(content.splitlines()) if any(map(str.strip, row))]
    if any(len(row) != 2 for row in rows):
        raise ValueError("a line is not id,name")
    has_header = rows and as_int(rows[0][0]) is None and as_int(rows[0][1]) is None
    rows = rows[1:] if has_header else rows
    swapped = all(as_int(name) is not None and as_int(number) is None for number, name in rows)
    return [row[::-1] for row in rows] if swapped else rows


def _from_json(content):
    tree = json.loads(content)
    if isinstance(tree, dict) and isinstance(tree.get("categories"), list):
        tree = tree["categories"]
    if isinstance(tree, dict):
        swapped = all(as_int(key) is None for key in tree)
        return [(value, key) if swapped else (key, value) for key, value in tree.items()]
    if all(isinstance(one, str) for one in tree):
        return enumerate(tree, 1)
    return [(one["id"], one["name"]) for one in tree]


def _from_pbtxt(content):
    """The items of a StringIntLabelMap: id, and display_name if it has one, else name."""
    tokens = list(_tokens(content))
    position = 0
    while position < len(tokens):
        if tokens[position] != "item":
            raise ValueError(f"expected 'item', not {tokens[position]!r}")
        start = position + 1 + (tokens[position + 1 : position + 2] == [":"])
        fields, position = _message(tokens, start)
        yield fields["id"], fields.get("display_name") or fields["name"]


def _message(tokens, position):
    """({key: value} of the message that starts at a "{", the position after its "}")."""
    if tokens[position : position + 1] not in (["{"], ["<"]):
        raise ValueError("expected '{' after 'item'")
    fields, position = {}, position + 1
    while True:
        if position >= len(tokens):
            raise ValueError("a '{' is never closed")
        key, mark = tokens[position], tokens[position + 1 : position + 2]
        if key in ("}", ">"):
            return fields, position + 1
        if key in (",", ";"):
            position += 1
        elif mark == [":"] and tokens[position + 2 : position + 3] not in (["{"], ["<"], []):
            fields[key] = _unquoted(tokens[position + 2])
            position += 3
        else:  # a nested message, for example keypoints
            _, position = _message(tokens, position + 1 + (mark == [":"]))


def _tokens(content):
    position = 0
    while position < len(content):
        match = TOKEN.match(content, position)
        if not match:
            raise ValueError(f"cannot parse {content[position : position + 20]!r}")
        if match.lastgroup:
            yield match.group()
        position = match.end()


def _unquoted(token):
    if token[0] not in "'\"":
        return token
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), token[1:-1])

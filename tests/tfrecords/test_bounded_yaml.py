"""YAML that stands for far more than it says is refused with its line, at once."""

import time

import pytest
import yaml

from tfrecords import bounded_yaml
from tfrecords.bounded_yaml import MAX_CHARACTERS, MAX_DEPTH, MAX_DIGITS, MAX_NODES, load

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
REFUSED = {
    "aliases of aliases": (LAUGHS, "values, aliases included", 6),
    "merges of merges": (MERGES, "values, aliases included", 6),
    "recursive": ("a: 1\nb: &b [1, *b]", "contains itself", 2),
    "recursive key": ("a: 1\nb: &b {k: {m: *b}}", "contains itself", 2),
    "deep": ("\n" + "[" * 3000 + "]" * 3000, "nested more than 50 levels", 2),
    "digits": ("a: 1\nb: " + "9" * 5000, "more than 30 digits", 2),
    "key": ("a: 1\n? [1, 2]\n: 3", "a key that is a list", 2),
    "key of braces": ("a: 1\n{}: 3", "a key that is a list", 2),
    "wrong integer": ("a: 1\nb: !!int abc", "'abc' is no int", 2),
    "python": ("a: 1\nb: !!python/object/apply:os.system [ls]", "is not supported", 2),
    "bytes": ("a: 1\nb: !!binary aGFsbG8=", "is not supported", 2),
    "set": ("a: 1\nb: !!set {x, y}", "is not supported", 2),
    "date": ("a: 1\nb: !!timestamp 2001-99-99", "is not supported", 2),
    "two documents": ("a: 1\n---\nb: 2", "another document", 2),
}  # fmt: skip


@pytest.mark.parametrize("text,words,line", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(text, words, line):
    started = time.monotonic()
    with pytest.raises(yaml.YAMLError) as caught:
        load(text)
    assert words in bounded_yaml.reason_of(caught.value) and "\n" not in bounded_yaml.reason_of(caught.value)
    assert bounded_yaml.line_of(caught.value) == line
    assert time.monotonic() - started < 5


def test_a_long_text_is_refused_before_it_is_parsed():
    with pytest.raises(yaml.YAMLError, match="characters"):
        load("a" * (MAX_CHARACTERS + 1))
    assert load("a" * MAX_CHARACTERS) == "a" * MAX_CHARACTERS


def test_what_is_just_inside_the_bounds():
    deep = load("[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1))
    for _ in range(MAX_DEPTH - 1):
        (deep,) = deep
    assert deep == 1
    assert load("9" * MAX_DIGITS) == int("9" * MAX_DIGITS)
    part = ", ".join("x" * 999)
    listed = load(f"- &a [{part}]\n" + "- *a\n" * 98)  # 1 + 99 * 1000 values
    assert sum(map(len, listed)) == 99 * 999 < MAX_NODES
    with pytest.raises(yaml.YAMLError, match="values"):
        load(f"- &a [{part}]\n" + "- *a\n" * 99 + f"- [{part}]")


def test_ordinary_yaml_is_read_as_yaml_reads_it():
    text = "base: &b {x: 1, y: [2.5, yes]}\nmore: {<<: *b, x: null}\n3: 'text'\nagain: [*b, *b]\n"
    assert load(text) == yaml.safe_load(text)
    assert load("day: 2001-09-09\nbad: 2001-99-99") == {"day": "2001-09-09", "bad": "2001-99-99"}

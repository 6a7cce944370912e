"""Documents: their commands parse, their links lead to files."""

import pathlib
import re
import shlex

import pytest
import typer.main

from kgarden.cli import app

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks/README.md",
    ROOT / "tfrecords/README.md",
    *(ROOT / "docs").rglob("*.md"),
]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def commands(path):
    """The `kgarden ...` commands of a page or of a recipe's comments, without explanations."""
    text = re.sub(r"\\\n[\s#]*", " ", path.read_text())
    prefix = r"\s*# +" if path.suffix == ".yaml" else r"\s*(?:\$ )?"
    found = re.findall(rf"^{prefix}(kgarden .*)$", text, re.MULTILINE)
    if path.suffix == ".md":
        found += re.findall(r"`(kgarden [^`\n]* --[^`\n]*)`", text)
    lines = [re.split(r"\s{2,}|\s#", line)[0] for line in found]
    return [line.removesuffix("'") if line.count("'") % 2 else line for line in lines]


def parse(arguments):
    """Resolves the sub-command and parses its options, without running it."""
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        context = command.make_context("kgarden", arguments[:1], parent=context, resilient_parsing=True)
        name, command, _ = command.resolve_command(context, arguments)
        arguments = arguments[1:]
    command.make_context(name, arguments, parent=context, resilient_parsing=False)


def test_commands_in_the_documents_parse():
    lines = [(path, line) for path in [*PAGES, *RECIPES] for line in commands(path)]
    failures = []
    for path, line in lines:
        try:
            parse(shlex.split(line)[1:])
        except Exception as error:
            failures.append(f"{path.relative_to(ROOT)}: {line}: {error!r} {getattr(error, 'message', '')}")
    assert not failures, "\n".join(failures)
    assert len(lines) > 60


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(Exception, match="(?i)no such option"):
        parse(["train", "fcos", "--no-such-option", "1"])


def test_documents_link_to_files_that_exist():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tfrecords").glob("*.md")]
    assert ROOT / "README.md" in pages
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"

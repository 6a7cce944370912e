"""Documents: every command in them parses, every file and image that they link to exists."""

import pathlib
import re
import shlex

import pytest
import typer

from kgarden.cli import app

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])
README, KERAS = ROOT / "README.md", ROOT / "docs/keras.md"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LINE = re.compile(r"^(?:#\s*)?(?:pip install [^&]+&& )?(kgarden [a-z].*)$")
IN_PROSE = re.compile(r"`(kgarden [a-z][^`]*)`")
EXPLANATION = re.compile(r"^((?:\S+\s+){2}\S.*?)(?:\s{2,}(?![-\s])|\s\(|\s#).*$")  # text behind a command


def commands_of(path):
    """Command lines of a page or a recipe: lines that begin with `kgarden`, and code in prose."""
    text = re.sub(r"\s*\\\n[#\s]*", " ", path.read_text())
    for line in text.splitlines():
        if match := LINE.match(line.strip()):
            command = EXPLANATION.sub(r"\1", match.group(1))
            yield (
                command.removesuffix("'") if command.count("'") % 2 else command
            )  # the end of a quoted script
    for command in IN_PROSE.findall(text):
        if not re.search(r"…|\.\.\.|[|\n]", command) and len(command.split()) > 2:
            yield command


WHOLE = typer.main.get_command(app)
COMMANDS = [(path.relative_to(ROOT), line) for path in (*PAGES, *RECIPES) for line in commands_of(path)]


def test_commands_are_found():
    assert len(COMMANDS) > 100
    assert {place.name for place, _ in COMMANDS} >= {
        "README.md",
        "double_head.md",
        "training.md",
        "fcos.yaml",
    }


@pytest.mark.parametrize("place,line", COMMANDS, ids=str)
def test_commands_parse(place, line):
    """Unknown verbs, options and superfluous arguments are errors; prose may leave arguments out."""
    command, words, context = WHOLE, shlex.split(line)[1:], None
    while hasattr(command, "commands"):
        context = command.context_class(command, parent=context)
        _, command, words = command.resolve_command(context, words)
    try:
        command.make_context("kgarden", words)
    except Exception as error:
        prose = f"`{line}`" in (ROOT / place).read_text()
        assert prose and re.search("Missing parameter|requires an argument", str(error)), f"{line}: {error}"


def test_links_lead_to_files():
    count = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                count += 1
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
    assert count > 50


def test_every_page_has_a_place_in_the_site():
    """Of navigation and pages; the links themselves are checked when the site is built."""
    text = (ROOT / "mkdocs.yml").read_text()
    placed = re.findall(r"^ +- [^#\n]*: (\S+\.md)$", text, re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(placed) == sorted(pages)


def test_the_example_of_the_readme_is_that_of_the_page_that_is_run():
    examples = [re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL) for path in (README, KERAS)]
    assert examples[0] == examples[1][:1]

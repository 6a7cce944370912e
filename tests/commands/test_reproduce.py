"""Tables of papers: which rows there are, the commands that make them, and small versions on drawn data."""

import functools
import json
import pathlib
import shlex

import pytest
import typer

pytest.importorskip("tensorflow")

from kgarden import cli  # noqa: E402
from kgarden.commands import reproduce  # noqa: E402
from kgarden.commands.reproduce import PAPERS, hours, papers_page, plan, run_small  # noqa: E402
from kgarden.config.loading import load_recipe  # noqa: E402
from kgarden.errors import UserError  # noqa: E402

pytestmark = pytest.mark.tensorflow
ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def commands():
    return typer.main.get_command(cli.app)


def parsed(line):
    """Whether the command line takes a command."""
    command, words, context = commands(), shlex.split(line)[1:], None
    while hasattr(command, "commands"):
        context = command.context_class(command, parent=context)
        _, command, words = command.resolve_command(context, words)
    return command.make_context("kgarden", words)


@pytest.mark.parametrize("name", PAPERS)
def test_rows_of_tables_are_in_the_plan_with_commands_that_parse(name):
    steps = plan(name)
    in_recipes = {
        (stem, row)
        for stem in PAPERS[name].recipes
        for row in load_recipe(stem).rows
        if row.split(".")[0].removeprefix("table").isdigit() and row.startswith("table")
    }
    assert {(step.recipe, step.row) for step in steps} == in_recipes
    assert [int(step.table[5:]) for step in steps] == sorted(int(step.table[5:]) for step in steps)
    for step in steps:
        assert parsed(step.command)
        evaluated = load_recipe(step.recipe).rows[step.row].evaluates
        assert (step.images == 0) == (evaluated is not None)
        assert f"runs/{step.recipe}.{evaluated or step.row}" in step.command


def test_what_a_step_costs_and_changes():
    by_row = {step.row: step for step in plan("centernet2")}
    trained = by_row["table1.c_centernet"]
    assert trained.images == 90_000 * 16 and trained.data == "data/coco/train2017" and trained.refused is None
    assert hours(trained, 100.0) == pytest.approx(1_440_000 / 360_000)
    assert by_row["table2.p3_24x"].images == 6 * 360_000 * 16  # six stages
    command = by_row["table4.p3_p7_256p"].command
    assert command == (
        "kgarden evaluate runs/centernet2.table4.p3_p7 --set model.proposer.test=256 --to "
        "runs/centernet2.table4.p3_p7_256p"
    )
    refused = [step for step in plan("pss") if step.refused]
    assert refused and all("_dcn is not available" in step.refused for step in refused)
    assert {step.table for step in plan("double_head", 2)} == {"table2"}
    with pytest.raises(UserError, match="double_head has no rows of table 99; there are tables 1, 2, "):
        plan("double_head", 99)
    with pytest.raises(UserError, match="paper 'yolo' is not known; use one of centernet2, "):
        plan("yolo")


def test_commands_and_hours_are_printed(capsys):
    assert cli.main(["reproduce", "tsd", "--table", "6", "--images-per-second", "10"]) == 0
    printed = capsys.readouterr().out
    assert "kgarden train tsd_cascade --row table6" in printed and "hours at 10 images/s" in printed
    assert cli.main(["reproduce"]) == 0 and "double_head" in capsys.readouterr().out
    for options, said in (
        (["tsd", "--images-per-second", "0"], "a rate above 0"),
        (["tsd", "--to", "x"], "belong to --small"),
        (["tsd", "--small"], "--small needs --to DIR"),
        (["tsd", "--small", "--to", "x", "--table", "1"], "do not apply to --small"),
        (["tsd", "--page", "x.md"], "leave PAPER out"),
    ):
        assert cli.main(["reproduce", *options]) == 2
        assert said in capsys.readouterr().err


def test_the_page_of_papers_is_up_to_date():
    assert (ROOT / "docs/papers.md").read_text() == papers_page(), "kgarden reproduce --page docs/papers.md"


def test_small_versions_train_every_row_on_drawn_data(tmp_path, monkeypatch):
    trained = {}

    def train(recipe, run, reporter=None):
        trained[pathlib.Path(run).name] = recipe
        return {"metrics": {"ap": 1.25 * len(trained), "ap50": 50.0, "ap75": None}, "train_s": 7}

    monkeypatch.setattr(reproduce, "train", train)
    lines = []
    results = run_small("tsd", tmp_path / "tsd", steps=8, say=lines.append)
    recipe = load_recipe("neu_det_tsd")
    assert list(trained) == [row for row, settings in recipe.rows.items() if settings.evaluates is None]
    for one in trained.values():
        assert one.init is None and one.model.model_extra["backbone"]["freeze_at"] == 0
        assert {source.format for source in (*one.data.train, *one.data.val)} == {"shapes"}
        assert one.schedule.steps == 8 and one.schedule.warmup.steps == 2 and one.evaluate.every is None
    assert lines[0] == f"1 of {len(trained)}: {next(iter(trained))}"
    table = (tmp_path / "tsd" / "table.md").read_text()
    assert f"| {results[0]['row']} | 1.2 | 50.0 | – | 7 |" in table and "shapes" in table
    trained.clear()
    run_small("double_head", tmp_path / "heads", rows=["single_fc", None], say=lines.append)
    assert list(trained) == ["single_fc", "shapes_double_head"]
    assert trained["single_fc"].schedule.steps == load_recipe("shapes_double_head").schedule.steps
    with pytest.raises(UserError, match="shapes_double_head trains no row 'ext_max'; there are single_fc, "):
        run_small("double_head", tmp_path / "heads", rows=["ext_max"])
    monkeypatch.setattr(reproduce, "train", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match="interrupted; run the same command again"):
        run_small("double_head", tmp_path / "heads", rows=["single_fc"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_small_versions_run(tmp_path, name):
    small = PAPERS[name]
    rows = [row for row, one in load_recipe(small.small).rows.items() if one.evaluates is None][:1]
    options = ["--small", "--to", str(tmp_path / "out"), "--steps", "2", "--rows", ",".join(rows)]
    assert cli.main(["reproduce", name, *options]) == 0
    assert json.loads((tmp_path / "out" / rows[0] / "evaluation.json").read_text())["step"] == 2
    assert rows[0] in (tmp_path / "out" / "table.md").read_text()

"""Reproduction of a paper's tables: what is to be run, at what cost, and small versions on drawn data.

The rows of the recipes are the rows of the tables; PAPERS says which recipes are of which paper.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from kgarden.backbones import missing_backbone
from kgarden.commands.train import train
from kgarden.config.loading import load_recipe, stage_recipes
from kgarden.errors import UserError
from kgarden.training.reporter import Reporter
from kgarden.utils.output_folder import OutputFolder

SIDE = 192  # px of drawn images
DRAWN = {  # instead of photos: the synthetic set of shapes, and no weights to begin with
    "data.train": [{"format": "shapes", "count": 600, "seed": 1, "size_hw": [SIDE, SIDE]}],
    "data.val": [{"format": "shapes", "count": 120, "seed": 2, "size_hw": [SIDE, SIDE]}],
    "init": None,
    "model.backbone.freeze_at": 0,
}
METRICS = ("ap", "ap50", "ap75")  # of the table of small runs


class Paper(NamedTuple):
    """A paper whose tables have rows in recipes.

    Attributes:
        title:   with authors and arXiv number.
        recipes: packaged recipes whose rows are rows of its tables.
        small:   packaged recipe that compares small models.
        drawn:   whether that one needs DRAWN: its own data are photos.
    """

    title: str
    recipes: tuple[str, ...]
    small: str
    drawn: bool = False


PAPERS = {
    "centernet2": Paper(
        "Zhou, Koltun, Krähenbühl 2021, Probabilistic two-stage detection, arXiv:2103.07461",
        (
            "centernet2",
            "centernet2_realtime",
            "centernet2_large",
            "centernet2_lvis",
            "centernet2_objects365",
            "retinanet",
            "atss",
            "gfl",
        ),
        "neu_det_centernet2",
        drawn=True,
    ),
    "double_head": Paper(
        "Wu et al. 2020, Rethinking Classification and Localization for Object Detection, arXiv:1904.06493",
        ("double_head", "double_head_voc07"),
        "shapes_double_head",
    ),
    "fscascade": Paper(
        "Li et al. 2019, FSCascade, arXiv:1907.11914", ("fscascade",), "neu_det_fscascade", drawn=True
    ),
    "pss": Paper(
        "Zhou et al. 2021, Object detection made simpler by eliminating heuristic NMS, arXiv:2101.11782",
        ("fcos_pss", "atss_pss", "condinst_pss"),
        "shapes_fcos_pss",
    ),
    "tsd": Paper(
        "Song, Liu, Wang 2020, Revisiting the Sibling Head in Object Detector, arXiv:2003.07540",
        ("tsd", "tsd_cascade"),
        "neu_det_tsd",
        drawn=True,
    ),
}


class Step(NamedTuple):
    """A row of a table.

    Attributes:
        table:    such as "table1".
        recipe:   packaged recipe.
        row:      of that recipe.
        command:  what is to be run.
        reported: {metric: the authors' value}.
        images:   to train on, repetitions counted; 0 where a run of another row is evaluated.
        data:     the training data of the recipe.
        refused:  why it cannot be built; None if it can.
    """

    table: str
    recipe: str
    row: str
    command: str
    reported: dict
    images: int
    data: str
    refused: str | None


def paper_of(name: str) -> Paper:
    """Returns a paper by its name in PAPERS.

    Raises:
        UserError: unknown name.
    """
    if name not in PAPERS:
        raise UserError(f"paper {name!r} is not known; use one of {', '.join(PAPERS)}")
    return PAPERS[name]


def plan(name: str, table: int | None = None) -> list[Step]:
    """Lists what is to be run for the tables of a paper.

    Args:
        name:  a key of PAPERS.
        table: number of the table; None: all.
    Raises:
        UserError: unknown paper, or it has no row of that table.
    """
    steps = [step for stem in paper_of(name).recipes for step in _steps(stem)]
    tables = sorted({step.table for step in steps}, key=_number)
    if table is None:
        return sorted(steps, key=lambda step: _number(step.table))
    chosen = [step for step in steps if step.table == f"table{table}"]
    if not chosen:
        known = ", ".join(str(_number(one)) for one in tables)
        raise UserError(f"{name} has no rows of table {table}; there are tables {known}")
    return chosen


def _number(table):
    return int(table.removeprefix("table"))


def _steps(stem):
    """The rows of a recipe that belong to a table."""
    recipe = load_recipe(stem)
    for row_id, row in recipe.rows.items():
        table = row_id.split(".")[0]
        if re.fullmatch(r"table\d+", table):
            chosen = load_recipe(stem, row=row_id)
            trained = row.evaluates is None
            images = sum(one.schedule.steps * one.data.batch_size for one in stage_recipes(chosen))
            command = _training(stem, row_id) if trained else _evaluation(stem, row_id, recipe)
            data = ", ".join(source.glob or source.format for source in chosen.data.train)
            yield Step(
                table=table,
                recipe=stem,
                row=row_id,
                command=command,
                reported=row.reported,
                images=images * trained,
                data=data,
                refused=_refusal(chosen),
            )


def _training(stem, row):
    return f"kgarden train {stem} --row {row} --run runs/{stem}.{row}"


def _evaluation(stem, row_id, recipe):
    """The command that evaluates the run of another row with the settings of this one."""
    row = recipe.rows[row_id]
    base = recipe.rows[row.evaluates].set
    changed = {key: value for key, value in row.set.items() if base.get(key, ()) != value}
    settings = [f"--set {_quoted(f'{key}={_text(value)}')}" for key, value in changed.items()]
    folder = f"runs/{stem}.{row_id}"
    return " ".join([f"kgarden evaluate runs/{stem}.{row.evaluates}", *settings, f"--to {folder}"])


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)


def _quoted(text):
    return f"'{text}'" if set(text) & set(" {}[]\"'*") else text


def _refusal(recipe):
    missing = missing_backbone((recipe.model.model_extra or {}).get("backbone"))
    return f"backbone {missing} is not available" if missing else None


def hours(step: Step, images_per_s: float) -> float:
    """Returns the hours that a step trains, by the rate of the machine that it runs on."""
    return step.images / images_per_s / 3600


def run_small(
    name: str,
    to: str | os.PathLike,
    steps: int | None = None,
    rows: list[str] | None = None,
    say: Callable[[str], object] = print,
    reporter: Reporter | None = None,
) -> list[dict]:
    """Trains the small comparison of a paper on drawn data, and writes its table.

    A call that was interrupted continues; runs that are complete are kept.

    Args:
        name:     a key of PAPERS.
        to:       folder for a run directory of each row, and table.md.
        steps:    length of each training; None: the recipe's.
        rows:     rows of the small recipe that are trained; None: all that are trained.
        say:      called with a line before each training.
        reporter: of the trainings.
    Returns:
        [{"row", "ap", "ap50", "ap75", "train_s"}, ...]
    Raises:
        UserError: unknown paper or row, or a folder that holds other runs.
    """
    paper = paper_of(name)
    folder = OutputFolder.of(to)
    folder.check("table.md")
    recipe = load_recipe(paper.small)
    trained = [
        row for row, settings in recipe.rows.items() if settings.evaluates is None and not settings.recipe
    ]
    chosen = rows if rows is not None else [None] * (not paper.drawn) + trained
    if unknown := [row for row in chosen if row is not None and row not in trained]:
        raise UserError(f"{paper.small} trains no row {unknown[0]!r}; there are {', '.join(trained)}")
    results = []
    for number, row in enumerate(chosen, start=1):
        say(f"{number} of {len(chosen)}: {row or paper.small}")
        run = pathlib.Path(to) / (row or paper.small)
        results.append(
            {"row": row or paper.small, **_trained(paper, row, run, steps=steps, reporter=reporter)}
        )
    folder.write("table.md", table_of(paper, results).encode())
    return results


def _trained(paper, row, run, *, steps, reporter):
    """Trains or resumes one row; its metrics in percent, and seconds."""
    overrides = dict(DRAWN) if paper.drawn else {}
    if steps is not None:
        warmup = min(100, max(1, steps // 4))
        overrides |= {"schedule.steps": steps, "schedule.warmup.steps": warmup, "evaluate.every": None}
    evaluation = train(load_recipe(paper.small, overrides, row), run, reporter=reporter)
    if evaluation is None:
        raise UserError(f"{run}: interrupted; run the same command again to continue")
    return {key: evaluation["metrics"].get(key) for key in METRICS} | {"train_s": evaluation.get("train_s")}


def table_of(paper: Paper, results: list[dict]) -> str:
    """Formats the results of `run_small` as Markdown."""
    where = "the synthetic set `shapes`" if paper.drawn else f"the data of `{paper.small}`"
    head = f"{paper.title}: small models of `{paper.small}` on {where}, one seed.\n\n"
    lines = ["| row | AP | AP50 | AP75 | training s |", "|---|---|---|---|---|"]
    for one in results:
        numbers = (f"{one[key]:.1f}" if one[key] is not None else "–" for key in METRICS)
        lines.append(f"| {one['row']} | {' | '.join(numbers)} | {one['train_s']} |")
    return head + "\n".join(lines) + "\n"


def papers_page() -> str:
    """Writes docs/papers.md: every row of every table, how it is run, and its published figures."""
    parts = [PAGE_HEAD]
    for name, paper in PAPERS.items():
        parts.append(
            f"## {name}\n\n{paper.title}. Small comparison: `kgarden reproduce {name} --small --to DIR`.\n"
        )
        lines = ["| table | row | recipe | published | state |", "|---|---|---|---|---|"]
        for step in plan(name):
            reported = ", ".join(f"{metric} {value}" for metric, value in step.reported.items())
            state = step.refused or ("trains" if step.images else "evaluates a run")
            lines.append(f"| {_number(step.table)} | {step.row} | {step.recipe} | {reported} | {state} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


PAGE_HEAD = """# Papers: tables and their state

Written by `kgarden reproduce --page docs/papers.md`.

Every row of a table is a row of a recipe: `kgarden reproduce PAPER` prints its commands (`--table 3`: of one
table), and with `--images-per-second 50`, the rate that `kgarden bench RECIPE --what train` measures on your
hardware, its hours. None of them has been trained at full size with kgarden yet; published figures are the
authors'. What small versions of them show is in the pages of the papers.
"""

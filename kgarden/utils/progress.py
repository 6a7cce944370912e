"""What a long work shows: a bar on a terminal, plain lines elsewhere."""

import contextlib
import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

LABELS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR 1",
    "ar10": "AR 10",
    "ar100": "AR 100",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}
OTHER_LABELS = {
    "voc07_map": "VOC07 mAP",
    "voc_area_map": "VOC mAP",
    "open_images_map": "Open Images mAP",
}
CLASS_LABELS = {
    "ap": "AP",
    "ap50": "AP50",
    "voc07_ap": "VOC07",
    "voc_area_ap": "VOC",
    "open_images_ap": "Open Images",
}


class Reporter:
    """Tells a person how far a work is.

    Args:
        console: rich.console.Console; None: standard output.
    """

    def __init__(self, console=None):
        self.console = console or Console(highlight=False)
        self.bar = self.task = None

    def line(self, text):
        """One line of its own, above the bar if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, total, done=0):
        """A work of `total` steps begins; on a terminal it has a bar."""
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("starting", total=total, completed=done)
            self.bar.start()
        self.total = total

    def advance(self, step):
        if self.bar:
            self.bar.update(self.task, completed=step)

    def values(self, step, terms, rate, images_per_s, waiting, seconds_left):
        """Numbers of the last steps.

        Args:
            terms:        {name: mean since the last call}, "loss" first.
            rate:         learning rate.
            waiting:      share of the time spent waiting for data, 0..1.
            seconds_left: of training.
        """
        text = "  ".join(f"{name} {value:.4g}" for name, value in terms.items())
        text += f"  lr {rate:.3g}  {images_per_s:.1f} images/s  waiting for data {100 * waiting:.0f} %"
        text += f"  {duration(seconds_left)} left"
        if self.bar:
            self.bar.update(self.task, completed=step, description=text)
        else:
            self.line(f"step {step}/{self.total}  {text}")

    def stop(self):
        if self.bar:
            self.bar.stop()
            self.bar = None

    def evaluation(self, evaluation):
        """The tables of numbers, in percent, and the cause where the first is nearly nothing."""
        self.console.print(*evaluation_tables(evaluation), sep="\n")
        if "not_judged" in (masks := evaluation.get("masks", {})):
            self.line(f"masks were not judged: {masks['not_judged']}")
        self.explanation(evaluation)

    def explanation(self, evaluation):
        """Why the headline is nearly nothing, if that was asked."""
        for sentence in evaluation.get("explanation", []):
            self.line(f"why: {sentence}")

    def interval(self, step, evaluation, best, best_step):
        """One line for an evaluation between two steps.

        Args:
            best, best_step: the best headline so far, this one included, and when it was reached; None
                where no weights could be kept.
        """
        verdict = f"best {best:.1f} at {best_step}" if best is not None else "no weights kept yet"
        verdict = "the best so far" if best_step == step else verdict
        pictures = f"on {evaluation['images']} pictures"
        self.line(f"step {step}/{self.total}  {summary(evaluation)}  {pictures}, {verdict}")
        self.explanation(evaluation)


@contextlib.contextmanager
def progress_of(things, console=None):
    """A function of (done, total) that shows a bar on a terminal, and a line every tenth elsewhere."""
    console = console or Console(highlight=False)
    if console.is_terminal:
        with Progress(
            TextColumn("{task.completed}/{task.total} " + things), BarColumn(), console=console
        ) as bar:
            task = bar.add_task(things)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenth = -1

    def tell(done, total):
        nonlocal tenth
        if 10 * done // max(total, 1) > tenth:
            tenth = 10 * done // max(total, 1)
            console.print(f"{done}/{total} {things}")

    yield tell


def evaluation_tables(evaluation):
    """[COCO's numbers, other measures', both of masks, by class] as rich tables, as far as measured."""
    title, masks = _title(evaluation), evaluation.get("masks", {})
    tables = _metric_tables(evaluation["metrics"], f"{title}, boxes" if masks else title)
    if "metrics" in masks:
        tables += _metric_tables(masks["metrics"], f"{title}, masks")
    tables.append(_class_table(evaluation["per_class"], masks.get("per_class")))
    if "errors" in evaluation:
        tables.append(_error_table(evaluation["errors"]))
    return tables


def _metric_tables(metrics, title):
    tables = []
    if "ap" in metrics:
        tables.append(_coco_table(metrics, title))
    others = [name for name in metrics if name in OTHER_LABELS]
    if others:
        table = Table(title=None if tables else title, title_justify="left")
        for name in others:
            table.add_column(OTHER_LABELS[name], justify="right")
        table.add_row(*(shown(metrics[name]) for name in others))
        tables.append(table)
    return tables


def _title(evaluation):
    if "recipe" in evaluation:
        subject = f"{evaluation['recipe']}, step {evaluation['step']}"
    else:
        subject = evaluation["detections_file"]
    masks = ", masks" if evaluation.get("iou_type") == "segm" else ""
    return f"{subject}, {evaluation['images']} pictures{masks}"


def _coco_table(metrics, title):
    table = Table(title=title, title_justify="left")
    for name, label in LABELS.items():
        if name.startswith("ap"):
            table.add_column(label, justify="right")
    for prefix in ("ap", "ar"):
        names = [name for name in LABELS if name.startswith(prefix)]
        if prefix == "ar":
            table.add_section()
            table.add_row(*(LABELS[name] for name in names))
        table.add_row(*(shown(metrics[name]) for name in names))
    return table


def _class_table(rows, of_masks=None):
    table = Table()
    numbers = [name for name in CLASS_LABELS if rows and name in rows[0]]
    labels = [CLASS_LABELS[name] for name in numbers]
    labels += [f"mask {label}" for label in labels if of_masks]
    for column in ("class", "objects", *labels):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row, *others in zip(rows, *([of_masks] if of_masks else []), strict=True):
        values = [one[name] for one in (row, *others) for name in numbers]
        table.add_row(row["name"], str(row["objects"]), *map(shown, values))
    return table


def _error_table(errors):
    table = Table()
    for column in ("error", "how many", "AP50 gained if put right"):
        table.add_column(column, justify="left" if column == "error" else "right")
    for kind, row in errors.items():
        table.add_row(kind, f"{row['count']:,}", shown(row["dap"]))
    return table


def summary(evaluation):
    """The few numbers of an evaluation that fit in a line, the headline first, those of masks last."""
    names = dict.fromkeys((evaluation["headline"], "ap", "ap50", *OTHER_LABELS))
    labels, masks = LABELS | OTHER_LABELS, evaluation.get("masks", {})
    parts = []
    for prefix, metrics in (("", evaluation["metrics"]), ("mask ", masks.get("metrics", {}))):
        parts += [f"{prefix}{labels[name]} {shown(metrics[name])}" for name in names if name in metrics]
    return "  ".join(parts + ["masks not judged"] * ("not_judged" in masks))


def shown(value):
    return "–" if value is None else f"{value:.1f}"


def duration(seconds):
    """12:05 or 3:12:05; "?" for what is not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

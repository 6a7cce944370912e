"""Metric tables: formats evaluations for a terminal."""

from rich.table import Table
from rich.text import Text

from kgarden.metrics.arrays import COCO_MAX_DETECTIONS
from kgarden.metrics.limits import limit_of, limited
from kgarden.metrics.tide import BEYOND
from kgarden.utils.text import printable

LABELS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}
OTHER_LABELS = {
    "voc07_map": "VOC07 mAP",
    "voc_area_map": "VOC mAP",
    "open_images_map": "Open Images mAP",
}
LVIS_APS = {
    "lvis_ap": "LVIS AP",
    "lvis_ap50": "AP50",
    "lvis_ap75": "AP75",
    "lvis_ap_small": "APs",
    "lvis_ap_medium": "APm",
    "lvis_ap_large": "APl",
    "lvis_ap_rare": "APr",
    "lvis_ap_common": "APc",
    "lvis_ap_frequent": "APf",
}
LVIS_ARS = {
    "lvis_ar300": "LVIS AR@300",
    "lvis_ar300_small": "ARs@300",
    "lvis_ar300_medium": "ARm@300",
    "lvis_ar300_large": "ARl@300",
}
IN_SUMMARY = (*OTHER_LABELS, *(f"lvis_ap{group}" for group in ("", "_rare", "_common", "_frequent")))
CLASS_LABELS = {
    "ap": "AP",
    "ap50": "AP50",
    "voc07_ap": "VOC07",
    "voc_area_ap": "VOC",
    "open_images_ap": "Open Images",
    "lvis_ap": "LVIS AP",
}


def label_of(metric: str) -> str:
    """Returns the printed name of a metric: AP50; AP50@300 under another limit than COCO's; AR 10."""
    name, limit = limit_of(metric)
    if name.startswith("ar") and name[2:].isdigit():
        return f"AR {name[2:]}"
    return (LABELS | OTHER_LABELS | LVIS_APS | LVIS_ARS)[name] + (f"@{limit}" if limit else "")


def evaluation_tables(evaluation: dict) -> list[Table]:
    """Builds the tables of an evaluation: metrics of boxes and masks, classes, errors, thresholds."""
    title, masks = _title(evaluation), evaluation.get("masks", {})
    tables = _metric_tables(evaluation["metrics"], f"{title}, boxes" if masks else title)
    if "metrics" in masks:
        tables += _metric_tables(masks["metrics"], f"{title}, masks")
    tables.append(_class_table(evaluation["per_class"], masks.get("per_class")))
    if "errors" in evaluation:
        tables.append(_error_table(evaluation["errors"]))
    if "thresholds" in evaluation:
        tables.append(_threshold_table(evaluation["thresholds"]))
    return tables


def _metric_tables(metrics, title):
    tables = []
    if any(name.startswith("ap") for name in metrics):
        tables.append(_coco_table(metrics, title))
    for labels in (OTHER_LABELS, LVIS_APS, LVIS_ARS):
        others = [name for name in metrics if name in labels]
        if not others:
            continue
        table = Table(title=None if tables else plain(title), title_justify="left")
        for name in others:
            table.add_column(labels[name], justify="right")
        table.add_row(*(shown(metrics[name]) for name in others))
        tables.append(table)
    return tables


def _title(evaluation):
    if "recipe" in evaluation:
        subject = f"{evaluation['recipe']}, step {evaluation['step']}"
    else:
        subject = evaluation["detections_file"]
    masks = ", masks" if evaluation.get("iou_type") == "segm" else ""
    limit = limit_of(evaluation["headline"])[1]
    judged = f", the first {limit} detections of a class in an image (COCO's AP: 100)" if limit else ""
    return f"{subject}, {evaluation['images']} images{masks}{judged}"


def _coco_table(metrics, title):
    table = Table(title=plain(title), title_justify="left")
    precisions, recalls = ([name for name in metrics if name.startswith(kind)] for kind in ("ap", "ar"))
    for name in precisions:
        table.add_column(label_of(name), justify="right")
    table.add_row(*(shown(metrics[name]) for name in precisions))
    table.add_section()
    table.add_row(*map(label_of, recalls))
    table.add_row(*(shown(metrics[name]) for name in recalls))
    return table


def _class_table(rows, of_masks=None):
    table = Table()
    numbers = [name for name in (rows[0] if rows else ()) if limit_of(name)[0] in CLASS_LABELS]
    labels = [class_label_of(name) for name in numbers]
    labels += [f"mask {label}" for label in labels if of_masks]
    for column in ("class", "objects", *labels):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row, *others in zip(rows, *([of_masks] if of_masks else []), strict=True):
        values = [one[name] for one in (row, *others) for name in numbers]
        table.add_row(plain(row["name"]), str(row["objects"]), *map(shown, values))
    return table


def class_label_of(metric: str) -> str:
    """Returns the printed name of a metric of a class; a key without one as it is."""
    name, limit = limit_of(metric)
    return CLASS_LABELS[name] + (f"@{limit}" if limit else "") if name in CLASS_LABELS else metric


def _error_table(errors):
    table = Table()
    for column in ("error", "count", "AP50 gain if corrected"):
        table.add_column(column, justify="left" if column == "error" else "right")
    for kind, row in errors.items():
        if kind == BEYOND and not row["count"]:
            continue
        kind = kind.replace("_", " ")
        table.add_row(kind, f"{row['count']:,}", shown(row["dap"]))
    return table


def _threshold_table(thresholds):
    """Of each class the score at which F1 is best, and what it is worth there."""
    table = Table()
    for column in ("class", "score of best F1", "F1", "precision", "recall"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for row in thresholds["per_class"]:
        table.add_row(plain(row["name"]), *_threshold(row))
    table.add_section()
    table.add_row("all", *_threshold(thresholds["all"]))
    return table


def _threshold(row):
    score = "–" if row["score"] is None else f"{row['score']:.3f}"
    return [score, *(shown(row[name]) for name in ("f1", "precision", "recall"))]


def summary(evaluation: dict) -> str:
    """Formats the main metrics of an evaluation in one line, the headline first, those of masks last."""
    limit, masks = evaluation.get("max_detections", COCO_MAX_DETECTIONS), evaluation.get("masks", {})
    names = (evaluation["headline"], limited("ap", limit), limited("ap50", limit), *IN_SUMMARY)
    parts = []
    for prefix, metrics in (("", evaluation["metrics"]), ("mask ", masks.get("metrics", {}))):
        present = [name for name in dict.fromkeys(names) if name in metrics]
        parts += [f"{prefix}{label_of(name)} {shown(metrics[name])}" for name in present]
    return "  ".join(parts + ["masks not evaluated"] * ("not_judged" in masks))


def plain(text: str) -> Text:
    """Returns a title or cell for rich in which `[red]` is no markup."""
    return Text(printable(text))


def shown(value: float | None) -> str:
    """Formats a percentage; a dash for None."""
    return "–" if value is None else f"{value:.1f}"

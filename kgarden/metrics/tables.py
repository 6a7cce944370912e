"""Metric tables: formats evaluations for a terminal."""

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


def evaluation_tables(evaluation: dict) -> list[Table]:
    """Builds the tables of an evaluation: COCO metrics, other metrics, those of masks, classes, errors."""
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
    return f"{subject}, {evaluation['images']} images{masks}"


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
    for column in ("error", "count", "AP50 gain if corrected"):
        table.add_column(column, justify="left" if column == "error" else "right")
    for kind, row in errors.items():
        table.add_row(kind, f"{row['count']:,}", shown(row["dap"]))
    return table


def summary(evaluation: dict) -> str:
    """Formats the main metrics of an evaluation in one line, the headline first, those of masks last."""
    names = dict.fromkeys((evaluation["headline"], "ap", "ap50", *OTHER_LABELS))
    labels, masks = LABELS | OTHER_LABELS, evaluation.get("masks", {})
    parts = []
    for prefix, metrics in (("", evaluation["metrics"]), ("mask ", masks.get("metrics", {}))):
        parts += [f"{prefix}{labels[name]} {shown(metrics[name])}" for name in names if name in metrics]
    return "  ".join(parts + ["masks not evaluated"] * ("not_judged" in masks))


def shown(value: float | None) -> str:
    """Formats a percentage; a dash for None."""
    return "–" if value is None else f"{value:.1f}"

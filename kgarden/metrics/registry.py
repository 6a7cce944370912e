"""All measures by name: what a recipe's `evaluate.metrics` and `--metrics` may ask for."""

from kgarden.errors import UserError
from kgarden.metrics.arrays import tabulate
from kgarden.metrics.coco import coco_metrics, complete, percent
from kgarden.metrics.open_images import open_images_ap
from kgarden.metrics.voc import voc_ap

# The number of each measure that stands for it: where it comes first, it chooses the best weights.
HEADLINES = {
    "coco": "ap",
    "voc07": "voc07_map",
    "voc_area": "voc_area_map",
    "open_images": "open_images_map",
}


def measure(names, truth, results, image_ids=None, iou_type="bbox"):
    """Everything that is asked for, in percent; None where there is nothing to measure.

    Args:
        names:     of HEADLINES; the first one's headline is what runs are compared by.
        truth:     ground truth in COCO form, a dictionary.
        results:   list in COCO results form; may be empty.
        image_ids: evaluate these pictures only; None: all.
        iou_type:  "bbox" or "segm".
    Returns:
        {"headline": a key of metrics, "metrics": {name: number},
         "per_class": [{"id", "name", "objects", ...}, ...]}
        with the twelve numbers of COCO under their own names, of the others `<name>_map` and, by class,
        `<name>_ap`.
    """
    unknown = [name for name in names if name not in HEADLINES]
    if unknown or not names:
        raise UserError(f"metrics: {', '.join(unknown) or 'none'}; there are {', '.join(HEADLINES)}")
    metrics, rows = {}, []
    if "coco" in names:
        judged = coco_metrics(truth, results, image_ids, iou_type)
        metrics, rows = judged["metrics"], judged["per_class"]
    others = [name for name in names if name != "coco"]
    if others:
        table = tabulate(complete(truth, iou_type), results, image_ids, iou_type)
        rows = rows or _rows(table)
    for name in others:
        judged = _judge(name, table)
        metrics[f"{name}_map"] = percent(judged["map"])
        for row, ap in zip(rows, judged["ap"], strict=True):
            row[f"{name}_ap"] = percent(ap)
    return {"headline": HEADLINES[names[0]], "metrics": metrics, "per_class": rows}


def _judge(name, table):
    if name == "open_images":
        return open_images_ap(table)
    return voc_ap(table, iou=0.5, points="11 points" if name == "voc07" else "area")


def _rows(table):
    asked = table.objects.label[~table.objects.crowd].tolist()
    return [{**category, "objects": asked.count(row)} for row, category in enumerate(table.categories)]

"""Summary of detections by class: how many objects, in how many images."""

from rich.table import Table

from kgarden.metrics.tables import plain


def counts_by_class(records: list[dict], categories: list[dict], min_score: float) -> list[dict]:
    """Counts detections and the images that have any, class by class.

    Args:
        records:    [{"detections": [{"category_id", "score"}, ...]}, ...], of `draw_files`.
        categories: [{"id", "name"}, ...].
        min_score:  smallest score that counts.
    Returns:
        [{"name", "objects", "images"}, ...] of the classes that occur, in the order of the categories, then
        all of them together.
    """
    found = [{one["category_id"] for one in _counted(record, min_score)} for record in records]
    all_ids = [one["category_id"] for record in records for one in _counted(record, min_score)]
    rows = [
        {
            "name": category["name"],
            "objects": all_ids.count(category["id"]),
            "images": sum(category["id"] in ids for ids in found),
        }
        for category in categories
    ]
    total = {"name": "all", "objects": len(all_ids), "images": sum(bool(ids) for ids in found)}
    return [row for row in rows if row["objects"]] + [total]


def _counted(record, min_score):
    return [one for one in record["detections"] if one["score"] >= min_score]


def summary_table(records: list[dict], categories: list[dict], min_score: float) -> Table:
    """Formats `counts_by_class` for a terminal."""
    table = Table(caption=f"scores of {min_score:g} and more", caption_justify="left")
    for column in ("class", "objects", "images"):
        table.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    *rows, total = counts_by_class(records, categories, min_score)
    for row in rows:
        table.add_row(plain(row["name"]), f"{row['objects']:,}", f"{row['images']:,}")
    table.add_section()
    table.add_row(total["name"], f"{total['objects']:,}", f"{total['images']:,}")
    return table

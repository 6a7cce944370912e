"""Detections of `kgarden predict` as a data set in COCO form, joined to ground truth by image names.

`detections.json` of `kgarden predict` is a list of {"file", "height", "width", "detections": [{"box" xyxy px,
"score", "category_id", "name"}]}. The path of a file and the ground truth's file_name need not be equal: the
image that shares most trailing folders is meant, in any spelling of `tfrecords.image_names`.
"""

from kgarden.errors import UserError
from tfrecords.image_names import Names, NotFound
from tfrecords.schema import DataError


def is_prediction(content) -> bool:
    """Returns whether the content of a json file has the form that `kgarden predict` writes."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(one, dict) and _is_entry(one) for one in content)
    )


def _is_entry(one):
    return isinstance(one.get("file"), str) and isinstance(one.get("detections"), list)


def as_data_set(content: list[dict], truth: dict) -> tuple[dict, list[str]]:
    """Converts predictions to a data set with scores, whose image ids are those of the ground truth.

    Args:
        content: as in the head of this file.
        truth:   ground truth in COCO form.
    Returns:
        (data set, notes): its annotations have scores; remarks for the user.
    Raises:
        UserError: an image is not in the ground truth, or two files are the same image of it; the entries
                   are not those that `kgarden predict` writes.
    """
    file_of, images, annotations, names = {}, [], [], {}
    find = _finder(truth)
    for entry in content:
        image = find(entry["file"])
        if image["id"] in file_of:
            raise UserError(
                f"{file_of[image['id']]} and {entry['file']} are both {image['file_name']} of the ground "
                f"truth; predict each image once"
            )
        file_of[image["id"]] = entry["file"]
        images.append({"id": image["id"], "file_name": image["file_name"]})
        for row in entry["detections"]:
            annotations.append({"image_id": image["id"], **_annotation(row, entry["file"])})
            if isinstance(row["category_id"], int | str) and isinstance(row.get("name"), str):
                names[row["category_id"]] = row["name"]
    categories = [{"id": one, "name": name} for one, name in names.items()]
    missing = [one.get("file_name", one["id"]) for one in truth["images"] if one["id"] not in file_of]
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} of {len(truth['images'])} images of the ground truth were not predicted (the "
            f"first: {missing[0]}); their objects count as missed"
        )
    return {"images": images, "annotations": annotations, "categories": categories}, notes


def _finder(truth):
    """Function of a file's path -> the image of the ground truth."""
    image_of = {one["file_name"]: one for one in truth["images"] if isinstance(one.get("file_name"), str)}
    if not image_of:
        raise UserError("the images of the ground truth have no file_name, by which predictions are matched")
    names = Names(image_of)

    def find(file):
        if file in image_of:
            return image_of[file]
        parts = str(file).replace("\\", "/").split("/")
        try:
            return image_of[names.find("/".join(part for part in parts if part != ".."))[0]]
        except NotFound:
            listed = ", ".join(list(image_of)[:3])
            raise UserError(
                f"{file} is not in the ground truth ({listed}, …); predict its images alone"
            ) from None
        except DataError as error:
            raise UserError(f"{file}: {error}") from None

    return find


def _annotation(row, file):
    """A detection in COCO's form: xywh instead of xyxy."""
    try:
        x0, y0, x1, y1 = row["box"]
        box = [x0, y0, x1 - x0, y1 - y0]
        kept = {"category_id": row["category_id"], "bbox": box, "score": row["score"]}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"a detection of {file} has no box of four numbers, score and category_id") from None
    return kept | ({"segmentation": row["segmentation"]} if "segmentation" in row else {})

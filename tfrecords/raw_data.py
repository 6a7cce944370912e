"""Raw data sets by their files: which format a path is in, and how it is converted."""

import dataclasses
import pathlib

ENDINGS = {".yaml": "yolo", ".yml": "yolo", ".json": "coco", ".csv": "csv", ".tsv": "csv", ".xml": "voc"}
TITLES = {
    "coco": "a COCO JSON",
    "voc": "Pascal VOC",
    "csv": "a CSV table",
    "yolo": "a YOLO data set",
    "openimages": "Open Images",
    "lvis": "LVIS",
    "objects365": "Objects365",
}
OPEN_IMAGES = ("annotations-bbox", "detection-bbox")  # in the names of its tables of boxes
JSON_NAMES = {"lvis_": "lvis", "objects365": "objects365", "zhiyuan_objv2_": "objects365"}  # their beginnings


@dataclasses.dataclass(frozen=True)
class RawData:
    """A raw data set.

    format:    name of its converter.
    arguments: of the converter, as far as the path tells them; IMAGES stands for the folder of images,
               DESCRIPTIONS for the class descriptions of Open Images.
    """

    format: str
    arguments: dict

    def advice(self):
        """What it is, and how it is used: the end of a message."""
        options = " ".join(f"--{key} {value}" for key, value in self.arguments.items())
        keys = ", ".join(f"{key}: {value}" for key, value in self.arguments.items())
        command = f"kgarden data build {self.format} {options} --to DIR"
        recipe = f"{{format: {self.format}, {keys}}}"
        return f"this is {TITLES[self.format]}: convert it with `{command}`, or name {recipe} in the recipe"


def recognise(path):
    """The raw data set at a path -> RawData, or None. Only names are looked at, nothing is opened.

    Args:
        path: a file of annotations, or a folder.
    """
    path = pathlib.Path(path)
    if path.is_file():
        form = ENDINGS.get(path.suffix.lower())
        return _of_file(form, path) if form else None
    return _of_folder(path) if path.is_dir() else None


def _of_file(form, path):
    if form == "csv" and any(part in path.name for part in OPEN_IMAGES):
        tables = {"annotations": path, "descriptions": "DESCRIPTIONS"}
        return RawData("openimages", {"images": "IMAGES", **tables})
    if form == "coco":
        name = path.name.lower()
        form = next((to for begin, to in JSON_NAMES.items() if name.startswith(begin)), form)
    if form == "yolo":
        return RawData("yolo", {"annotations": path, "split": "train"})
    return RawData(form, {"images": "IMAGES", "annotations": path.parent if form == "voc" else path})


def _of_folder(folder):
    inside = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True)}
    endings = {path.suffix.lower(): path for path in inside.values() if path.is_file()}
    if path := inside.get("data.yaml") or inside.get("data.yml"):
        return _of_file("yolo", path)
    if "annotations" in inside and "jpegimages" in inside:
        return RawData("voc", {"root": folder})
    if "annotations" in inside and inside["annotations"].is_dir():
        raw = _of_folder(inside["annotations"])
        if raw and raw.arguments.get("images") == "IMAGES" and "images" in inside:
            raw.arguments["images"] = inside["images"]
        return raw
    if "labels" in inside and "images" in inside:
        return RawData("yolo", {"images": inside["images"], "annotations": inside["labels"]})
    for ending in (".xml", ".json", ".csv"):
        if ending in endings:
            return _of_file(ENDINGS[ending], endings[ending])
    if ".txt" in endings:
        return RawData("yolo", {"images": "IMAGES", "annotations": folder})
    return None

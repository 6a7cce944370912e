"""Converters by the name of their format; their arguments are those of the modules' `build`."""

from tfrecords.converters import coco, csv_table, lvis, objects365, openimages, shapes, voc, yolo

FORMATS = {
    "coco": coco.build,
    "voc": voc.build,
    "csv": csv_table.build,
    "yolo": yolo.build,
    "openimages": openimages.build,
    "lvis": lvis.build,
    "objects365": objects365.build,
    "shapes": shapes.build,
}

"""The converters by the name of what they read; their arguments are those of the modules' `build`."""

from tfrecords.converters import coco, csv_table, shapes, voc

FORMATS = {"coco": coco.build, "voc": voc.build, "csv": csv_table.build, "shapes": shapes.build}

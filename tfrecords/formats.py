"""The converters by the name of what they read; their arguments are those of the modules' `build`."""

from tfrecords import coco, shapes, table, voc

FORMATS = {"coco": coco.build, "voc": voc.build, "csv": table.build, "shapes": shapes.build}

"""Object-detection data sets as sharded TFRecord files: conversion, reading, checks.

Importable on its own: TensorFlow, NumPy, Pillow and pycocotools, nothing of Keras. TensorFlow is imported by
the functions that need it, so that `import tfrecords` is cheap.

    schema.py             keys of a record; its one writer and its one parser
    values.py             numbers, names and ids as annotation files write them
    images.py             image files -> bytes that TensorFlow decodes; the decoder
    bounded_yaml.py       YAML of strangers, within bounds
    ground_truth.py       reader of COCO ground truth
    segmentations.py      polygons and run-length codes -> PNG
    converters/           COCO, Pascal VOC, CSV, YOLO and the synthetic shapes -> shards
    raw_data.py           which format the files at a path are in
    split.py              images -> train and val
    image_names.py        images found by names as other systems write them
    image_lists.py        the images of a folder or of a text file
    labels.py             class lists (.pbtxt, JSON, CSV, plain text)
    write.py              records -> a data set (shard.py, pool.py, finish.py)
    files.py              errors of reading and writing; files written to a temporary path and renamed
    conversion_report.py  counts of images and boxes kept and left out
    data_statistics.py    sizes, classes and signs of mistakes, counted in one pass
    plausibility.py       what makes a data set implausible
    index.py              position of every record and size of its image
    adopt.py, scan.py     use shards of other origin in place
    records.py            the records of a file, damaged ones too
    check.py              consistency check of a data set
"""

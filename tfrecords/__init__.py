"""Object-detection data sets as sharded TFRecord files: written, read, checked.

Importable on its own: TensorFlow, NumPy, Pillow and pycocotools, nothing of Keras. TensorFlow is imported by
the functions that need it, so that `import tfrecords` is cheap.

    schema.py    the keys of a record; its one writer and its one parser
    images.py  image files -> bytes that TensorFlow decodes; the decoder
    masks.py     polygons and run-length codes -> PNG
    objects.py   an image and what a source says of it -> a record: the common core of the converters
    coco.py      COCO json -> shards
    voc.py       Pascal VOC's XML files -> shards
    table.py     a csv file -> shards
    shapes.py    the embedded synthetic data set -> shards
    formats.py   the converters by name
    labels.py    lists of classes that others wrote
    write.py     records -> shards (shard.py, pool.py), and the files beside them (finish.py)
    report.py    the account of a conversion: every image, every box
    index.py     where every record lies, and how large its image is
    foreign.py   shards that others wrote: what ours have beside them, made by one pass
    records.py   the records of a file, damaged ones too
    check.py     does a data set hold what it says?
"""

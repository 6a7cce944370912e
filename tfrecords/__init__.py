"""Object-detection data sets as sharded TFRecord files: written, read, checked.

Importable on its own: TensorFlow, NumPy and Pillow, nothing of Keras. TensorFlow is imported by the
functions that need it, so that `import tfrecords` is cheap.

    schema.py    the keys of a record; its one writer and its one parser
    pictures.py  picture files -> bytes that TensorFlow decodes; the decoder
    write.py     records -> shards, manifest.json, annotations.json, index.json
    index.py     where every record lies, and how large its picture is
    coco.py      COCO json -> shards
    shapes.py    the embedded synthetic data set -> shards
"""

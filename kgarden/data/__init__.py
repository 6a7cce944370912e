"""Input pipeline: records on disk -> padded batches. Needs TensorFlow.

pipeline.py    batches for training and for evaluation
sources.py     data sets that a recipe names, converted if need be and opened
identity.py    what a run remembers of its data, and how other data differ
order.py       order of images and their grouping into batches of one canvas
sampling.py    samplers: endless, deterministic index streams
loader.py      reads, parses and decodes one record
transforms/    augmentation: transforms of an image with its ground truth
canvas.py      canvases (padded input sizes), resizing and padding of an image
resize.py      separable resampling, with or without antialiasing
padding.py     ground truth padded to max_objects
examples.py    records as NumPy arrays, for inspection
rng.py         stateless random numbers for tf.data
"""

"""Records become padded batches. Needs TensorFlow.

pipeline.py    batches for training and for evaluation
sources.py     what a recipe names as data -> a data set on disk
samplers.py    which image comes when
transforms.py  changes of an image together with its boxes
canvas.py      how an image is laid into the network's canvas, and the way back
"""

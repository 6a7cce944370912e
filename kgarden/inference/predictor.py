"""Predictor: runs a trained detector on image files and arrays; boxes are in px of the original image.

Predictor, `kgarden evaluate` and the exported graph share this path: an image is resized into a canvas
(kgarden.data.canvas.resize_to_canvas), the InferenceModel detects in px of the canvas, and `to_original`
maps the boxes back.
"""

import os
import pathlib
from collections.abc import Iterable, Iterator

import keras
import numpy as np
from keras import ops
from PIL import Image

from kgarden.build import load_run, view_sizes
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.inference.batching import pad_batch
from kgarden.inference.postprocess import to_original
from kgarden.inference.test_time_augmentation import TestTimeAugmentation
from kgarden.models.base.static_shapes import ready_to_predict
from kgarden.structures import IMAGES, MIRRORED, SIZE_HW, VIEWS
from tfrecords.images import decoded_pixels, pixels_of, read_pixels
from tfrecords.schema import DataError


def compiled_inference(detector: keras.Model) -> keras.Model:
    """Returns the detector's InferenceModel, compiled for `predict_on_batch` on this backend."""
    return ready_to_predict(detector.inference_model())


def inference_of(detector: keras.Model, recipe: Recipe) -> keras.Model | TestTimeAugmentation:
    """Returns the recipe's inference model: `compiled_inference`, or TestTimeAugmentation for several views.

    The x of its `predict_on_batch` holds the views of `kgarden.build.view_sizes`.
    """
    views, merge = recipe.evaluate.views, recipe.evaluate.merge
    if views is None or views.number == 1:
        return compiled_inference(detector)
    return TestTimeAugmentation(detector, **merge.model_dump())


def read_image(source) -> np.ndarray:
    """Reads an image as RGB, with its EXIF orientation applied.

    Args:
        source: path of a file in one of `tfrecords.images.FORMATS`; the bytes of such a file, or an open
                one; a Pillow image; or an array or tensor (H, W), (H, W, 3) or (H, W, 4) uint8.
    Returns:
        (H, W, 3) uint8.
    Raises:
        UserError: the file is missing, damaged or not an image; the array is not uint8; or the source is of
                   another kind.
    """
    name = "the image"
    try:
        if isinstance(source, str | os.PathLike):
            name = path = pathlib.Path(source)
            if not path.is_file():
                raise DataError("no such file")
            return read_pixels(path)
        if isinstance(source, Image.Image):
            return pixels_of(source)
        if isinstance(source, bytes | bytearray | memoryview):
            return decoded_pixels(bytes(source))
        if hasattr(source, "read"):
            return decoded_pixels(_content(source))
    except DataError as error:
        raise UserError(f"{name}: {error}") from error
    return _check_array(_as_array(source))


def _content(file):
    """The bytes of an open file."""
    try:
        content = file.read()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}") from error
    if not isinstance(content, bytes):
        raise DataError("a file opened as text is no image: open it with mode 'rb'")
    return content


def _as_array(source):
    """An array or tensor as an array."""
    if not hasattr(source, "__array__"):
        raise UserError(
            f"an image of type {type(source).__name__} is not supported; give a path, bytes, an open file, a "
            f"Pillow image or an array (height, width, 3) uint8, or a list of these"
        )
    try:
        return np.asarray(source)
    except Exception as error:  # a tensor without values, or on a GPU
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"a {type(source).__name__} that has no NumPy array is no image: {reason}") from error


def _check_array(array):
    if array.dtype != np.uint8:
        raise UserError(f"an array of {array.dtype} is not supported; images are uint8 RGB, 0..255")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or 0 in array.shape:
        raise UserError(f"an array of shape {array.shape} is not supported; images are (height, width, 3)")
    return array[..., :3]


class Predictor:
    """Detects objects in image files and arrays.

    Args:
        detector:   a Detector with its weights.
        recipe:     the recipe that it was trained with; it gives image sizes and canvases.
        categories: [{"id", "name"}, ...] in label order, for drawing; None: the labels are the names.
        batch_size: images of one canvas in a batch.
    """

    def __init__(
        self,
        detector: keras.Model,
        recipe: Recipe,
        categories: list[dict] | None = None,
        batch_size: int = 1,
    ):
        self.detector = detector
        self.recipe = recipe
        self.categories = categories or [{"id": n, "name": str(n)} for n in range(detector.num_classes)]
        self.batch_size = batch_size
        self.sizes = view_sizes(recipe, detector.divisor)
        self.flip = recipe.evaluate.flip
        self.model = inference_of(detector, recipe)

    @classmethod
    def from_run(
        cls, run: str | os.PathLike, batch_size: int = 1, overrides: dict | None = None
    ) -> "Predictor":
        """Builds the predictor of a run directory, with the run's best weights.

        Args:
            run:        run directory of a finished training, or of one in progress.
            batch_size: images of one canvas in a batch.
            overrides:  recipe settings for inference, {"evaluate.views.flip": True, ...}.
        """
        recipe, detector, categories = load_run(run, overrides=overrides)
        return cls(detector, recipe, categories, batch_size)

    @property
    def names(self) -> list[str]:
        """Names of the classes, in label order."""
        return [category["name"] for category in self.categories]

    def __call__(self, source) -> dict | list[dict]:
        """Returns the detections of one image, or a list of them for a list of images.

        Args:
            source: a path, the bytes of an image file, an open file, a Pillow image, an array or tensor
                    (H, W, 3) uint8 RGB, or a list of these.
        Returns:
            {"boxes": (K, 4) xyxy px of the image, "scores": (K,), "labels": (K,), "valid": (K,) bool,
            "source": (K,)}, numpy, sorted by score, padded to K rows; with a mask head also "masks"
            (K, S, S) float32, probabilities over the boxes, to be pasted by `kgarden.paste_masks`.
        """
        if not isinstance(source, list | tuple):
            return next(self.stream([source]))[1]
        return [detections for _, detections in self.stream(source)]

    def stream(self, sources: Iterable) -> Iterator[tuple[np.ndarray, dict]]:
        """Yields (image (H, W, 3), detections) of each source in order, with one batch in memory."""
        batch = []  # [(image, its views)], all of the same canvases
        for source in sources:
            image = read_image(source)
            views = self._views(image)
            if batch and (len(batch) == self.batch_size or _canvases(batch[0][1]) != _canvases(views)):
                yield from self._detect(batch)
                batch = []
            batch.append((image, views))
        if batch:
            yield from self._detect(batch)

    def _views(self, image):
        """[x without a batch axis] of the views of one image; the first one is not mirrored."""
        from kgarden.data.canvas import resize_to_canvas  # needs TensorFlow

        views = []
        for size in self.sizes:
            canvas, size_hw = map(np.asarray, resize_to_canvas(image, **size))
            views.append({IMAGES: canvas, SIZE_HW: size_hw, MIRRORED: np.array(False)})
            if self.flip:
                views.append({IMAGES: mirrored(canvas, size_hw), SIZE_HW: size_hw, MIRRORED: np.array(True)})
        return views

    def _detect(self, batch):
        images, views = zip(*batch, strict=True)
        first, *others = pad_batch([_stacked(view) for view in zip(*views, strict=True)], self.batch_size)
        x = {IMAGES: first[IMAGES], SIZE_HW: first[SIZE_HW]} | ({VIEWS: tuple(others)} if others else {})
        original_hw = pad_batch(np.array([image.shape[:2] for image in images], "int32"), self.batch_size)
        detections = to_original(self.model.predict_on_batch(x), x[SIZE_HW], original_hw)
        detections = {key: ops.convert_to_numpy(value) for key, value in detections.items()}
        for row, image in enumerate(images):
            yield image, {key: value[row] for key, value in detections.items()}


def mirrored(canvas: np.ndarray, size_hw: np.ndarray) -> np.ndarray:
    """Returns a copy of the canvas with its image flipped left to right; the padding stays in place."""
    height, width = size_hw
    canvas = canvas.copy()
    canvas[:height, :width] = canvas[:height, :width][:, ::-1].copy()
    return canvas


def _canvases(views):
    return [view[IMAGES].shape for view in views]


def _stacked(views):
    """Batch x of one view of several images."""
    return {key: np.stack([view[key] for view in views]) for key in views[0]}

"""Predictor: runs a trained detector on image files and arrays; boxes are in px of the original image.

Predictor, `kgarden evaluate` and the exported graph share this path: an image is resized into a canvas
(kgarden.data.canvas.resize_to_canvas), the InferenceModel detects in px of the canvas, and `to_original`
maps the boxes back.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kgarden.build import load_run, view_sizes
from kgarden.config.loading import as_recipe
from kgarden.config.recipe import Recipe
from kgarden.errors import UserError
from kgarden.inference.batching import pad_batch
from kgarden.inference.detections import Detections
from kgarden.inference.image_sources import images_of, read_image
from kgarden.inference.postprocess import to_original
from kgarden.inference.test_time_augmentation import TestTimeAugmentation
from kgarden.inference.video import frames_of
from kgarden.models.base.static_shapes import ready_to_predict
from kgarden.structures import IMAGES, MIRRORED, SCORES, SIZE_HW, VALID, VIEWS
from kgarden.utils.arguments import check_count, check_fraction, shown


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


class Predictor:
    """Detects objects in image files, images in memory, folders and videos.

    Args:
        detector:   a Detector with its weights.
        recipe:     the recipe that it was trained with, or its name or path; it gives image sizes and
                    canvases. None: that of the detector, which `load_run` and .keras files carry.
        categories: [{"id", "name"}, ...] in label order; None: the detector's classes, or their labels.
        batch_size: images of one canvas in a batch.
        min_score:  smallest score of a detection; 0: all that the model's selection keeps.
    Raises:
        UserError: no detector; no recipe; or classes of another number than the detector's.
    """

    def __init__(
        self,
        detector: keras.Model,
        recipe: Recipe | str | os.PathLike | None = None,
        categories: list[dict] | None = None,
        batch_size: int = 1,
        min_score: float = 0.0,
    ):
        if not hasattr(detector, "inference_model"):
            raise UserError(f"detector: a kgarden.Detector is needed, not {shown(detector)}")
        recipe = getattr(detector, "recipe", None) if recipe is None else recipe
        if recipe is None:
            raise UserError("recipe: this detector carries none; give the recipe that it was trained with")
        check_count(batch_size, "batch_size")
        check_fraction(min_score, "min_score")
        self.detector = detector
        self.recipe = as_recipe(recipe)
        self.categories = categories or _categories_of(detector)
        if len(self.categories) != detector.num_classes:
            raise UserError(
                f"{len(self.categories)} categories, the detector has {detector.num_classes} classes"
            )
        self.batch_size, self.min_score = batch_size, min_score
        self.sizes = view_sizes(self.recipe, detector.divisor)
        self.flip = self.recipe.evaluate.flip
        self.model = inference_of(detector, self.recipe)

    @classmethod
    def from_run(
        cls,
        run: str | os.PathLike,
        batch_size: int = 1,
        overrides: dict | None = None,
        min_score: float = 0.0,
    ) -> "Predictor":
        """Builds the predictor of a run directory, with the run's best weights.

        Args:
            run:        run directory of a finished training, or of one in progress.
            batch_size: images of one canvas in a batch.
            overrides:  recipe settings for inference, {"evaluate.views.flip": True, ...}.
            min_score:  smallest score of a detection.
        """
        recipe, detector, categories = load_run(run, overrides=overrides)
        return cls(detector, recipe, categories, batch_size=batch_size, min_score=min_score)

    @property
    def names(self) -> list[str]:
        """Names of the classes, in label order."""
        return [category["name"] for category in self.categories]

    def __call__(self, source: Any) -> Detections | list[Detections]:
        """Returns the detections of one image, or a list of them for several.

        Args:
            source: one image: a path, the bytes of an image file, an open file, a Pillow image, or an array
                    or tensor (H, W, 3) RGB from 0 to 255. Several: a list of these, an array (B, H, W, 3),
                    or the path of a folder. For videos see `video`.
        Returns:
            Detections, whose arrays are numpy, in px of the image.
        Raises:
            UserError: an image cannot be read, or is of another kind.
        """
        several = images_of(source)
        if several is None:
            return next(self.stream([source]))[1]
        return [detections for _, detections in self.stream(several)]

    def stream(
        self, sources: Iterable, on_fault: Callable[[str], object] | None = None
    ) -> Iterator[tuple[np.ndarray, Detections]]:
        """Yields (image (H, W, 3), Detections) of each source in order, with one batch in memory.

        Args:
            sources:  images, as in `__call__`.
            on_fault: called with a line on an image that cannot be read, which is left out; None: it raises.
        """
        return self._detected(_read_all(sources, on_fault))

    def video(self, source: Any, every: int = 1) -> Iterator[Detections]:
        """Yields the detections of a video frame by frame; `.image` holds the frame.

        It needs the extra `video` (PyAV). With a batch size above 1, results come a batch at a time.

        Args:
            source: path of a video file, an open file, or an address that FFmpeg reads, such as rtsp://.
            every:  1: all frames; n: every n-th one.
        Raises:
            UserError: PyAV is not installed, or the source is no video that it can read.
        """
        check_count(every, "every")
        frames = ((frame, frame, path) for frame, path in frames_of(source, every))
        return (detections for _, detections in self._detected(frames))

    def _detected(self, images):
        """(image, Detections) of (image, what it was read from, its path), in batches of one canvas."""
        batch = []  # [(image, source, path, its views)], all of the same canvases
        for image, source, path in images:
            views = self._views(image)
            if batch and _canvases(batch[0][-1]) != _canvases(views):
                yield from self._detect(batch)
                batch = []
            batch.append((image, source, path, views))
            if len(batch) == self.batch_size:  # at once: the next frame of a live video is not there yet
                yield from self._detect(batch)
                batch = []
        if batch:
            yield from self._detect(batch)

    def _views(self, image):
        """[x without a batch axis] of the views of one image; the first one is not mirrored."""
        resize_to_canvas = _resize_to_canvas()
        views = []
        for size in self.sizes:
            canvas, size_hw = map(np.asarray, resize_to_canvas(image, **size))
            views.append({IMAGES: canvas, SIZE_HW: size_hw, MIRRORED: np.array(False)})
            if self.flip:
                views.append({IMAGES: mirrored(canvas, size_hw), SIZE_HW: size_hw, MIRRORED: np.array(True)})
        return views

    def _detect(self, batch):
        images, sources, paths, views = zip(*batch, strict=True)
        first, *others = pad_batch([_stacked(view) for view in zip(*views, strict=True)], self.batch_size)
        x = {IMAGES: first[IMAGES], SIZE_HW: first[SIZE_HW]} | ({VIEWS: tuple(others)} if others else {})
        original_hw = pad_batch(np.array([image.shape[:2] for image in images], "int32"), self.batch_size)
        detections = to_original(self.model.predict_on_batch(x), x[SIZE_HW], original_hw)
        detections = {key: ops.convert_to_numpy(value) for key, value in detections.items()}
        detections[VALID] = detections[VALID].astype(bool) & (detections[SCORES] >= self.min_score)
        for row, (image, source, path) in enumerate(zip(images, sources, paths, strict=True)):
            yield (
                image,
                Detections(
                    {key: value[row] for key, value in detections.items()},
                    self.categories,
                    image.shape[:2],
                    read=functools.partial(read_image, source),
                    path=path,
                ),
            )


def _resize_to_canvas():
    try:
        from kgarden.data.canvas import resize_to_canvas
    except ModuleNotFoundError as error:
        raise UserError(
            f"Predictor resizes images with TensorFlow, on the JAX backend too ({error}): "
            f"pip install 'tensorflow~=2.21.0'"
        ) from error
    return resize_to_canvas


def _categories_of(detector):
    numbered = [{"id": number, "name": str(number)} for number in range(detector.num_classes)]
    return getattr(detector, "categories", None) or numbered


def _read_all(sources, on_fault):
    """(image, what it can be read from again, its path) of each source."""
    for source in sources:
        try:
            image = read_image(source)
        except UserError as fault:
            if on_fault is None:
                raise
            on_fault(str(fault))
            continue
        is_path = isinstance(source, str | os.PathLike)
        yield image, image if hasattr(source, "read") else source, source if is_path else None


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

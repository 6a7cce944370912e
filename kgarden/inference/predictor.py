"""From a photo to detections in px of that photo.

Predictor, `kgarden evaluate` and the exported graph share this one path: a picture is laid into a canvas
(kgarden.data.canvas.resize_to_canvas), the InferenceModel answers in px of the canvas, and `to_original`
leads back.
"""

import pathlib

import numpy as np
from keras import ops
from PIL import Image, ImageOps

from kgarden.build import load_run, view_sizes
from kgarden.errors import UserError
from kgarden.inference.postprocess import to_original
from kgarden.inference.test_time_augmentation import TestTimeAugmentation
from kgarden.models.base.static_shapes import ready_to_predict
from kgarden.structures import IMAGES, MIRRORED, SIZE_HW, VIEWS


def compiled_inference(detector):
    """The detector's InferenceModel, ready for `predict_on_batch` on this backend."""
    return ready_to_predict(detector.inference_model())


def inference_of(detector, recipe):
    """What answers pictures as the recipe says: `compiled_inference`, or the same of several views merged.

    Asked by `predict_on_batch` with an x that holds the views of `kgarden.build.view_sizes`.
    """
    views, merge = recipe.evaluate.views, recipe.evaluate.merge
    if views is None or views.number == 1:
        return compiled_inference(detector)
    return TestTimeAugmentation(detector, **merge.model_dump())


def read_picture(source):
    """A picture as people see it: EXIF orientation applied, any mode turned into RGB.

    Args:
        source: path of a file that Pillow reads, or an array (H, W), (H, W, 3) or (H, W, 4) uint8.
    Returns:
        (H, W, 3) uint8.
    Raises:
        UserError: no such file, not a picture, damaged, or not uint8.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    path = pathlib.Path(source)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I;16") or picture.mode == "I":  # Pillow would cut, not scale
                picture = Image.fromarray((np.asarray(picture) >> 8).astype("uint8"))
            return np.asarray(picture.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: says it is larger than {Image.MAX_IMAGE_PIXELS} px: refused") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image in a format that Pillow reads") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: the picture is damaged ({error})") from error


def _check_array(array):
    if array.dtype != np.uint8:
        raise UserError(f"an array of {array.dtype}: pictures are uint8, RGB, 0..255")
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or 0 in array.shape:
        raise UserError(f"an array of shape {array.shape}: pictures are (height, width, 3)")
    return array[..., :3]


class Predictor:
    """Detections for files and arrays.

    Args:
        detector:   a Detector with its weights.
        recipe:     what it was trained with: sizes and canvases come from there.
        categories: [{"id", "name"}, ...] in label order, for drawing; None: labels as names.
        batch_size: pictures of one canvas that go through the network together.
    """

    def __init__(self, detector, recipe, categories=None, batch_size=1):
        self.detector = detector
        self.recipe = recipe
        self.categories = categories or [{"id": n, "name": str(n)} for n in range(detector.num_classes)]
        self.batch_size = batch_size
        self.sizes = view_sizes(recipe, detector.divisor)
        self.flip = recipe.evaluate.flip
        self.model = inference_of(detector, recipe)

    @classmethod
    def from_run(cls, run, batch_size=1, overrides=None):
        """The predictor of a finished or running training, with its best weights.

        Args:
            overrides: other settings at inference, {"evaluate.views.flip": True, ...}.
        """
        recipe, detector, categories = load_run(run, overrides=overrides)
        return cls(detector, recipe, categories, batch_size)

    @property
    def names(self):
        """Names of the classes, in label order."""
        return [category["name"] for category in self.categories]

    def __call__(self, source):
        """Detections of one picture, or a list of them for a list of pictures.

        Args:
            source: a path, an array (H, W, 3) uint8 RGB, or a list of these.
        Returns:
            {"boxes": (K, 4) xyxy px of the picture, "scores": (K,), "labels": (K,), "valid": (K,) bool,
            "source": (K,)}, numpy, best first, padded to K rows; of a model with a mask head also "masks"
            (K, S, S) float32, probabilities over the boxes: `kgarden.paste_masks` lays them onto the picture.
        """
        if not isinstance(source, list | tuple):
            return next(self.stream([source]))[1]
        return [detections for _, detections in self.stream(source)]

    def stream(self, sources):
        """(picture (H, W, 3), detections) of each source in order, never more than a batch in memory."""
        waiting = []  # [(picture, its views)], all of the same canvases
        for source in sources:
            picture = read_picture(source)
            views = self._views(picture)
            if waiting and (len(waiting) == self.batch_size or _canvases(waiting[0][1]) != _canvases(views)):
                yield from self._answer(waiting)
                waiting = []
            waiting.append((picture, views))
        if waiting:
            yield from self._answer(waiting)

    def _views(self, picture):
        """[x of one picture], the first one not mirrored."""
        from kgarden.data.canvas import resize_to_canvas  # needs TensorFlow

        views = []
        for size in self.sizes:
            canvas, size_hw = (np.asarray(one) for one in resize_to_canvas(picture, **size))
            views.append({IMAGES: canvas, SIZE_HW: size_hw, MIRRORED: np.array(False)})
            if self.flip:
                views.append({IMAGES: mirrored(canvas, size_hw), SIZE_HW: size_hw, MIRRORED: np.array(True)})
        return views

    def _answer(self, waiting):
        pictures, views = zip(*waiting, strict=True)
        filled = self.batch_size - len(waiting)  # always one batch size: nothing is traced again
        first, *others = [_stacked(view) for view in zip(*views, *views[-1:] * filled, strict=True)]
        x = {IMAGES: first[IMAGES], SIZE_HW: first[SIZE_HW]} | ({VIEWS: tuple(others)} if others else {})
        original_hw = np.array([p.shape[:2] for p in pictures + pictures[-1:] * filled], "int32")
        detections = to_original(self.model.predict_on_batch(x), x[SIZE_HW], original_hw)
        detections = {key: ops.convert_to_numpy(value) for key, value in detections.items()}
        for row, picture in enumerate(pictures):
            yield picture, {key: value[row] for key, value in detections.items()}


def mirrored(canvas, size_hw):
    """The canvas with its picture mirrored left to right; the padding stays where it is."""
    height, width = size_hw
    canvas = canvas.copy()
    canvas[:height, :width] = canvas[:height, :width][:, ::-1].copy()
    return canvas


def _canvases(views):
    return [view[IMAGES].shape for view in views]


def _stacked(views):
    """x of several pictures, of one view each."""
    return {key: np.stack([view[key] for view in views]) for key in views[0]}

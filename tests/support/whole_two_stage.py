"""Two-stage detectors against the reference files `whole_*`: proposals, RoI outputs and whole detections.

Each function returns {name of a file's array: array in our layout}, ready for `assert_agrees`.
"""

import contextlib
import dataclasses

import keras
import numpy as np
from keras import ops
from pycocotools import mask as mask_tools
from support.jit import fast
from support.whole_models import detections_of, named_detections, named_maps

from kgarden.layers.precision import dtype_policy_scope
from kgarden.structures import BOXES, MASK_SIDE, SCORES, VALID
from kgarden.utils.paste_masks import paste_masks
from kgarden.weights.state_dict import SUFFIXES, our_name

numpy = ops.convert_to_numpy


@contextlib.contextmanager
def double_precision():
    """Networks built here compute in float64, as the references did.

    Of half a million ReLUs one or the other lies so near to its kink that float32 is on the other side of it.
    No output shows that, but gradients below it do.
    """
    with dtype_policy_scope("float64"):
        if keras.backend.backend() != "jax":
            yield
            return
        import jax

        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        try:
            yield
        finally:
            jax.config.update("jax_enable_x64", before)


def probability(ranks):
    """Sigmoid of the logit that a rank of RPN's stands for."""
    return 1 / (1 + np.exp(-logit(ranks)))


def logit(ranks):
    """The logit that a rank of RPN's stands for, see `ranking` in kgarden/models/rpn.py."""
    ranks = ranks.astype("float64")
    return np.where(ranks >= 1, ranks - 1, 1 - 1 / np.maximum(ranks, 1e-12))


def proposals_of(detector, raw, size_hw, training):
    """Padded proposals, as in kgarden.structures, arrays of numpy."""
    run = fast(lambda raw, size_hw: detector.proposer.proposals(raw, size_hw, training=training))
    return {key: numpy(value) for key, value in run(raw["proposer"], size_hw).items()}


def named_proposals(name, score_name, proposals, score):
    """Valid proposals of each image.

    Args:
        proposals: of `proposals_of`.
        score:     function of the ranks, `logit` or `probability`, whichever the file holds.
    """
    found = {}
    for image, valid in enumerate(proposals[VALID]):
        found[f"{name}_{image}"] = proposals[BOXES][image][valid]
        found[f"{score_name}_{image}"] = score(proposals[SCORES][image][valid])
    return found


def named_pyramid(levels, raw):
    """Pyramid and outputs of RPN, of which the files hold the first four channels where they are large."""
    of_rpn = raw["proposer"]
    found = {f"{key}_ch0to3": value for key, value in named_maps("feat", levels, raw["pyramid"], 4).items()}
    found |= named_maps("rpn_logits", levels, of_rpn["classes"])
    found |= named_maps("rpn_deltas", levels, of_rpn["code"])
    finest = f"rpn_deltas_{levels[0]}"
    return found | {f"{finest}_ch0to3": found.pop(finest)[..., :4]}


def rois_of(detector, raw, proposals, size_hw):
    """Raw outputs of the RoI head."""
    return fast(lambda *inputs: detector.roi_head(*inputs), optimized=True)(
        raw["pyramid"], proposals, size_hw
    )


def named_roi_outputs(raw, proposals, score, stage=""):
    """Logits and deltas of one box head for each image's proposals, and the proposals' scores."""
    logits, deltas = numpy(raw["logits"]), numpy(raw["deltas"])
    found = {}
    for image, valid in enumerate(proposals[VALID]):
        found[f"roi_logits_{stage}{image}"] = logits[image][valid]
        found[f"roi_deltas_{stage}{image}"] = deltas[image][valid].reshape(valid.sum(), -1)
        found[f"roi_scores_{image}"] = score(proposals[SCORES][image][valid])
    return found


def named_tests(detector, x, raw, tests, predictions=None):
    """Detections under the settings of each of a file's `tests`.

    Args:
        tests:       {name: changed limits}: `pre` and `post`, proposals of a level before NMS and of all
                     after it; `rpn_nms`; `score`, `iou` and `total` of the detections.
        predictions: of the RoI head for the usual proposals, so that it need not run for tests of these;
                     None: it runs for every test.
    """
    found, usual, mask_head = {}, detector.proposer.test, detector.mask_head
    detector.mask_head = None
    for name, changed in tests.items():
        of_proposals = {"pre": "per_level", "post": "total", "rpn_nms": "iou"}
        of_detections = {"score": "score_threshold", "iou": "iou", "total": "total"}
        detector.proposer.test = dataclasses.replace(usual, **_renamed(changed, of_proposals))
        settings = {"pool": 100_000, **_renamed(changed, of_detections)}
        known = predictions is not None and not changed.keys() & of_proposals.keys()
        with with_predictions(detector, predictions) if known else contextlib.nullcontext():
            found |= named_detections(name, detections_of(detector, x, raw, **settings))
        detector.proposer.test = usual
    detector.mask_head = mask_head
    return found


def named_statistics(golden, detector, table, prefix):
    """Running statistics of batch norms, by a file's names behind `prefix`."""
    variables = {variable.path: variable for variable in detector.non_trainable_variables}
    found = {}
    for name in golden.matching(prefix + ".*"):
        module, suffix = our_name(name.removeprefix(prefix), table).rsplit(".", 1)
        path = next(path for path in variables if path.endswith(f"/{module}/{SUFFIXES[suffix]}"))
        found[name] = numpy(variables[path].value)
    return found


def bitmaps_of(golden, y):
    """Polygons of a file as "masks" of the ground truth, drawn into the frames of their boxes."""
    masks = np.zeros((*y["labels"].shape, MASK_SIDE, MASK_SIDE), bool)
    for image in range(len(masks)):
        for row, polygon in enumerate(golden.raw(f"gt_polygons_{image}")):
            begin, end = np.split(y["boxes"][image, row].astype("float64"), 2)
            points = (polygon - begin) * (MASK_SIDE / (end - begin))
            [code] = mask_tools.frPyObjects([points.ravel().tolist()], MASK_SIDE, MASK_SIDE)
            masks[image, row] = mask_tools.decode(code)
    return masks


def named_masks(golden, detections, size_hw):
    """Masks of the first detections of each image, and the first of those on the image."""
    found = {}
    for image, of_image in enumerate(detections):
        first = {key: value[: golden.params["masks_of_first"]] for key, value in of_image.items()}
        found[f"mask_scores_{image}"] = first["scores"]
        found[f"mask_probabilities_{image}"] = first["masks"]
        count = len(golden[f"mask_pasted_{image}"])
        masks, boxes = first["masks"][:count], first["boxes"][:count]
        found[f"mask_pasted_{image}"] = paste_masks(masks, boxes, size_hw[image])
    return found


class FixedRoIHead:
    """A RoI head whose predictions are known already, so that RoIs are not pooled again for each test.

    Args:
        head:        the RoI head.
        predictions: of it.
    """

    def __init__(self, head, predictions):
        self.candidates, self.predictions = head.candidates, predictions

    def __call__(self, pyramid, proposals, size_hw, training=False):
        return self.predictions


@contextlib.contextmanager
def with_predictions(detector, predictions):
    """The detector, whose RoI head returns the given predictions."""
    head = detector.roi_head
    detector.roi_head = FixedRoIHead(head, predictions)
    try:
        yield
    finally:
        detector.roi_head = head


def _renamed(settings, names):
    return {names[key]: value for key, value in settings.items() if key in names}

"""Whole FCOS and CondInst of AdelaiDet: from images to detections, masks, losses and gradients."""

import math

import numpy as np
import pytest
from keras import ops
from scipy import ndimage
from support import whole_models as whole
from support.golden import assert_agrees, goldens, params
from support.jit import fast

from kgarden.models import build_detector
from kgarden.ops.box_masks import mass_centers
from kgarden.ops.points import point_grid_of
from kgarden.structures import BOXES, MASKS
from kgarden.utils.paste_masks import paste_masks
from kgarden.weights.adelaidet import IGNORE, TABLE
from kgarden.weights.state_dict import load_state_dict

LOSSES = {
    "fcos/class": "loss_fcos_cls",
    "fcos/box": "loss_fcos_loc",
    "fcos/centerness": "loss_fcos_ctr",
    "condinst/mask": "loss_mask",
    "condinst/semantic": "loss_sem",
}
MASK_SIDE = 336  # finer than the data's: centres of mass in the targets are off by hundredths of a px


def loaded(golden, recipe, row, overrides):
    s = params(golden)
    widths = whole.backbone_widths(s) | {"neck.channels": s["fpn"]["OUT_CHANNELS"]}
    settings = whole.published_settings(recipe, row, widths | overrides)
    detector = build_detector(settings, s["num_classes"])
    load_state_dict(detector, golden.state_dict(), TABLE, ignore=IGNORE)
    return detector


def maps_of(detector, x, raw, s):
    """Pyramid and outputs of the dense head, by the file's names."""
    got = whole.named_maps("feat", s["levels"], fast(detector.pyramid)(x), channels=4)
    got = {f"{name}_ch0to3": map_ for name, map_ in got.items()}
    for key, name in (("classes", "cls"), ("code", "box"), ("centerness", "ctr")):
        got |= whole.named_maps(f"head_{name}", s["levels"], raw[key])
    return got


def detections_of(detector, x, raw, s):
    """Detections at all three settings of a file, by its names; those of the published one besides."""
    small, everything = s["small_test"], s["all_test"]
    found = whole.detections_of(detector, x, raw)
    if detector.mask_head is not None:
        detector.mask_head.side = 1  # masks are compared at the published setting alone
    few = whole.detections_of(detector, x, raw, per_level=small["topk"], total=small["total"])
    many = whole.detections_of(detector, x, raw, total=everything["total"])
    got = whole.named_detections("det", found) | whole.named_detections("small_det", few)
    return got | whole.named_detections("all_det", many), found


def terms_of(step, names):
    got = whole.named_terms(step.terms, names)
    return got | {"loss_total": sum(got.values())}


@pytest.mark.parametrize("golden", goldens("whole_adel_fcos") + goldens("whole_adel_fcos_iou"), ids=str)
def test_fcos_agrees_with_the_reference(golden):
    s = params(golden)
    by_iou = s["fcos"]["BOX_QUALITY"] == "iou"
    quality = {"dense_head.quality": "iou"} if by_iou else {}
    detector = loaded(golden, "fcos", "adelaidet.1x", quality)
    x, y = whole.batch_of(whole.examples_of(golden), s["canvas_hw"])
    step = whole.train_step(detector, x, y)
    got = maps_of(detector, x, step.raw, s) | detections_of(detector, x, step.raw, s)[0]
    got |= terms_of(step, LOSSES | ({"fcos/centerness": "loss_fcos_iou"} if by_iou else {}))
    got |= whole.named_gradients(golden, step.gradients, TABLE)
    assert_agrees(golden, got)


@pytest.mark.parametrize(
    "golden", goldens("whole_adel_condinst") + goldens("whole_adel_condinst_sem"), ids=str
)
def test_condinst_agrees_with_the_reference(golden):
    s = params(golden)
    semantic = s["condinst"]["MASK_BRANCH"]["SEMANTIC_LOSS_ON"]
    row = "readme.r50_3x_sem" if semantic else "readme.r50_3x"
    detector = loaded(golden, "condinst", row, {"mask_head.branch": {"width": s["mask_branch_channels"]}})
    examples = whole.examples_of(golden)
    x, y = whole.batch_of(examples, s["canvas_hw"], mask_side=MASK_SIDE)

    raw = whole.forward(detector, x)  # with stored statistics, before a step changes them
    got = maps_of(detector, x, raw, s)
    got["mask_branch_maps"] = ops.convert_to_numpy(raw[MASKS]["maps"])
    controller = whole.named_maps("head_controller", s["levels"], raw[MASKS]["parameters"], channels=8)
    got |= {f"{name}_ch0to7": map_ for name, map_ in controller.items()}
    named, found = detections_of(detector, x, raw, s)
    got |= named | drawn_masks(golden, detector, raw, found)

    got |= targets_of(detector, raw, y, s) | centers_of(examples)
    got |= losses_of(golden, detector, x, y)
    got |= {name: None for name in golden.matching("det_masks_[0-9]+")}  # compared by `drawn_masks`
    assert_agrees(golden, got)


def targets_of(detector, raw, y, s):
    """Which object every point learns."""
    matched = ops.convert_to_numpy(fast(detector.dense_head.assign)(raw, y))
    labels = np.take_along_axis(y["labels"], np.maximum(matched, 0), axis=1)
    return {"place_labels": np.where(matched >= 0, labels, s["num_classes"]), "place_objects": matched}


def centers_of(examples):
    """Centres of mass of bitmaps whose cells divide the masks' blocks of 4 x 4 px: exact ones."""
    got = {}
    for image, example in enumerate(examples):
        centers = np.zeros((len(example.labels), 2), "float32")
        for row, box in enumerate(example.boxes):
            width, height = np.round(box[2:] - box[:2]).astype(int).tolist()
            side = math.lcm(width, height) // math.gcd(4, width, height)
            one = whole.batch_of([example.cut(example.image.shape[:2], [row])], mask_side=side)[1]
            centers[row] = ops.convert_to_numpy(mass_centers(one[MASKS], one[BOXES]))[0, 0]
        got[f"gt_mass_centers_{image}"] = centers
    return got


def losses_of(golden, detector, x, y):
    """Losses and gradients as published, and with the file's other settings."""
    step = whole.train_step(detector, x, y)
    got = terms_of(step, LOSSES) | whole.named_gradients(golden, step.gradients, TABLE)
    head, dense = detector.mask_head, detector.dense_head

    def mask_loss():
        return ops.convert_to_numpy(
            fast(lambda raw: head.losses(raw[MASKS], y, dense, raw)["condinst/mask"])(step.raw)
        )

    usual = head.upsampling
    head.topk_proposals = 8
    got["best_8_loss_mask"] = mask_loss()
    head.topk_proposals = None
    if "out_stride_2_loss_mask" in golden:
        head.upsampling = detector.dense_head.strides[0] // 2
        got["out_stride_2_loss_mask"] = mask_loss()
        head.upsampling = usual

    dense.center_of = "box"
    if golden.matching("box_centres_grad/.*"):
        step = whole.train_step(detector, x, y)
        got |= whole.named_gradients(golden, step.gradients, TABLE, prefix="box_centres_grad/")
        terms = step.terms
    else:
        terms = fast(lambda raw: detector.loss_terms(x, y, raw, training=True))(step.raw)
    return got | {f"box_centres_{name}": term for name, term in whole.named_terms(terms, LOSSES).items()}


def drawn_masks(golden, detector, raw, found):
    """Mask logits of the best detections and the points that all come from; masks are compared here."""
    grid = point_grid_of(raw["code"], detector.dense_head.strides)
    got = {}
    for image, detections in enumerate(found):
        source = detections["source"]
        got[f"det_locations_{image}"] = grid.points()[source]
        got[f"det_levels_{image}"] = grid.level[source]
        rows = len(golden[f"det_mask_logits_{image}"])
        places = np.zeros((len(found), rows), "int32")
        places[image] = source[:rows]
        logits = fast(detector.mask_head.logits)(raw[MASKS], places)
        got[f"det_mask_logits_{image}"] = ops.convert_to_numpy(logits)[image]
        masks = golden.raw(f"det_masks_{image}")
        best = {key: detections[key][: len(masks)] for key in (MASKS, BOXES)}
        pasted = paste_masks(best[MASKS], best[BOXES], masks.shape[1:])
        assert all(share > 0.99 for share in map(share_of_common, pasted, masks, best[BOXES]))
    return got


def share_of_common(mask, wanted, box):
    """Share of pixels on which two masks agree, inside of the box, where ours ends, and beside contours."""
    left, top, right, bottom = np.round(box).astype(int) + [1, 1, -1, -1]
    clear = ndimage.minimum_filter(wanted, 3) == ndimage.maximum_filter(wanted, 3)
    mask, wanted, clear = (one[top:bottom, left:right] for one in (mask, wanted, clear))
    return (mask == wanted)[clear].mean() if clear.any() else 1.0

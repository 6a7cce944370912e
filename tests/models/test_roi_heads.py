"""The second stage against the authors' code: inference, losses and gradients."""

import functools

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients
from support.jit import fast

from kgarden.heads.selection import Selection
from kgarden.models.cascade_rcnn import CascadeHead
from kgarden.models.centernet2 import released
from kgarden.models.faster_rcnn import BoxHead, Coder, FasterHead
from kgarden.models.faster_rcnn import decode as decode_boxes
from kgarden.weights.detectron2 import TABLE
from kgarden.weights.state_dict import load_state_dict


def padded(golden, stem, images):
    """Arrays <stem>_im0, <stem>_im1, ... padded to one length, and their mask."""
    rows = [golden[f"{stem}_im{image}"] for image in range(images)]
    most = max(1, *(len(row) for row in rows))
    out = np.zeros((images, most, *rows[0].shape[1:]), rows[0].dtype)
    valid = np.zeros((images, most), bool)
    for image, row in enumerate(rows):
        out[image, : len(row)] = row
        valid[image, : len(row)] = True
    return out, valid


class Heads:
    """A file's second stage with its weights, its pyramid and its proposals."""

    def __init__(self, golden):
        s = params(golden)
        self.golden, self.settings = golden, s
        self.pyramid = [golden[f"feat_{level}"] for level in s["levels"]]
        self.images = self.pyramid[0].shape[0]
        boxes, valid = padded(golden, "proposals", self.images)
        scores, _ = padded(golden, "proposal_scores", self.images)
        self.proposals = {"boxes": boxes, "scores": scores, "valid": valid, "probability": scores**2}
        self.size_hw = np.tile(np.int32(s["image_hw"]), (self.images, 1))
        self.cascade = np.ndim(s["bbox_reg_weights"]) == 2
        self.head = self._head(s)
        self.fuse = released if s.get("mult_proposal_score", True) else lambda scores, proposals: scores
        self.head.build([(None, None, None, s["channels"])] * len(self.pyramid))
        load_state_dict(
            self.head, golden.state_dict(), TABLE, prefix="roi_heads.", pool_size=s["pooler_resolution"]
        )

    def _head(self, s):
        shared = dict(
            strides=s["strides"],
            num_classes=s["num_classes"],
            num_samples=s.get("batch_size_per_image", 512),
            positive_fraction=s.get("positive_fraction", 0.25),
            pool_size=s["pooler_resolution"],
            sampling_ratio=s["sampling_ratio"],
            width=s["fc_dim"],
            sigmoid=s.get("use_sigmoid_ce", False),
            name="roi_head",
        )
        weights = s["bbox_reg_weights"]
        if self.cascade:
            return CascadeHead(ious=s.get("ious", (0.6, 0.7, 0.8)), delta_weights=weights, **shared)
        agnostic = s["cls_agnostic_bbox_reg"]
        return FasterHead(
            iou=s.get("ious", [0.6])[0], delta_weights=weights, class_agnostic=agnostic, **shared
        )

    def images_concatenated(self, rows):
        """(B, P, ...) -> the rows of all images in turn, padding left out."""
        return ops.convert_to_numpy(rows)[self.proposals["valid"]]


@pytest.mark.parametrize(
    "golden", goldens("cn2_cascade_heads_test") + goldens("cn2_faster_heads_test"), ids=str
)
def test_inference_agrees_with_the_reference(golden):
    heads = Heads(golden)
    s, got = heads.settings, {}
    select = Selection(
        score_threshold=s["score_thresh"],
        iou=s["nms_thresh"],
        total=s["detections_per_image"],
        per_level=None,
    )

    @functools.partial(fast, optimized=True)
    def infer(pyramid, proposals, size_hw):
        raw = heads.head(pyramid, proposals, size_hw)
        candidates = heads.head.candidates(raw, proposals, size_hw)
        return raw, select({**candidates, "scores": heads.fuse(candidates["scores"], proposals)})

    raw, found = infer(heads.pyramid, heads.proposals, heads.size_hw)
    if heads.cascade:
        for number, stage in enumerate(raw["stages"]):
            boxes = decode_boxes(stage, Coder(s["bbox_reg_weights"][number]))[:, :, 0]
            named = {
                "in_boxes": stage["boxes"],
                "cls_logits": stage["logits"],
                "deltas": stage["deltas"][:, :, 0],
                "pred_boxes": boxes,
            }
            got |= {f"stage{number}_{key}": heads.images_concatenated(rows) for key, rows in named.items()}
    found = {key: ops.convert_to_numpy(value) for key, value in found.items()}
    for image, valid in enumerate(found["valid"]):
        got[f"det_boxes_im{image}"] = found["boxes"][image][valid]
        got[f"det_scores_im{image}"] = found["scores"][image][valid]
        got[f"det_classes_im{image}"] = found["labels"][image][valid]
    assert_agrees(golden, got)


@pytest.mark.parametrize(
    "golden", goldens("cn2_cascade_heads_train") + goldens("cn2_faster_heads_train"), ids=str
)
def test_losses_and_gradients_agree_with_the_reference(golden):
    heads = Heads(golden)
    gt_boxes, gt_valid = padded(golden, "gt_boxes", heads.images)
    classes, _ = padded(golden, "gt_classes", heads.images)
    y = {
        "boxes": gt_boxes,
        "labels": np.where(gt_valid, classes, -1).astype("int32"),
        "crowd": np.zeros_like(gt_valid),
    }
    random = np.random.default_rng(0).uniform(size=(heads.images, 4096)).astype("float32")
    sampled = fast(lambda *truth: heads.head.sample(*truth, lambda n: random[:, :n]))(heads.proposals, y)

    def terms(*pyramid):
        raw = heads.head(list(pyramid), sampled, heads.size_hw, training=True)
        return heads.head.losses(raw, y)

    names = {"class": "loss_cls", "box": "loss_box_reg"}
    got = {}
    for name, term in fast(terms, optimized=True)(*heads.pyramid).items():
        stage, what = name.split("/")
        suffix = f"_{stage}" if heads.cascade else ""
        got[names[what] + suffix] = ops.convert_to_numpy(term)

    def summed(*pyramid):
        return sum(terms(*pyramid).values())

    outputs = {
        v.path: v for v in heads.head.trainable_variables if "/classes/" in v.path or "/boxes/" in v.path
    }
    _, gradients = value_and_gradients(summed, heads.pyramid, list(outputs.values()), optimized=True)
    for level, gradient in zip(heads.settings["levels"], gradients, strict=False):
        got[f"grad_feat_{level}"] = gradient
    for path, gradient in zip(outputs, gradients[len(heads.pyramid) :], strict=True):
        got[f"grad_param/{reference_name(path)}"] = gradient
    assert_agrees(golden, got)


def reference_name(path):
    """roi_head/box_head0/classes/kernel -> box_predictor.0.cls_score.weight."""
    _, head, output, leaf = path.split("/")
    number = head.removeprefix("box_head")
    output = {"classes": "cls_score", "boxes": "bbox_pred"}[output]
    leaf = {"kernel": "weight", "bias": "bias"}[leaf]
    return ".".join(part for part in ("box_predictor", number, output, leaf) if part)


MMDETECTION = [
    (r"shared_convs\.0\.conv", "features/conv1"),
    (r"shared_convs\.1\.conv", "features/conv2"),
    (r"shared_convs\.2\.conv", "features/conv3"),
    (r"shared_convs\.3\.conv", "features/conv4"),
    (r"shared_fcs\.0", "features/fc1"),
    (r"shared_fcs\.1", "features/fc2"),
    (r"fc_cls", "classes"),
    (r"fc_reg", "boxes"),
]


@pytest.mark.parametrize("golden", goldens("mmdet_shared2fc") + goldens("mmdet_shared4conv1fc"), ids=str)
def test_box_heads_agree_with_mmdetection(golden):
    s = params(golden)
    size = s["roi_feat_size"]
    assert s["fc_input_order"] == "flattened (channel, y, x)"
    head = BoxHead(
        s["num_classes"],
        s["fc_out_channels"],
        s["num_fcs"],
        s["reg_class_agnostic"],
        num_convs=s["num_convs"],
        name="box_head",
    )
    head.build((None, None, size, size, s["in_channels"]))
    load_state_dict(head, golden.state_dict(), MMDETECTION, pool_size=size)
    logits, deltas = (ops.convert_to_numpy(one)[0] for one in head(golden["x"][None]))
    assert_agrees(golden, {"cls_score": logits, "bbox_pred": deltas.reshape(len(deltas), -1)})


@pytest.mark.parametrize("golden", goldens("mmdet_rcnn_postprocess_own"), ids=str)
def test_detections_of_class_specific_boxes_agree_with_the_formula(golden):
    s = params(golden)
    head = FasterHead(
        [8], s["num_classes"], delta_weights=[1 / std for std in s["stds"]], clamp_below=True, name="roi_head"
    )
    proposals = {"boxes": golden["proposals"][None], "valid": np.ones((1, len(golden["proposals"])), bool)}
    deltas = golden["deltas"].reshape(1, -1, s["num_classes"], 4)
    raw = {**proposals, "logits": golden["logits"][None], "deltas": deltas}
    candidates = head.candidates(raw, proposals, np.int32([s["image_hw"]]))

    def detections(total):
        how = {"score_threshold": s["score_thr"], "iou": s["nms_iou"], "per_level": None, "total": total}
        found = {key: ops.convert_to_numpy(one)[0] for key, one in Selection(**how)(candidates).items()}
        return {key: one[found["valid"]] for key, one in found.items()}

    found = detections(s["max_dets"])
    got = {
        "det_boxes": found["boxes"],
        "det_scores": found["scores"],
        "det_labels": found["labels"],
        "det_proposal": found["source"],
        "num_before_topk": len(detections(deltas.shape[1] * s["num_classes"])["scores"]),
    }
    assert_agrees(golden, got)

"""Whole one-stage models with the references' weights: from images to detections, losses and gradients.

Models are built from the recipes of the published configurations; only widths are the files'. So every
default that takes part must be the published one.
"""

import numpy as np
import pytest
from support.golden import assert_agrees, goldens, params
from support.jit import fast
from support.whole_models import (
    backbone_widths,
    batch_of,
    detections_of,
    examples_of,
    named_detections,
    named_gradients,
    named_maps,
    named_terms,
    published_settings,
    train_step,
)

from kgarden.models import build_detector
from kgarden.models.centernet import ALONE, CenterNetHead
from kgarden.weights import detectron2, mmdetection
from kgarden.weights.state_dict import load_state_dict

MMDETECTION_TERMS = {
    "class": "loss_cls",
    "box": "loss_bbox",
    "centerness": "loss_centerness",
    "distribution": "loss_dfl",
}
MAPS = {"classes": "head_cls", "code": "head_box", "ltrb": "head_box", "centerness": "head_ctr"}


class Case:
    """A file's model, after one training step.

    `inference(x)` gives the pyramid and raw outputs with `training=False`, compiled once on JAX.
    """

    def __init__(self, golden, recipe, names, terms, row=None):
        self.golden, self.s, self.names = golden, params(golden), names
        channels = self.s["neck"]["out_channels"] if "neck" in self.s else self.s["fpn"]["OUT_CHANNELS"]
        widths = backbone_widths(self.s) | {"neck.channels": channels}
        self.detector = build_detector(published_settings(recipe, row, widths), self.s["num_classes"])
        load_state_dict(self.detector, golden.state_dict(), names.TABLE, ignore=names.IGNORE)
        self.head = self.detector.dense_head
        self.terms = {f"{self.head.name}/{ours}": theirs for ours, theirs in terms.items()}
        self.examples = examples_of(golden)
        self.x, self.y = batch_of(self.examples, self.s["canvas_hw"])
        self.step = train_step(self.detector, self.x, self.y)
        self.inference = fast(self._inference)

    def _inference(self, x):
        pyramid = self.detector.pyramid(x)
        return pyramid, self.head(pyramid)

    def maps(self):
        """The pyramid and what the head says."""
        got = named_maps("feat", self.s["levels"], self.inference(self.x)[0], channels=4)
        got = {f"{name}_ch0to3": map_ for name, map_ in got.items()}
        for key in MAPS.keys() & self.step.raw.keys():
            got |= named_maps(MAPS[key], self.s["levels"], self.step.raw[key])
        return got

    def named(self, terms, prefix=""):
        return {prefix + name: term for name, term in named_terms(terms, self.terms).items()}

    def losses_and_gradients(self):
        got = self.named(self.step.terms)
        got["loss_total"] = np.float32(sum(got.values()))
        return got | named_gradients(self.golden, self.step.gradients, self.names.TABLE)

    def detections(self, small, all_):
        """With published limits, with small ones, and without a limit of their number."""
        _, raw = self.inference(self.x)
        limits = {"det": {}, "small_det": small, "all_det": all_}
        got = {}
        for name, limit in limits.items():
            got |= named_detections(name, detections_of(self.detector, self.x, raw, **limit))
        return got


def assert_maps_agree(case):
    assert_agrees(case.golden, case.maps(), only="feat_.*|head_.*")


def assert_training_agrees(case):
    assert_agrees(case.golden, case.losses_and_gradients(), only="loss_.*|grad/.*")


DETECTIONS = "(det|small_det|all_det)_.*"

# --- mmdetection --------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[
        golden for model in ("retinanet", "fcos", "atss", "gfl") for golden in goldens(f"whole_mmdet_{model}")
    ],
    ids=str,
)
def mmdet(request):
    recipe = request.param.entry["prefix"].removeprefix("whole_mmdet_")
    return Case(request.param, recipe, mmdetection, MMDETECTION_TERMS)


def test_mmdetection_maps_agree(mmdet):
    assert_maps_agree(mmdet)


def test_mmdetection_training_agrees(mmdet):
    assert_training_agrees(mmdet)


def test_mmdetection_terms_weigh_what_they_should(mmdet):
    head = type(mmdet.head)(
        mmdet.head.strides, mmdet.head.num_classes, weights=dict.fromkeys(mmdet.head.terms, 1.0)
    )
    got = mmdet.named(fast(head.losses)(mmdet.step.raw, mmdet.y), "unweighted_")
    assert_agrees(mmdet.golden, got, only="unweighted_.*")


def test_mmdetection_padding_of_the_batch_takes_no_part(mmdet):
    narrow, examples = mmdet.s["narrow"], list(mmdet.examples)
    examples[narrow["image"]] = examples[narrow["image"]].cut(narrow["size_hw"], narrow["gt_rows"])
    x, y = batch_of(examples, mmdet.s["canvas_hw"])
    _, raw = mmdet.inference(x)
    terms = mmdet.detector.loss_terms(x, y, raw, training=False)
    assert_agrees(mmdet.golden, mmdet.named(terms, "narrow_"), only="narrow_.*")


def test_mmdetection_detections_agree(mmdet):
    small, all_ = (
        {ours: mmdet.s[test][theirs] for ours, theirs in names.items()}
        for test, names in (
            ("small_test_cfg", {"per_level": "nms_pre", "total": "max_per_img"}),
            ("all_test_cfg", {"total": "max_per_img"}),
        )
    )
    assert_agrees(mmdet.golden, mmdet.detections(small, all_), only=DETECTIONS)


# --- detectron2 ---------------------------------------------------------------------------------------------


def detections_of_detectron2(case):
    small = {"per_level": case.s["small_test"]["topk"], "total": case.s["small_test"]["total"]}
    return case.detections(small, {"total": case.s["all_test"]["total"]})


@pytest.fixture(scope="module", params=goldens("whole_d2_retinanet"), ids=str)
def d2_retinanet(request):
    terms = {"class": "loss_cls", "box": "loss_box_reg"}
    return Case(request.param, "retinanet", detectron2, terms, row="detectron2.1x")


def test_detectron2_retinanet_maps_agree(d2_retinanet):
    assert_maps_agree(d2_retinanet)


def test_detectron2_retinanet_training_agrees(d2_retinanet):
    assert_training_agrees(d2_retinanet)


def test_detectron2_retinanet_normaliser_remembers_the_step_before(d2_retinanet):
    case = d2_retinanet
    case.detector.step.assign_add(1)
    terms = case.detector.loss_terms(case.x, case.y, case.step.raw, training=True)
    assert_agrees(case.golden, case.named(terms, "second_"), only="second_.*")


def test_detectron2_retinanet_detections_agree(d2_retinanet):
    assert_agrees(d2_retinanet.golden, detections_of_detectron2(d2_retinanet), only=DETECTIONS)


# --- CenterNet2 ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=goldens("whole_cn2_centernet"), ids=str)
def centernet(request):
    terms = {
        "class_positive": "loss_centernet_pos",
        "class_negative": "loss_centernet_neg",
        "box": "loss_centernet_loc",
    }
    return Case(request.param, "centernet2", detectron2, terms, row="table1.centernet")


def test_centernet_maps_agree(centernet):
    assert_maps_agree(centernet)


def test_centernet_training_agrees(centernet):
    assert_training_agrees(centernet)


def test_centernet_without_more_positives_agrees(centernet):
    head = CenterNetHead(
        centernet.head.strides, centernet.head.num_classes, **ALONE | {"more_positives": None}
    )
    got = centernet.named(fast(head.losses)(centernet.step.raw, centernet.y), "without_more_positives_")
    assert_agrees(centernet.golden, got, only="without_more_positives_.*")


def test_centernet_detections_agree(centernet):
    assert_agrees(centernet.golden, detections_of_detectron2(centernet), only=DETECTIONS)

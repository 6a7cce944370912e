"""torchvision's detectors: its own networks with random weights find the same boxes; skipped without it."""

import numpy as np
import pytest
from keras import ops
from support.torchvision_models import torchvision_detection

from kgarden.models import build_detector
from kgarden.weights.projects import match_weights, project_of

torch = pytest.importorskip("torch", reason="torch is not installed here")
CLASSES, HEIGHT, WIDTH = 4, 160, 224  # of 160 px, P5 has 5 rows and P6 has 3: a step of 53 px
SIZES = [(160, 224), (130, 200)]

BACKBONE = {"name": "resnet18", "norm": "frozen_bn"}
PROPOSALS = 100  # of the usual 1000 a few lie at the limit of NMS to the last digit
RCNN = {
    "backbone": BACKBONE,
    "pixels": "torchvision",
    "convention": "torchvision",
    "proposals": {"test": {"per_level": PROPOSALS, "total": PROPOSALS}},
}
DENSE = {"backbone": BACKBONE, "pixels": "torchvision"}
MODELS = {
    "FasterRCNN": {"name": "faster_rcnn", **RCNN},
    "MaskRCNN": {"name": "mask_rcnn", **RCNN},
    "RetinaNet": {
        "name": "retinanet",
        **DENSE,
        "neck": {"top": "p6p7_of_p5", "relu_before_p7": True},
        "dense_head": {"anchor_form": "torchvision", "low_quality_matches": "own", "pad_divisor": None},
        "selection": {"total": 300},
    },
    "FCOS": {
        "name": "fcos",
        **DENSE,
        "dense_head": {
            "tower_bias": True,
            "scaled": False,
            "points": "torchvision",
            "sqrt_scores": True,
            "rank_by": "score",
            "gate_by": "score",
        },
        "selection": {"score_threshold": 0.04},
    },
}
RCNN_NAMES = ("FasterRCNN", "MaskRCNN")
OUTPUTS = ("cls_score", "bbox_pred", "cls_logits", "bbox_reg", "mask_fcn_logits", "bbox_ctrness")


@pytest.fixture(scope="module")
def detection():
    try:
        return torchvision_detection()
    except ImportError as error:
        pytest.skip(str(error))


def network(detection, name):
    """torchvision's network on ResNet-18; outputs are far from 0, so that scores differ."""
    torch.manual_seed(0)
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    dense = name not in RCNN_NAMES
    backbone = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        returned_layers=[2, 3, 4] if dense else None,
        extra_blocks=LastLevelP6P7(256, 256) if dense else None,
    )
    classes = CLASSES if dense else CLASSES + 1
    settings = {} if dense else {f"rpn_{when}_nms_top_n_test": PROPOSALS for when in ("pre", "post")}
    model = getattr(detection, name)(backbone, num_classes=classes, **settings).eval()
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda found, *sizes: found  # masks stay 28 x 28
    rng = np.random.default_rng(0)
    state = {}
    for key, tensor in model.state_dict().items():
        value = tensor.numpy()
        if key.endswith(("running_var", "running_mean")) or ("bn" in key and value.ndim == 1):
            value = value + rng.uniform(-0.2, 0.2, value.shape)
        if any(f"{output}.weight" in key for output in OUTPUTS):
            value = value * (0.3 / value.std()) / np.sqrt(value[0].size) * 4
        if any(f"{output}.bias" in key for output in OUTPUTS):
            value = rng.normal(size=value.shape, scale=0.5)
        state[key] = torch.from_numpy(np.float32(value))
    model.load_state_dict(state)
    return model, {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("name", MODELS)
def test_boxes_are_those_of_torchvision(detection, name):
    model, state = network(detection, name)
    images = np.zeros((2, HEIGHT, WIDTH, 3), "uint8")
    rng = np.random.default_rng(1)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
    with torch.no_grad():
        expected = model(
            [
                torch.from_numpy(np.float32(image[:height, :width]).transpose(2, 0, 1) / 255)
                for image, (height, width) in zip(images, SIZES, strict=True)
            ]
        )

    detector = build_detector(MODELS[name], CLASSES)
    assert project_of(state) == "torchvision-detectors"
    matched = match_weights(detector, state, "torchvision-detectors")
    assert (matched.unknown, matched.misfits, matched.missing) == ({}, {}, [])
    matched.assign_to(detector)
    found = detector.inference_model()({"images": images, "size_hw": np.int32(SIZES)})
    found = {key: ops.convert_to_numpy(value) for key, value in found.items()}
    for row, wanted in enumerate(expected):
        ours = {key: value[row][found["valid"][row]] for key, value in found.items()}
        assert_same(ours, {key: value.numpy() for key, value in wanted.items()}, first=name in RCNN_NAMES)


def assert_same(ours, theirs, first):
    """Every detection of torchvision that is not empty is among ours, and the other way round.

    Empty boxes, which torchvision's RetinaNet and FCOS keep, take places at the end of the list from others.

    Args:
        ours, theirs: {"boxes", "scores", "labels"} and perhaps "masks", best first.
        first:        the label of their first class.
    """
    real = (theirs["boxes"][:, 2:] > theirs["boxes"][:, :2]).all(axis=1)
    theirs = {key: value[real] for key, value in theirs.items()}
    assert len(theirs["boxes"]) >= 60
    last = max(ours["scores"][-1], theirs["scores"][-1]) + 1e-5
    distance = np.abs(ours["boxes"][:, None] - theirs["boxes"]).max(axis=-1)
    distance = np.where(ours["labels"][:, None] == theirs["labels"] - first, distance, np.inf)
    assert (distance.min(axis=1)[ours["scores"] > last] < 5e-3).all()
    assert (distance.min(axis=0)[theirs["scores"] > last] < 5e-3).all()
    pair = distance.argmin(axis=1)
    same = distance.min(axis=1) < 5e-3
    np.testing.assert_allclose(ours["scores"][same], theirs["scores"][pair][same], atol=1e-4)
    if "masks" in ours:
        np.testing.assert_allclose(ours["masks"][same], theirs["masks"][:, 0][pair][same], atol=1e-3)

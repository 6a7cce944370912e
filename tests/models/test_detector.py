"""Detectors on either backend: variables, training of every part, detections in px."""

import re

import keras
import numpy as np
import pytest
from keras import ops
from support.jit import fast
from support.marks import slow_on_jax, slow_on_jax_but
from support.unfilled import unfilled
from support.variants import CLASSES, VARIANTS, batch

from kgarden.build import build_model
from kgarden.config.loading import load_recipe
from kgarden.errors import UserError
from kgarden.models import MODELS, build_detector
from kgarden.models.centernet2 import fusion

pytestmark = pytest.mark.both_backends


def compiled(name, **changes):
    keras.utils.set_random_seed(0)
    detector = build_detector({**VARIANTS[name], **changes}, CLASSES)
    detector.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=keras.backend.backend() == "jax")
    return detector


def values(variables):
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


# Tracing a step takes seconds; these have every part.
TRAINED = slow_on_jax_but(
    ["centernet", "centernet2", "gfl", "retinanet", "atss_pss", "defcn", "condinst_pss", "faster_rcnn"],
    kept=["centernet2", "atss_pss", "condinst_pss"],
)
SLOW = (
    "fcos",
    "two_stage",
    "atss",
    "cascade_rcnn",
    "centernet2_gfl",
    "double_head",
    "faster_rcnn_c4",
    "fscascade",
    "mask_rcnn",
    "pss_two_stages",
    "tsd",
)
TRAINED += [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]
# GFL's loss rises first, with the IoUs that its classes are to predict.
LONG = {"gfl", *SLOW}
# TensorFlow traces and optimises a step for as long as it takes ten without a graph.
COMPILED = LONG if keras.backend.backend() == "tensorflow" else set(VARIANTS)


@pytest.mark.parametrize("name", TRAINED)
def test_training(name):
    """Weights move, frozen ones do not, the loss falls, empty images give finite terms."""
    detector = compiled(name)
    detector.freeze(["backbone/stem", "backbone/res2"])
    how = {"jit_compile": keras.backend.backend() == "jax", "run_eagerly": name not in COMPILED}
    detector.compile(optimizer=keras.optimizers.Adam(2e-3), **how)
    x, y = batch()
    paths = [variable.path for variable in detector.variables]
    frozen = [
        variable for variable in detector.variables if "/stem/" in variable.path or "/res2_" in variable.path
    ]
    kept, trained = values(frozen), values(detector.trainable_variables)

    logs = detector.train_on_batch(x, y, return_dict=True)
    # A first stage that proposes at random leaves little foreground to the second: its loss rises at first.
    with_rpn = any(term.startswith("rpn/") for term in detector.loss_names)
    judged = [term for term in detector.loss_names if not with_rpn or term.startswith("rpn/")]
    first = sum(logs[term] for term in judged)
    assert [variable.path for variable in detector.variables] == paths  # none is born in a step
    assert set(detector.loss_names) <= logs.keys() and all(np.isfinite(value) for value in logs.values())
    assert int(detector.step) == 1

    # The loss falls on one batch. `train_on_batch` averages over the steps so far.
    for _ in range(11 if name in LONG else 2):
        detector.reset_metrics()
        logs = detector.train_on_batch(x, y, return_dict=True)
    assert sum(logs[term] for term in judged) < 0.9 * first, (first, logs)

    # Every trainable weight moves, frozen ones do not. Levels on which no object of this batch lives give
    # no gradient to their own convolutions; nor has a bias right before a norm of single channels any.
    unmoved = [
        variable.path
        for variable, old, new in zip(
            detector.trainable_variables, trained, values(detector.trainable_variables), strict=True
        )
        if np.array_equal(old, new)
    ]
    # Nor has a non-local block any behind an output that begins with 0, nor a level without a drawn anchor.
    excused = r"_tower/conv\d+/bias$|/p6/|/p7/|/block\d/(g|theta|phi|out)/"
    excused += "|(double_head|cascade_rcnn|fscascade|tsd)/neck/output5/"
    assert all(re.search(excused, path) for path in unmoved), unmoved
    assert len(frozen) > 10
    for variable, old, new in zip(frozen, kept, values(frozen), strict=True):
        np.testing.assert_array_equal(old, new, err_msg=variable.path)

    # Images without objects are background: finite terms, nothing to regress.
    detector.reset_metrics()
    logs = detector.train_on_batch(x, {**y, "labels": np.full_like(y["labels"], -1)}, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values())
    assert all(logs[term] == 0 for term in logs if term.endswith("/box") or term.endswith("positive"))


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(UserError, match="resnet9000"):
        compiled("centernet").freeze(["resnet9000"])


def test_pixels_outside_the_image_do_not_matter():
    detector = compiled("centernet2")
    x, _ = batch()
    other = {key: value.copy() for key, value in x.items()}
    other["images"][:, 56:] = 255
    other["images"][:, :, 92:] = 255
    detect = fast(detector.inference_model())
    one, two = detect(x), detect(other)
    np.testing.assert_array_equal(one["scores"], two["scores"])


@slow_on_jax
def test_boxes_stay_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        detector = compiled("centernet2")
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = batch()
    raw = detector(x)
    assert keras.backend.standardize_dtype(raw["pyramid"][0].dtype) == "bfloat16"
    proposals = detector.proposer.proposals(raw["proposer"], x["size_hw"], training=False)
    refined = detector.roi_head(raw["pyramid"], proposals, x["size_hw"])
    for tensor in (
        proposals["boxes"],
        proposals["scores"],
        refined["stages"][2]["boxes"],
        refined["stages"][2]["logits"],
        detector.inference_model()(x)["boxes"],
    ):
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32"
    for term in detector.loss_terms(x, y, raw, True).values():
        assert keras.backend.standardize_dtype(term.dtype) == "float32" and np.isfinite(float(term))


def test_fusion_of_the_scores_of_both_stages():
    probability = np.float32([[[0.81, 0.09]]])
    proposals = {"scores": np.float32([[0.6]]), "probability": np.float32([[0.36]])}

    def fused(how, given=proposals):
        return ops.convert_to_numpy(fusion(how)(ops.convert_to_tensor(probability), given))[0, 0]

    assert fusion("off") is None  # the RoI head's scores as they are
    np.testing.assert_allclose(fused("product"), [0.81 * 0.36, 0.09 * 0.36], rtol=1e-6)
    np.testing.assert_allclose(fused("released"), np.sqrt([0.81 * 0.6, 0.09 * 0.6]), rtol=1e-6)
    for how in ("product", "released"):
        with pytest.raises(UserError, match="only a ranking"):
            fused(how, {"scores": proposals["scores"]})


def test_mistakes_in_settings_are_named():
    with pytest.raises(UserError, match="did you mean 'centernet'"):
        build_detector({"name": "centernet3"}, 3)
    with pytest.raises(UserError, match=r"model\.roi_head\.iouss.*'ious'"):
        build_detector({"name": "centernet2", "roi_head": {"iouss": [0.5]}}, 3)
    with pytest.raises(UserError, match=r"model\.proposer\.trian"):
        build_detector({"name": "centernet2", "proposer": {"trian": 5}}, 3)
    with pytest.raises(UserError, match="leaves CenterNet"):
        build_detector({"name": "centernet2", "proposer": {"name": "gfl"}, "roi_head": "none"}, 3)
    with pytest.raises(UserError, match=r"dense_head\.num_conv: .*'num_convs'"):
        build_detector({"name": "fcos", "dense_head": {"num_conv": 2}}, 3)
    with pytest.raises(UserError, match=r"model.neck.levels is 7: a list, as \[3, 7\]"):
        build_detector({"name": "centernet", "neck": {"levels": 7}}, CLASSES)
    with pytest.raises(UserError, match=r"model.neck.channels is '64': a number, as 256"):
        build_detector({"name": "centernet", "neck": {"channels": "64"}}, CLASSES)
    with pytest.raises(
        UserError, match=r"dense_head.num_convs is \[4\]: a number, as 4"
    ):  # of its base class
        build_detector({"name": "fcos", "dense_head": {"num_convs": [4]}}, CLASSES)
    with pytest.raises(UserError, match="roi_head.num_samples is '64': a number, as 512"):  # of RoISampling
        build_detector({"name": "faster_rcnn", "roi_head": {"num_samples": "64"}}, CLASSES)
    either = {"stage_weights": 1.0, "feature_gradient": [1.0, 0.5, 0.5]}
    head = unfilled(lambda: build_detector({"name": "fscascade", "roi_head": either}, CLASSES)).roi_head
    assert head.stage_weights == (1.0, 1.0, 1.0) and head.feature_gradient == (1.0, 0.5, 0.5)
    with pytest.raises(UserError, match=r"deformable_stages is 5: a list, as \[\]"):
        build_detector(
            {"name": "centernet", "backbone": {"name": "resnet50", "deformable_stages": 5}}, CLASSES
        )
    with pytest.raises(UserError, match=r"dense_head\.anchors: no such setting"):
        build_detector({"name": "gfl", "dense_head": {"anchors": 2}}, 3)
    with pytest.raises(UserError, match="divisible by 32"):
        x, _ = batch(height=60)
        compiled("centernet")(x)


def test_parameters_are_those_of_the_release():
    # 32.24 M and 71.65 M, counted on the release's models; the statistics of frozen batch norms are
    # buffers there, and so are their scales and shifts.
    def millions(settings):
        settings = {**settings, "backbone": {"name": "resnet50", "norm": "frozen_bn"}}
        detector = unfilled(lambda: build_detector(settings, 80))
        counted = [v for v in detector.variables if "backbone" not in v.path or "/norm/" not in v.path]
        return sum(int(np.prod(v.shape)) for v in counted if not v.path.endswith("/step")) / 1e6

    assert round(millions({"name": "centernet"}), 2) == 32.24
    assert round(millions({"name": "centernet2"}), 2) == 71.65
    assert round(millions({"name": "centernet2", "roi_head": {"name": "faster"}}), 2) == 43.68


def test_every_model_has_a_variant_here():
    assert {settings["name"] for settings in VARIANTS.values()} == set(MODELS)


@pytest.mark.tensorflow
def test_validation_loss_is_that_of_compute_loss_on_every_canvas():
    """Two canvases of other sizes, as `fit` computes val_loss; without ground truth one line says so."""
    import tensorflow as tf

    detector = compiled("centernet")
    x, y = batch()
    portrait = {"images": x["images"].transpose(0, 2, 1, 3), "size_hw": x["size_hw"][:, ::-1]}
    turned = {**y, "boxes": y["boxes"][..., [1, 0, 3, 2]]}
    batches = [(x, y), (portrait, turned)]
    assert portrait["images"].shape != x["images"].shape
    spec = keras.tree.map_structure(
        lambda one: tf.TensorSpec((None,) * one.ndim if one.ndim == 4 else one.shape, one.dtype), (x, y)
    )
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    wanted = [
        float(detector.compute_loss(one, truth, detector(one, training=False), training=False))
        for one, truth in batches
    ]
    detector.reset_metrics()
    logs = detector.evaluate(data, return_dict=True, verbose=0)
    assert logs["loss"] == pytest.approx(np.mean(wanted), rel=1e-5) and wanted[0] != wanted[1]
    assert int(detector.step) == 0
    meta = {"image_id": y["image_id"], "original_hw": x["size_hw"]}
    nothing = tf.data.Dataset.from_tensors((x, meta))
    for call in (lambda: detector.evaluate(nothing), lambda: detector.fit(data, validation_data=nothing)):
        with pytest.raises(UserError, match="hold no ground truth.*build_datasets"):
            call()


@pytest.mark.parametrize("name", slow_on_jax_but(["centernet2", "fcos"], kept=["fcos"]))
def test_keras_files_give_equal_predictions(name, tmp_path):
    detector = compiled(name)
    detector.optimizer.build(detector.trainable_variables)
    for variable in detector.weights:  # other values than a new detector's
        if "float" in variable.dtype:
            variable.assign(variable.value + 0.01)
    x, _ = batch()
    detector.save(tmp_path / "detector.keras")
    model = detector.inference_model()
    model.save(tmp_path / "inference.keras")
    again = keras.saving.load_model(tmp_path / "detector.keras")
    assert type(again) is type(detector) and again.origin == detector.origin
    wanted = model(x)
    for other in (again.inference_model(), keras.saving.load_model(tmp_path / "inference.keras")):
        found = other(x)
        for key, value in wanted.items():
            np.testing.assert_array_equal(ops.convert_to_numpy(found[key]), ops.convert_to_numpy(value))
    with pytest.raises(UserError, match="detectors are saved as .keras; use save_weights.*kgarden export"):
        detector.save(tmp_path / "detector.h5")
    detector.origin = None
    with pytest.raises(UserError, match="built from settings alone can be saved as .keras"):
        detector.save(tmp_path / "detector.keras")


@pytest.mark.parametrize("names", [7, "cup", [], ["cup", 3], ["cup", "cup"]])
def test_class_names_that_are_no_list_of_names_are_refused(names):
    with pytest.raises(UserError, match="^class_names: "):
        build_model(load_recipe("quickstart"), class_names=names)

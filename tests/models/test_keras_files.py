"""What a detector carries beside its weights: recipe, classes, pixels; and Keras' summary."""

import copy
import os
import pickle
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from support.variants import VARIANTS

import kgarden
from kgarden.build import build_model
from kgarden.config.loading import load_recipe

pytestmark = pytest.mark.both_backends
ON_JAX = keras.backend.backend() == "jax"
SIZES = {"data.short_side_px": 64, "data.long_side_px": 96, "data.canvases": [[64, 96], [96, 64]]}
MODEL = {**VARIANTS["fcos"], "selection": {"score_threshold": 0.0, "total": 5}}


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    detector = build_model(load_recipe("quickstart", {"model": MODEL, **SIZES}), class_names=["cup", "dish"])
    detector.pixels.mean[1] = 99.0  # as if the default had been another one at the time
    return detector


def carried(detector):
    pixels = detector.pixels
    recipe = detector.recipe.digest()
    return recipe, detector.categories, detector.class_names, pixels.mean, pixels.std, pixels.order


def test_files_and_copies_carry_recipe_classes_and_pixels(detector, tmp_path):
    assert detector.class_names == ["cup", "dish"] and detector.num_classes == 2
    detector.save(tmp_path / "m.keras")
    copies = [keras.saving.load_model(tmp_path / "m.keras"), pickle.loads(pickle.dumps(detector))]
    for other in (*copies, copy.deepcopy(detector), keras.models.clone_model(detector)):
        assert carried(other) == carried(detector) and other is not detector
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype="uint8")
    for other in copies:
        wanted, found = detector.predict(images, verbose=0), other.predict(images, verbose=0)
        np.testing.assert_array_equal(found["boxes"], wanted["boxes"])
    if ON_JAX:  # whose tests have no TensorFlow, which resizes images
        with pytest.raises(kgarden.UserError, match="resizes images with TensorFlow, on the JAX backend too"):
            kgarden.Predictor(copies[0])(images[0])
        for name in ("train", "export"):
            with pytest.raises(kgarden.UserError, match=f"kgarden.{name} needs TensorFlow"):
                getattr(kgarden, name)
    else:
        predictor = kgarden.Predictor(copies[0])
        assert predictor.names == ["cup", "dish"]
        given = kgarden.Predictor(detector, detector.recipe)(images[0])
        np.testing.assert_array_equal(predictor(images[0])["boxes"], given["boxes"])


def test_files_are_loaded_in_another_process(detector, tmp_path):
    """By kgarden, which then has made its classes known to Keras."""
    detector.save(tmp_path / "m.keras")
    program = (
        "import keras, kgarden, support.small_backbone; print(kgarden.load_model('m.keras').class_names)\n"
    )
    program += "print(keras.saving.load_model('m.keras').class_names)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['cup', 'dish']"] * 2, done.stderr


def test_what_is_no_file_of_a_detector_is_refused(tmp_path):
    (tmp_path / "text.keras").write_text("no model")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as file:
        file.writestr("metadata.json", "{}")
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Dense(1)(inputs)).save(tmp_path / "other.keras")
    for path, words in (
        (tmp_path / "text.keras", "text.keras: not a .keras file"),
        (tmp_path / "empty.keras", "empty.keras: not a .keras file that this version reads"),
        (tmp_path / "other.keras", "other.keras: holds a Functional, not a detector"),
        (tmp_path / "none.keras", "none.keras: no such file"),
        (tmp_path, "no such file"),
        (None, "path: a path is needed, not None"),
        (7, "path: a path is needed, not 7"),
    ):
        with pytest.raises(kgarden.UserError, match=words) as caught:
            kgarden.load_model(path)
        assert "\n" not in str(caught.value)


def test_classes_are_checked(detector):
    other = keras.models.clone_model(detector)
    other.categories = [{"id": 7, "name": "a"}, {"id": 2, "name": "b"}]
    assert other.class_names == ["a", "b"] and kgarden.Predictor(other).categories == other.categories
    for names, words in (
        (["a"], "1 classes, the detector has 2"),
        ("ab", "a list of strings"),
        ([1, 2], "strings"),
    ):
        with pytest.raises(kgarden.UserError, match=words):
            other.class_names = names
    for settings, words in (
        ({"categories": other.categories[:1]}, "1 categories, the detector has 2 classes"),
        ({"batch_size": 0}, "batch_size: a whole number from 1 on is needed, not 0"),
        ({"min_score": 1.5}, "min_score: a number from 0 to 1"),
        ({"recipe": "quickstrat"}, "did you mean 'quickstart'"),
    ):
        with pytest.raises(kgarden.UserError, match=words):
            kgarden.Predictor(other, **settings)
    other.recipe = None
    with pytest.raises(kgarden.UserError, match="this detector carries none"):
        kgarden.Predictor(other)
    with pytest.raises(kgarden.UserError, match="save the detector as" if ON_JAX else "carries no recipe"):
        other.export("served")
    with pytest.raises(kgarden.UserError, match="a kgarden.Detector is needed, not 'runs/cups'"):
        kgarden.Predictor("runs/cups")


def test_files_of_a_wrong_recipe_are_refused(detector):
    config = detector.get_config()
    config["recipe"]["schedule"]["stepz"] = 3
    with pytest.raises(kgarden.UserError, match="in the .keras file: unknown key .schedule.stepz"):
        type(detector).from_config(config)


def test_summary_shows_the_shapes_of_a_canvas(detector):
    def summary(**settings):
        lines = []
        detector.summary(line_length=120, print_fn=lines.append, **settings)
        return "\n".join(lines)

    shown = summary()
    assert "(None, 64, 96, 3)" in shown and "(None, 8, 12, 32)" in shown and " ? " not in shown
    assert "(None, 32, 32, 3)" in summary(canvas=(32, 32))
    assert not [layer for layer in detector.layers if {"call", "compute_output_shape"} & vars(layer).keys()]

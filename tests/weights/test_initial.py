"""Initial weights: what fits is loaded, what does not is named, and a run's own weights must fit exactly."""

import keras
import numpy as np
import pytest

from kgarden.errors import UserError
from kgarden.utils.files import write_json
from kgarden.weights.initial import load_all, load_parts, load_what_fits, shapes_in


class Model(keras.Model):
    """A backbone, boxes and classes, and perhaps an extra layer, all dense layers."""

    def __init__(self, num_classes, width=4, extra=False, seed=0, head_width=None):
        super().__init__()
        self.num_classes = num_classes

        def dense(units, name, bias=0.0):
            kernel = keras.initializers.RandomNormal(seed=seed)
            layer = keras.layers.Dense(units, kernel_initializer=kernel, name=name)
            layer.build((None, width if name == "backbone" else head_width or width))
            layer.bias.assign(np.full(units, bias + seed, "float32"))
            return layer

        self.backbone, self.boxes = dense(width, "backbone"), dense(4, "boxes", 1.0)
        self.classes = dense(num_classes, "classes", 2.0)
        self.extra = dense(5, "extra") if extra else None
        self.built = True

    def parts(self):
        parts = {"backbone": self.backbone, "boxes": self.boxes, "classes": self.classes}
        return parts if self.extra is None else {**parts, "extra": self.extra}

    def values(self):
        return {
            f"{name}/{v.name}": keras.ops.convert_to_numpy(v)
            for name, p in self.parts().items()
            for v in p.weights
        }


@pytest.fixture
def two(tmp_path):
    """(model of two classes, path of its weights in a run)"""
    model, run = Model(2, seed=1), tmp_path / "two"
    run.mkdir()
    model.save_weights(run / "best.weights.h5")
    write_json(run / "labels.json", [{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}])
    return model, run / "best.weights.h5"


def same(model, other, name):
    one, two = model.values(), other.values()
    return all(np.array_equal(one[key], two[key]) for key in one if key.startswith(f"{name}/"))


def test_everything_but_the_head_of_other_classes_is_loaded(two):
    source, path = two
    model, untouched = Model(3), Model(3)
    said = load_what_fits(model, path)
    assert (
        said
        == f"init: {path}: 4 of 6 weights fit and are loaded; classes starts anew (2 classes there, 3 here)"
    )
    assert same(model, source, "backbone") and same(model, source, "boxes")
    assert same(model, untouched, "classes")
    assert not same(untouched, source, "backbone")


def test_all_weights_fit(two):
    source, path = two
    model = Model(2)
    assert load_what_fits(model, path) is None
    assert all(same(model, source, name) for name in source.parts())


def test_missing_and_further_layers_are_named(two, tmp_path):
    source, path = two
    model = Model(2, extra=True)
    assert load_what_fits(model, path).endswith("6 of 8 weights fit and are loaded; extra starts anew")
    assert same(model, source, "classes")
    Model(2, extra=True, seed=3).save_weights(tmp_path / "m.weights.h5")
    assert load_what_fits(Model(2), tmp_path / "m.weights.h5").endswith("; extra of the file is not used")


def test_a_layer_that_fits_in_part_starts_anew_as_a_whole(two):
    """Of boxes on other features the biases would fit; without their kernels they are of no use."""
    source, path = two
    model = Model(2, head_width=6)
    said = load_what_fits(model, path)
    assert "2 of 6 weights fit" in said and "boxes, classes start anew" in said
    assert same(model, source, "backbone") and model.values()["boxes/bias"].tolist() == [1.0] * 4


def test_another_backbone_is_refused(two):
    _, path = two
    model, untouched = Model(2, width=6), Model(2, width=6)
    with pytest.raises(
        UserError, match=r"init: .* does not fit this model: backbone, .*; use the same backbone"
    ):
        load_what_fits(model, path)
    assert all(same(model, untouched, name) for name in model.parts())


def test_weights_of_a_run_must_fit_exactly(two):
    _, path = two
    load_all(Model(2), path)
    with pytest.raises(
        UserError, match=r"not those of this model: classes does not fit \(2 classes there, 3 here\)"
    ):
        load_all(Model(3), path)
    with pytest.raises(UserError, match="extra does not fit$"):
        load_all(Model(2, extra=True), path)


def test_named_parts_must_fit(two):
    source, path = two
    model = Model(3)
    load_parts(model, Model(2), path, ["backbone"])
    assert same(model, source, "backbone") and not same(model, source, "boxes")
    said = r"classes of .* does not fit this recipe \(2 classes there, 3 here\); leave it out"
    with pytest.raises(UserError, match=said):
        load_parts(model, Model(2), path, ["classes"])


def test_files_that_cannot_be_used_are_named(two, tmp_path):
    _, path = two
    damaged, other = tmp_path / "d.weights.h5", tmp_path / "weights.pth"
    damaged.write_bytes(path.read_bytes()[:600])
    other.touch()
    for file, said in [
        (damaged, "damaged, or not a file of weights"),
        (other, "not a .weights.h5 file; kgarden convert"),
        (tmp_path / "none.weights.h5", "no such file"),
    ]:
        for load in (load_all, load_what_fits):
            with pytest.raises(UserError, match=f"{file.name}.* ?{said}") as error:
                load(Model(2), file)
            assert "\n" not in str(error.value)
    assert shapes_in(path)["classes/vars/0"] == (4, 2)

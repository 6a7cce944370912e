"""Recipes: accepted values, errors and their messages, rows, stages, digest."""

import pathlib

import pytest
import yaml

from kgarden.build import build_model
from kgarden.config.loading import load_recipe, packaged_recipes, parse_value, stage_recipes
from kgarden.errors import UserError

TEXT = """\
name: little
model:
  name: centernet2
  backbone: resnet18
  roi_head: {name: cascade, ious: [0.6, 0.7]}
data:
  train: shards/train-*.tfrecord
  val: shards/val-*.tfrecord
  short_side_px: [64, 80]
  long_side_px: 96
  batch_size: 2
schedule:
  optimizer: {name: sgd, weight_decay: 1e-4}
  base_lr: 0.02
  warmup: {steps: 10, factor: 0.1}
  decay: {at: [60, 80], factor: 0.1}
  steps: 90
rows:
  table1.b: {set: {schedule.steps: 45, model.roi_head.ious: [0.5]}, reported: {ap: 40.5}}
  table1.c: {set: {model.score: product}, reported: {ap: 41}, evaluates: table1.b}
"""


@pytest.fixture
def write(tmp_path):
    def _write(text, name="little.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def error_of(path, **kwargs):
    with pytest.raises(UserError) as caught:
        load_recipe(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_values_and_defaults(write):
    recipe = load_recipe(write(TEXT))
    assert recipe.schedule.optimizer.weight_decay == 1e-4  # without a dot, as YAML 1.1 does not read it
    assert recipe.schedule.optimizer.momentum is None and recipe.schedule.ema is None
    assert recipe.data.short_side_px == (64, 80)
    ranged = load_recipe(write(TEXT), {"data.short_side_px": {"from": 64, "to": 67}})
    assert ranged.data.short_side_px == (64, 65, 66, 67)
    assert recipe.data.train[0].glob == "shards/train-*.tfrecord"
    assert recipe.model.model_extra == {
        "backbone": "resnet18",
        "roi_head": {"name": "cascade", "ious": [0.6, 0.7]},
    }
    assert recipe.precision == "float32"
    with pytest.raises(ValueError):
        recipe.seed = 3


NUMBERS = [
    ("1e-4", 1e-4),
    ("3E5", 3e5),
    (".5", 0.5),
    ("-2e3", -2000.0),
    ("7", 7),
    ("1.", 1.0),
    ("e4", "e4"),
    ("12px", "12px"),
    ("true", True),
    ("off", "off"),
    ("[1, 2e-1]", [1, 0.2]),
]


@pytest.mark.parametrize("text,expected", NUMBERS)
def test_scalars_are_parsed_as_yaml_1_2(text, expected):
    got = parse_value(text)
    assert got == expected and type(got) is type(expected)


def test_unknown_keys_report_line_and_nearest_key(write):
    message = error_of(write(TEXT.replace("  batch_size: 2", "  batchsize: 2")))
    assert "little.yaml:11" in message and "'data.batchsize'" in message and "'batch_size'" in message
    message = error_of(write(TEXT.replace("weight_decay", "weightdecay")))
    assert "little.yaml:13" in message and "'weight_decay'" in message
    message = error_of(write("sed: 1\n" + TEXT))
    assert "little.yaml:1:" in message and "'seed'" in message


@pytest.mark.parametrize(
    "old,new,line,words",
    [
        ("steps: 90", "steps: 9.5", 17, "schedule.steps = 9.5"),
        ("steps: 90", "steps: true", 17, "schedule.steps = True"),
        ("base_lr: 0.02", "base_lr: '0.02'", 14, "schedule.base_lr = '0.02'"),
        ("base_lr: 0.02", "base_lr: -1", 14, "greater than 0"),
        ("name: sgd", "name: adam", 13, "'sgd' or 'adamw'"),
        ("{name: sgd,", "{name: sgd, betas: [0.9, 0.99],", 13, "betas is not a parameter of sgd; remove it"),
        (
            "decay: {at: [60, 80], factor: 0.1}",
            "decay: {name: cosine, factor: 0.1}",
            16,
            "not parameters of name: cosine",
        ),
        ("decay: {at: [60, 80], factor: 0.1}", "decay: {at: [60, 80]}", 16, "requires at and factor"),
        ("train: shards/train-*.tfrecord", "train: {format: coco, images: here}", 7, "requires annotations"),
        (
            "train: shards/train-*.tfrecord",
            "train: {glob: here, seed: 3}",
            7,
            "unexpected seed with glob",
        ),
        ("short_side_px: [64, 80]", "short_side_px: []", 9, "at least 1 item"),
        ("evaluates: table1.b", "evaluates: table1.d", 20, "no row 'table1.d'"),
        ("schedule.steps: 45", "schedule.stepz: 45", 19, "'steps'"),
    ],
)
def test_invalid_values_report_line_and_reason(write, old, new, line, words):
    assert old in TEXT
    message = error_of(write(TEXT.replace(old, new)))
    assert f"little.yaml:{line}:" in message and words in message


@pytest.mark.parametrize(
    "key,value,said",
    [
        ("data.val", None, "data.val = null: must be shards (a folder or glob) or raw data"),
        ("data.train", 3, "data.train = 3: must be shards"),
        ("data.train", [], "data.train = []: must be shards"),
        ("data.train", [{"glob": "x", "weight": -1}], "data.train.0.weight = -1: must be greater than 0"),
        ("data.train", {"glob": "x", "weight": -1}, "data.train.weight = -1: must be greater than 0"),
        ("replicas", 0, "replicas = 0: must be a whole number greater than 0, or all"),
        ("replicas", "al", "replicas = 'al': must be a whole number greater than 0, or all"),
        ("schedule.steps", None, "schedule.steps = null: must be a whole number"),
        ("schedule.base_lr", "x", "schedule.base_lr = 'x': must be a number"),
        ("schedule.ema.decay", 1.5, "schedule.ema.decay = 1.5: must be less than 1"),
        (
            "schedule.decay",
            "cosine",
            "schedule.decay = 'cosine': must be a mapping, for example {name",
        ),
        ("schedule", 3, "schedule = 3: must be a mapping of keys, {key: value}"),
        ("data.masks", 1, "data.masks = 1: must be true or false"),
        ("data.canvases", 3, "data.canvases = 3: must be a list"),
        ("data.short_side_px", {"from": 9, "to": 8}, "a range of sizes is {from: 480, to: 960}"),
        ("data.short_side_px", {"from": 9, "upto": 12}, "a range of sizes is {from: 480, to: 960}"),
        ("data.canvases", [[64]], "data.canvases.0.1 is missing"),
        (
            "data.sampling",
            "even",
            "data.sampling = 'even': must be 'natural', 'repeat_factor', 'class_aware' or 'class_rounds'",
        ),
        ("evaluate.metrics", "x", "evaluate.metrics = 'x': must be 'coco', "),
        ("name", 3, "name = 3: must be text; quote it"),
        ("init", "x", "init = 'x': must be a mapping, for example {run: runs/first}"),
        ("data.size", 1, "unknown key 'data.size'"),
    ],
)
def test_values_are_refused_in_words_about_what_is_written(key, value, said):
    with pytest.raises(UserError) as error:
        load_recipe("quickstart", {key: value})
    message = str(error.value)
    assert said in message and "more)" not in message and "\n" not in message
    for word in ("dictionary", "instance", "tuple", "constrained", "input should", "validation", "boolean"):
        assert word not in message, message


def test_rules_of_the_optimizer_are_checked(write):
    base = {"schedule.optimizer.rules": {"norm_shift": {"lr_factor": 2.0}}}
    recipe = load_recipe("quickstart", base)
    assert recipe.schedule.optimizer.rules.norm_shift.lr_factor == 2.0
    assert load_recipe(write(recipe.to_yaml(), "resolved.yaml")).digest() == recipe.digest()
    for rules, words in (
        ({"norm_shifts": {}}, "did you mean 'norm_shift'"),
        ({"bias": {"lr": 2.0}}, "use one of lr_factor, decay_factor"),
        ({"bias": {"lr_factor": 0.0}}, "greater than 0"),
        ({"bias": {"decay_factor": -1.0}}, "greater than or equal to 0"),
    ):
        with pytest.raises(UserError, match=words):
            load_recipe("quickstart", {"schedule.optimizer.rules": rules})


def test_missing_and_duplicate_keys(write):
    assert "schedule.steps is missing" in error_of(write(TEXT.replace("  steps: 90\n", "")))
    message = error_of(write(TEXT.replace("  steps: 90\n", "  steps: 90\n  steps: 91\n")))
    assert "little.yaml:18" in message and "duplicate key" in message
    assert "not valid YAML" in error_of(write("a: [1,\nb: 2"))
    assert "no recipe 'quickstrat'" in error_of("quickstrat")


def test_a_file_may_be_loaded_again(write):
    """It is parsed once. Merge keys are resolved in place by PyYAML, overrides change a tree."""
    path = write(TEXT.replace("{name: sgd,", "{<<: {name: adamw, weight_decay: 1}, name: sgd,"))
    first = load_recipe(path, {"schedule.steps": 7, "model.roi_head.ious": [0.5]})
    assert first.schedule.optimizer.name == "sgd" and first.schedule.steps == 7
    assert load_recipe(path) == load_recipe(write(TEXT, "plain.yaml"), {"name": "little"})


def test_overrides_are_applied_after_rows(write):
    path = write(TEXT)
    assert load_recipe(path, row="table1.b").schedule.steps == 45
    recipe = load_recipe(path, {"schedule.steps": 7, "model.backbone": "resnet34"}, row="table1.b")
    assert recipe.schedule.steps == 7
    assert recipe.model.model_extra == {
        "backbone": "resnet34",
        "roi_head": {"name": "cascade", "ious": [0.5]},
    }
    assert load_recipe(path, {"data.train": ["a", "b"], "data.train.1": "c"}).data.train[1].glob == "c"
    assert "'schedule.stps'" in error_of(path, overrides={"schedule.stps": 7})
    assert "no row 'table1.z'" in error_of(path, row="table1.z")


def test_a_row_may_refer_to_another_recipe(write):
    write(TEXT.replace("name: little", "name: other"), "other.yaml")
    path = write(TEXT + "  table1.d: {recipe: other.yaml, set: {seed: 5}}\n")
    recipe = load_recipe(path, row="table1.d")
    assert (recipe.name, recipe.seed) == ("other", 5)


def test_a_row_may_refer_to_a_row_of_another_recipe(write):
    write(TEXT.replace("name: little", "name: other"), "other.yaml")
    path = write(TEXT + "  table1.d: {recipe: other.yaml, row: table1.b, set: {seed: 5}}\n")
    recipe = load_recipe(path, {"schedule.base_lr": 0.5}, row="table1.d")
    assert (recipe.name, recipe.schedule.steps, recipe.seed) == ("other", 45, 5)
    assert recipe.schedule.base_lr == 0.5
    path = write(TEXT + "  table1.d: {recipe: other.yaml, row: table1.x}\n")
    assert "no row 'table1.x'" in error_of(path, row="table1.d")
    assert "give recipe too" in error_of(write(TEXT + "  table1.d: {row: table1.b}\n"))


ROWLESS = TEXT[: TEXT.index("rows:")]
ODD_RECIPES = {
    "itself": (ROWLESS + "a: &a [*a]", "contains itself"),
    "laughs": (
        ROWLESS
        + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" if n else "a0: &a0 [x]\n" for n in range(30)),
        "aliases included",
    ),
    "infinite": (ROWLESS.replace("0.02", ".inf"), "finite"),
    "row of a row": (ROWLESS + "rows: {r: {recipe: little.yaml, row: r}}", "rows.r refers to itself"),
    "row that is a number": (ROWLESS + "rows: {r: 3}", "a row is a mapping"),
    "set that is a list": (ROWLESS + "rows: {r: {set: [1]}}", "a row is a mapping"),
    "recipe that is a list": (ROWLESS + "rows: {r: {recipe: [1]}}", "a row is a mapping"),
    "element of a number": (
        ROWLESS + "rows: {r: {set: {data.short_side_px.0.x: 3}}}",
        "64 has no element 'x'",
    ),
}


@pytest.mark.parametrize("text,words", ODD_RECIPES.values(), ids=ODD_RECIPES)
def test_recipes_that_are_tricks_get_one_line(write, text, words):
    assert words in error_of(write(text), row="r" if "rows:" in text else None)


def test_paths_are_resolved_against_the_recipe_then_the_working_directory(write, tmp_path, monkeypatch):
    beside, working = tmp_path / "shards", tmp_path / "elsewhere" / "shards"
    for folder in (beside, working):
        folder.mkdir(parents=True)
        (folder / "val-0.tfrecord").touch()
    (beside / "train-0.tfrecord").touch()
    monkeypatch.chdir(working.parent)
    recipe = load_recipe(write(TEXT))
    assert recipe.data.train[0].glob == str(beside / "train-*.tfrecord")
    assert recipe.data.val[0].glob == str(beside / "val-*.tfrecord")
    (beside / "val-0.tfrecord").unlink()
    assert load_recipe(write(TEXT)).data.val[0].glob == str(working / "val-*.tfrecord")


def test_digest_depends_on_the_experiment_only(write, tmp_path):
    recipe = load_recipe(write(TEXT))
    assert len(recipe.digest()) == 64
    before = recipe.digest()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train-0.tfrecord").touch()
    found = load_recipe(write(TEXT + "  table1.e: {reported: {ap: 1.0}}\n"))
    assert found.data.train[0].glob != recipe.data.train[0].glob
    assert found.digest() == before
    assert load_recipe(write(TEXT), {"data.val": "other/val-*.tfrecord"}).digest() != before
    assert load_recipe(write(TEXT), {"schedule.warmup.factor": 0.2}).digest() != before
    assert load_recipe(write(TEXT), {"model.roi_head.ious": [0.7, 0.6]}).digest() != before
    spelled_out = TEXT.replace("name: little", "name: little\nseed: 0\nprecision: float32")
    assert load_recipe(write(spelled_out)).digest() == before


def test_a_resolved_recipe_reads_back_equal(write, tmp_path):
    overrides = {"schedule.ema": {"decay": 0.999}, "data.canvases": [[96, 64], [64, 96]]}
    recipe = load_recipe(write(TEXT), overrides)
    again = load_recipe(write(recipe.to_yaml(), "resolved.yaml"))
    assert again.plain() == {**recipe.plain(), "rows": {}}
    assert again.digest() == recipe.digest()


def test_stages_are_whole_recipes(write):
    stages = "stages:\n- {schedule: {steps: 5}}\n- {schedule.base_lr: 0.5, freeze: [backbone]}\n"
    first, second = stage_recipes(load_recipe(write(stages + TEXT)))
    assert (first.schedule.steps, first.schedule.base_lr, first.freeze) == (5, 0.02, ())
    assert (second.schedule.steps, second.schedule.base_lr, second.freeze) == (90, 0.5, ("backbone",))
    assert first.data == second.data
    with pytest.raises(UserError, match=r"stages\[0\].*stepz"):
        stage_recipes(load_recipe(write(stages.replace("steps", "stepz") + TEXT)))


def test_every_packaged_recipe_is_valid():
    recipes = packaged_recipes()
    assert {"quickstart", "bccd_centernet2", "centernet2"} <= recipes.keys()
    for stem, path in recipes.items():
        recipe = load_recipe(stem)
        assert recipe.name == stem
        first_lines = path.read_text().splitlines()[:3]
        assert all(line.startswith("#") for line in first_lines), f"{path}: say first what this is"
        tree = yaml.safe_load(pathlib.Path(path).read_text())
        assert list(tree) == [key for key in type(recipe).model_fields if key in tree], path  # their order
        for row in recipe.rows:
            load_recipe(stem, row=row)


def test_null_in_model_is_not_the_builders_default(write):
    """A key of the model that is null was chosen: it survives the resolved recipe."""
    recipe = load_recipe("quickstart", {"model.pixels": None, "model.neck": None})
    again = load_recipe(write(recipe.to_yaml(), "resolved.yaml"))
    assert again.plain()["model"] == recipe.plain()["model"] and "neck" in again.plain()["model"]


def test_renamed_settings_suggest_the_new_name():
    recipe = load_recipe("double_head", {"model.num_classes": None, "model.roi_head.answer": "fused"})
    with pytest.raises(
        UserError, match=r"^model\.roi_head\.answer was replaced by classify_with.*regress_with"
    ):
        build_model(recipe, 3)
    recipe = load_recipe("cascade_rcnn", {"model.num_classes": None, "model.roi_head.truth": "removed"})
    with pytest.raises(UserError, match=r"^model\.roi_head\.truth was replaced by gt_rois.*drop for removed"):
        build_model(recipe, 3)
    recipe = load_recipe("retinanet", {"model.num_classes": None, "model.dense_head.rescue": "keep"})
    with pytest.raises(UserError, match=r"^model\.dense_head\.rescue was replaced by low_quality_matches"):
        build_model(recipe, 3)


def test_true_float32_is_refused_where_the_network_computes_in_16_bits(write):
    assert load_recipe(write(TEXT)).allow_tf32
    assert not load_recipe(write(TEXT), {"allow_tf32": False}).allow_tf32
    mixed = {"allow_tf32": False, "precision": "mixed_bfloat16"}
    assert "allow_tf32: false has no effect" in error_of(write(TEXT), overrides=mixed)

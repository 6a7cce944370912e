"""Learning-rate schedules against detectron2's, update rules against torch's (written out in numpy)."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from support.golden import HERE, assert_agrees, goldens, params

from kgarden.build import build_optimizer, check_learning_rate
from kgarden.config.loading import load_recipe, packaged_recipes, stage_recipes
from kgarden.errors import UserError
from kgarden.optimizers.optimizers import SGD, AdamW
from kgarden.optimizers.schedules import check_plan, learning_rate


@pytest.mark.parametrize("golden", goldens("d2_lr_schedules"), ids=str)
def test_learning_rates_agree_with_detectron2(golden):
    settings, got = params(golden), {}
    for name, config in settings["configs"].items():
        cosine = config["name"] == "WarmupCosineLR"
        schedule = learning_rate(
            config["base_lr"],
            config["max_iter"],
            cosine=cosine,
            at=None if cosine else config["steps"],
            factor=None if cosine else settings["gamma"],
            warmup=(config["warmup_iters"], config["warmup_factor"]),
        )
        steps = golden[f"{name}/iter"]
        got[f"{name}/lr"] = np.array([schedule(ops.convert_to_tensor(step, "int32")) for step in steps])
    assert len(got) == len(settings["configs"]) > 0
    assert_agrees(golden, got)


def test_schedules_without_warmup():
    constant, steps = learning_rate(0.5, 100), learning_rate(0.5, 100, at=[10, 20], factor=0.1)
    assert float(constant(0)) == float(constant(99)) == 0.5
    got = [float(steps(ops.convert_to_tensor(step))) for step in (0, 9, 10, 19, 20, 99)]
    np.testing.assert_allclose(got, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6)
    cosine = learning_rate(0.5, 100, cosine=True)
    np.testing.assert_allclose([float(cosine(s)) for s in (0, 50, 100, 120)], [0.5, 0.25, 0, 0], atol=1e-7)


def test_a_constant_warmup_ends_at_once():
    rate = learning_rate(0.5, 100, at=[50], factor=0.1, warmup=(10, 0.1), constant_warmup=True)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
    for schedule in (rate, again):
        got = [float(schedule(step)) for step in (0, 9, 10, 49, 50)]
        np.testing.assert_allclose(got, [0.05, 0.05, 0.5, 0.5, 0.05], rtol=1e-6)


def test_learning_rate_changes_at_the_given_step():
    """Step 0 uses the rate of step 0: the second of two decays shows in the third update, not earlier."""
    weight = keras.Variable(np.zeros(1, "float32"), name="kernel")
    optimizer = SGD(learning_rate(1.0, 10, at=[2], factor=0.5), momentum=0.0)
    seen = []
    for _ in range(4):
        before = ops.convert_to_numpy(weight)[0]
        optimizer.apply([ops.ones(1)], [weight])
        seen.append(before - ops.convert_to_numpy(weight)[0])
    np.testing.assert_allclose(seen, [1, 1, 0.5, 0.5])


NAMES = ["kernel", "bias", "gamma", "beta"]
START = {"kernel": [1.0, -2.0], "bias": [0.5], "gamma": [1.5], "beta": [-0.25]}


def gradients(step):
    """Some numbers that no rule treats alike: large, small, of both signs."""
    random = np.random.default_rng(step)
    return {name: random.normal(scale=2.0, size=np.shape(START[name])) for name in NAMES}


def run(optimizer, steps=4):
    variables = [keras.Variable(np.array(START[name], "float32"), name=name) for name in NAMES]
    for step in range(steps):
        grads = [ops.convert_to_tensor(g, "float32") for g in gradients(step).values()]
        optimizer.apply(grads, variables)
    return {name: ops.convert_to_numpy(variable) for name, variable in zip(NAMES, variables, strict=True)}


def by_hand(rule, rates, decays=None, factors=None, clip_value=np.inf, clip_norm=np.inf):
    weights = {name: np.array(START[name]) for name in NAMES}
    state = {name: {} for name in NAMES}
    for step, rate in enumerate(rates):
        grads = gradients(step)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name in NAMES:
            gradient = np.clip(grads[name] * min(1.0, clip_norm / norm), -clip_value, clip_value)
            own_rate = rate * (factors or {}).get(name, 1.0)
            decay = (decays or {}).get(name, 0.0)
            weights[name] = rule(weights[name], gradient, own_rate, decay, state[name], step + 1)
    return weights


def torch_sgd(w, g, rate, decay, state, t):
    g = g + decay * w
    state["m"] = 0.9 * state["m"] + g if t > 1 else g  # torch: the first buffer is the gradient itself
    return w - rate * state["m"]


def torch_adamw(w, g, rate, decay, state, t):
    w = w * (1 - rate * decay)
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.99 * state.get("v", 0) + 0.01 * g**2
    return w - rate * (state["m"] / (1 - 0.9**t)) / (np.sqrt(state["v"] / (1 - 0.99**t)) + 1e-8)


RATES = [0.1, 0.1, 0.01, 0.01]  # a fall in the middle tells torch's momentum from Keras'
SCHEDULE = {"base_lr": 0.1, "steps": 4, "at": [2], "factor": 0.1}
ALL = dict.fromkeys(NAMES, 0.3)

CASES = {
    "plain": ({}, {}),
    "decay of all": ({"weight_decay": 0.3, "decay_norms": True}, {"decays": ALL}),
    "norms do not decay": ({"weight_decay": 0.3}, {"decays": {"kernel": 0.3, "bias": 0.3}}),
    "nor do biases": ({"weight_decay": 0.3, "decay_biases": False}, {"decays": {"kernel": 0.3}}),
    "biases learn faster": ({"bias_lr_factor": 2.0}, {"factors": {"bias": 2.0}}),
    "rules by kind": (
        {
            "weight_decay": 0.3,
            "rules": {
                "kernel": {"lr_factor": 0.5},
                "bias": {"lr_factor": 2.0, "decay_factor": 0.0},
                "norm_scale": {"decay_factor": 0.5},
                "norm_shift": {"lr_factor": 3.0, "decay_factor": 2.0},
            },
        },
        {
            "decays": {"kernel": 0.3, "gamma": 0.15, "beta": 0.6},
            "factors": {"kernel": 0.5, "bias": 2.0, "beta": 3.0},
        },
    ),
    "rules over short forms": (
        {"weight_decay": 0.3, "decay_norms": True, "rules": {"norm_shift": {"decay_factor": 0.0}}},
        {"decays": {"kernel": 0.3, "bias": 0.3, "gamma": 0.3}},
    ),
    "clip by value, then decay": (
        {"clip_value": 0.5, "weight_decay": 0.3, "decay_norms": True},
        {"clip_value": 0.5, "decays": ALL},
    ),
    "clip by norm": ({"clip_norm": 1.0}, {"clip_norm": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_sgd_agrees_with_torch(case):
    settings, hand = CASES[case]
    got = run(SGD(learning_rate(**SCHEDULE), momentum=0.9, **settings))
    for name, expected in by_hand(torch_sgd, RATES, **hand).items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_adamw_agrees_with_torch(case):
    settings, hand = CASES[case]
    got = run(AdamW(learning_rate(**SCHEDULE), betas=(0.9, 0.99), **{"weight_decay": 0.0, **settings}))
    for name, expected in by_hand(torch_adamw, RATES, **hand).items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, err_msg=name)


def test_the_cases_differ():
    """Every setting above changes some weight: a comparison of equal things would prove nothing."""
    plain = by_hand(torch_sgd, RATES)
    for case, (_, hand) in CASES.items():
        changed = by_hand(torch_sgd, RATES, **hand)
        assert (case == "plain") == all(np.allclose(plain[name], changed[name]) for name in NAMES)


def little_model():
    layers = [keras.layers.Dense(4), keras.layers.LayerNormalization(), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.build((None, 3))
    return model


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_norms_and_biases_of_keras_layers_are_recognised(make):
    """Without gradients only the decay moves a weight, and it moves kernels alone."""
    model = little_model()
    for variable in model.trainable_variables:
        variable.assign(ops.ones_like(variable.value))
    optimizer = make(0.1, weight_decay=0.5, decay_biases=False)
    optimizer.apply([ops.zeros_like(v.value) for v in model.trainable_variables], model.trainable_variables)
    got = {v.path.split("/", 1)[1]: ops.convert_to_numpy(v) for v in model.trainable_variables}
    assert len(got) == 6
    for path, value in got.items():
        np.testing.assert_allclose(value, 0.95 if path.endswith("kernel") else 1.0, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradient_norm_is_stored_before_clipping(clip_norm):
    optimizer = SGD(0.1, clip_norm=clip_norm)
    run(optimizer)
    expected = np.sqrt(sum((g**2).sum() for g in gradients(len(RATES) - 1).values()))
    np.testing.assert_allclose(ops.convert_to_numpy(optimizer.gradient_norm), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_fit_learns(make):
    model = little_model()
    optimizer = make(learning_rate(1e-2, 100), clip_norm=5.0, clip_value=1.0, weight_decay=1e-4)
    model.compile(optimizer, loss="mse", jit_compile=keras.backend.backend() == "jax")
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    losses = model.fit(x, x[:, :1] * 2, epochs=5, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert int(optimizer.iterations) == 20


@pytest.mark.parametrize("make", [SGD, AdamW])
def test_settings_survive_serialisation(make):
    rate = learning_rate(0.1, 10, at=[5], factor=0.1, warmup=(2, 0.5))
    rules = {"norm_scale": {"decay_factor": 1.0}}
    optimizer = make(rate, weight_decay=0.3, clip_norm=1.0, bias_lr_factor=2.0, rules=rules)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    first, second = run(optimizer), run(again)
    for name in NAMES:
        np.testing.assert_array_equal(first[name], second[name])


def test_unknown_kinds_and_factors_are_named():
    for rules in ({"norms": {"lr_factor": 2.0}}, {"bias": {"lr": 2.0}}):
        with pytest.raises(
            UserError, match="lr_factor, decay_factor of kernel, bias, norm_scale, norm_shift"
        ):
            SGD(0.1, rules=rules)


# --- rules of the published configurations ------------------------------------------------------------------

ONE_STAGE = json.loads((HERE / "official_settings_one_stage.json").read_text())["configurations"]
TWO_STAGE = json.loads((HERE / "official_settings_two_stage.json").read_text())["systems"]
NAMES_OF = {  # kinds of the two files -> name of such a variable here
    **{"kernel": "kernel", "bias": "bias", "norm_scale": "gamma", "norm_shift": "beta", "scalar": "scales"},
    **{f"weight of {layer}": "kernel" for layer in ("convolution", "dense", "transposed convolution")},
    **{f"bias of {layer}": "bias" for layer in ("convolution", "dense", "transposed convolution")},
    **{"scale of norm": "gamma", "shift of norm": "beta", "other": "scales"},
}
ROWS_OF = {"adelaidet/fcos.r50_1x": "fcos/adelaidet.1x"}
DOUBLE_HEAD = "doubleheadsrcnn/double_heads/e2e_faster_rcnn_R_50_FPN_1x_neighbor_bs8"


def rules_in_force(stem, row, names):
    """{name: (factor on the learning rate, weight decay)} of variables of these names."""
    optimizer = build_optimizer(load_recipe(stem, row=row))
    optimizer.build([keras.Variable(np.zeros(1, "float32"), name=name) for name in names])
    return dict(zip(names, zip(optimizer.lr_factors, optimizer.decays, strict=True), strict=True))


def assert_rules(found, expected):
    for name, rule in expected.items():
        np.testing.assert_allclose(found[name], rule, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("key", [key for key in ONE_STAGE if ONE_STAGE[key]["optimizer"]])
def test_rules_of_one_stage_recipes_are_the_published_ones(key):
    """Rate and decay that the reference's own optimizer gives each kind of parameter."""
    settings = ONE_STAGE[key]
    base = settings["common"]["base_lr"]
    expected = {
        NAMES_OF[kind]: (rule["lr"] / base, rule["weight_decay"])
        for kind, [rule] in settings["optimizer"].items()
    }
    found = rules_in_force(*ROWS_OF.get(key, key).split("/"), sorted(expected))
    assert_rules(found, expected)


def two_stage_rows():
    """(configuration, recipe, row), for all configurations with a row, and for the recipes of Double-Head."""
    named = [(key, *row.split()) for key in TWO_STAGE for row in TWO_STAGE[key]["rows"]]
    named = [entry for entry in named if len(entry) == 3 and entry[2] != "schedule"]
    return [*named, (DOUBLE_HEAD, "double_head", None), (DOUBLE_HEAD, "double_head_voc07", None)]


@pytest.mark.parametrize(("key", "stem", "row"), two_stage_rows())
def test_rules_of_two_stage_recipes_are_the_published_ones(key, stem, row):
    """Double-Head's conv-head: scales of norms decay; shifts learn twice as fast and do not decay."""
    expected = {NAMES_OF[kind]: rule for kind, [rule] in TWO_STAGE[key]["optimizer_rules"].items()}
    assert_rules(rules_in_force(stem, row, sorted(expected)), expected)


def test_a_norm_below_the_limit_is_not_raised_to_it():
    weight = keras.Variable(np.zeros(2, "float32"), name="kernel")
    SGD(1.0, momentum=0.0, clip_norm=10.0).apply([ops.convert_to_tensor([3.0, 4.0])], [weight])
    np.testing.assert_allclose(ops.convert_to_numpy(weight), [-3, -4])


@pytest.mark.tensorflow
def test_the_norm_of_many_gradients_is_the_same_in_a_graph():
    """To the bit. A chain of additions would be 1 step by step, and more where a graph adds groups first."""
    import tensorflow as tf

    squares = np.float32([1] + 19 * [2**-24 * 0.94])
    gradients, norms = [tf.constant([one]) for one in np.sqrt(squares)], []
    for wrap in (lambda apply: apply, tf.function):
        weights = [keras.Variable(np.zeros(1, "float32"), name="kernel") for _ in gradients]
        optimizer = SGD(1.0, momentum=0.0)
        optimizer.build(weights)
        wrap(lambda *grads, optimizer=optimizer: optimizer.apply(list(grads)))(*gradients)
        norms.append(ops.convert_to_numpy(optimizer.gradient_norm.value))
    assert norms[0] == norms[1]
    np.testing.assert_allclose(norms[0], np.sqrt(squares.sum(dtype="float64")), rtol=2e-7)


@pytest.mark.parametrize(
    "plan,said",
    [
        (
            {"cosine": True, "warmup": (10, 0.1)},
            "warmup.steps is 10, the training has 10 steps .* cosine is at 0",
        ),
        ({"cosine": True, "warmup": (9, 0.1)}, None),
        ({"warmup": (10, 0.1)}, None),
        ({"warmup": (5, 2.0)}, "warmup.factor is 2"),
        ({"warmup": (5, 1.0)}, None),
        ({"at": [5, 9], "factor": 0.1}, None),
        ({"at": [9, 5], "factor": 0.1}, "ascending order"),
        ({"at": [5, 5], "factor": 0.1}, "each step once"),
        ({"at": [5], "factor": 1.0}, "decay.factor is 1, so the learning rate does not fall"),
        ({"at": [4], "factor": 0.1, "warmup": (5, 0.1)}, "decay.at has 4, inside the warm-up of 5 steps"),
        ({"at": [5], "factor": 0.1, "warmup": (5, 0.1)}, None),
        ({}, None),
    ],
)
def test_plans_of_no_use_are_refused(plan, said):
    if said is None:
        assert check_plan(10, **plan) is None
    else:
        with pytest.raises(UserError, match=said):
            check_plan(10, **plan)


def test_what_lies_beyond_a_short_trial_is_said():
    assert "steps is 11, the training has 10 steps" in check_plan(10, warmup=(11, 0.1))
    assert "decay.at has 10, the training has 10 steps" in check_plan(10, at=[5, 10], factor=0.1)


def test_every_recipe_and_row_reaches_its_whole_plan():
    for stem in packaged_recipes():
        recipe = load_recipe(stem)
        for row in (None, *recipe.rows):
            for stage in stage_recipes(load_recipe(stem, row=row)):
                assert check_learning_rate(stage) is None

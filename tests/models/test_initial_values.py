"""Initial values of full-size models against the published code's; see docs/initialisation_audit.md."""

import fnmatch

import numpy as np
import pytest
from support.initial_values import (
    Line,
    difference,
    differences_on_purpose,
    not_compared,
    pairs,
    stats_of,
    systems,
)
from support.marks import ON_JAX

REPEATED = {  # what they draw, another system of their family draws as well
    "condinst/readme.r50_3x",
    "defcn/fcos_no_centerness",
    "defcn/poto",
    "defcn/poto_argmax",
    "defcn/poto_3dmf",
    "defcn/poto_3dmf_no_norm",
    "defcn/poto_3dmf_no_norm_aux",
    "detectron2 mask_rcnn_R_50_FPN_1x",
    "fcos/first_paper.1x",
    "mmdetection faster-rcnn_r50_fpn_1x_coco",
}
SYSTEMS = systems()


def is_not_compared(system):
    return any(fnmatch.fnmatchcase(system.name, pattern) for pattern in not_compared())


def cases():
    """The systems as parameters: slow what repeats another, and on JAX all but those of one project."""
    slow = [pytest.mark.slow]
    for system in SYSTEMS:
        if not is_not_compared(system):
            marks = slow if system.name in REPEATED or ON_JAX and system.project != "adelaidet" else []
            yield pytest.param(system, marks=marks, id=system.name.replace(" ", "_"))


@pytest.mark.parametrize("system", list(cases()))
def test_initial_values_agree_with_the_published_code(system):
    assert system.row, f"{system}: name its recipe and row in ROWS, or put it below `Not compared`"
    of_system = [line for line in differences_on_purpose() if line.is_of(system)]
    unused, faults = set(of_system), []
    for name, theirs, ours in pairs(system):
        found = difference(ours, theirs)
        if found is None:
            continue
        explaining = {line for line in of_system if line.explains(name, theirs, ours)}
        unused -= explaining
        if not explaining:
            faults.append(f"{name}: {found}: theirs {theirs}, ours {ours}")
    assert not faults, "\n".join(faults)
    assert not unused, f"{system}: no difference by the line {unused}"


def test_every_line_speaks_of_a_system_of_the_files():
    for line in differences_on_purpose():
        assert any(line.is_of(system) for system in SYSTEMS), line
    for pattern in not_compared():
        assert any(fnmatch.fnmatchcase(system.name, pattern) for system in SYSTEMS), pattern


def draws(std, seed=0, shape=(100, 200, 1, 1)):
    """{law: Stats} of a sample of each law with one standard deviation; fan_out is 100, fan_in 200."""
    random, count = np.random.default_rng(seed), np.prod(shape)
    normal = random.standard_normal(2 * count)
    truncated = normal[np.abs(normal) < 2][:count]
    samples = {"normal": normal[:count], "uniform": random.uniform(-1, 1, count), "truncated": truncated}
    return {name: stats_of((values / values.std() * std).reshape(shape)) for name, values in samples.items()}


def test_two_draws_of_one_law_agree_and_those_of_two_do_not():
    one, other = draws(0.1), draws(0.1, seed=1)
    for name, stats in one.items():
        assert [law for law in other if difference(stats, other[law]) is None] == [name]
        assert difference(stats, stats._replace(std=stats.std * 1.05)) == "the deviation"
        assert difference(stats, stats._replace(mean=0.07 * stats.std + stats.mean)) == "the mean"
    zeros, small = stats_of(np.zeros(9)), stats_of(np.full(9, 1e-3))
    assert difference(zeros, zeros) is None
    assert difference(zeros, small) == difference(zeros, one["normal"]) == "a constant"


def test_a_line_explains_only_what_it_says():
    theirs, ours = draws(np.sqrt(2 / 100))["normal"], draws(np.sqrt(2 / 200))["truncated"]
    line = Line("*", "*.weight", "c2_msra", "he_normal", "")
    assert line.explains("conv.weight", theirs, ours)
    assert not line.explains("conv.bias", theirs, ours)
    assert not line._replace(ours="1").explains("conv.weight", theirs, ours)
    assert not line._replace(theirs="c2_xavier").explains("conv.weight", theirs, ours)

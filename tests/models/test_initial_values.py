"""Initial values of full-size models against the published code's; see docs/initialisation_audit.md."""

import fnmatch

import pytest
from support.initial_values import difference, differences_on_purpose, not_compared, pairs, systems
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

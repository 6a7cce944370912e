"""Model summaries: published layer sizes beside those of the models here."""

import itertools

import pytest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from kgarden import cli  # noqa: E402
from kgarden.commands.describe import published  # noqa: E402
from kgarden.heads.conv_head import ConvHead  # noqa: E402
from kgarden.models import build_detector  # noqa: E402

TRUNK = {"name": "resnet18", "stem_channels": 8, "res2_channels": 8}
# Table 2 of Wu et al. 2020, arXiv:1904.06493, and what section 3.1 says of the fc-head.
RESIDUAL = {1: 1.06, 2: 2.13, 3: 3.19, 4: 4.25, 5: 5.31, 6: 6.38, 7: 7.44}
NON_LOCAL = {3: 4.13, 5: 7.19, 7: 10.25}


def described(capsys, *arguments, backbone=TRUNK):
    small = [f"model.backbone={backbone}".replace("'", ""), "data.canvases=[[64, 96]]"]
    small += ["model.proposals={test: {total: 10}}"]
    code = cli.main(["describe", *arguments, *itertools.chain(*(("--set", one) for one in small))])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines()


def cells(lines):
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    return {row[0]: row[1:] for row in rows}


def test_head_sizes_beside_the_published_ones(capsys):
    lines = described(capsys, "double_head")
    of = [line for line in lines if "published" in line]
    source = "(Wu et al. 2020, arXiv:1904.06493, Table 2: kernels, in units of 2^20)"
    assert of == [
        f"roi_head/fc/features, fc-head: 13.25 here, 13.25 published {source}",
        f"roi_head/conv/features, K = 5, non-local: 7.19 here, 7.19 published {source}",
    ]
    # Other settings have no published size.
    lines = described(
        capsys, "double_head", "--set", "model.roi_head={conv_head: {middle: 128}, pool_size: 5}"
    )
    assert not [line for line in lines if "published" in line]


def test_parameters_of_the_baseline_equal_the_reference(capsys):
    """ResNet-50-FPN with 81 classes: 41,757,156; the box regression of the background does not exist here."""
    lines = described(capsys, "faster_rcnn", backbone="resnet50")
    rows = cells(lines)
    count = {part: int(row[3].replace(",", "")) for part, row in rows.items() if part in PARTS}
    two_dense, outputs = 13_895_680, (1024 + 1) * (81 + 4 * 80)
    assert count == dict(zip(PARTS, (23_508_032, 3_344_384, 593_935, two_dense + outputs), strict=True))
    assert sum(count.values()) + (1024 + 1) * 4 == 41_757_156
    assert [line for line in lines if "fc-head: 13.25 here, 13.25 published" in line]


PARTS = ("backbone", "neck", "proposer", "roi_head")


@pytest.mark.parametrize(
    ("blocks", "non_local", "size"),
    [(k, False, size) for k, size in RESIDUAL.items()] + [(k, True, size) for k, size in NON_LOCAL.items()],
)
def test_every_published_size(blocks, non_local, size):
    settings = {"conv_head": {"blocks": blocks, "non_local": non_local}}
    detector = build_detector({"name": "double_head", "backbone": TRUNK, "roi_head": settings}, 80)
    [fc, conv] = published(detector)
    assert (fc["here"], fc["published"]) == (13.25, 13.25)
    assert (conv["here"], conv["published"]) == (size, size)


def test_parameters_exclude_non_weights():
    detector = build_detector({"name": "double_head", "backbone": TRUNK}, 80)
    [head] = [layer for layer in detector.roi_head._flatten_layers() if type(layer) is ConvHead]
    head.count = 3  # an attribute only; the weights are still those of five blocks
    assert published(detector)[1]["here"] == 7.19 and published(detector)[1]["published"] == 4.13

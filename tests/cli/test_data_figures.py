"""`data check`: findings on the screen and in the exit code, and histograms as files."""

import json

import pytest
from PIL import Image

pytest.importorskip("tensorflow")

from kgarden import cli  # noqa: E402


def call(*arguments):
    return cli.main([*map(str, arguments)])


def test_findings_and_histograms(tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    tree = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [0.1, 0.1, 0.5, 0.5]}],
        "categories": [{"id": 7, "name": "cup"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(tree))
    source = ("--images", tmp_path, "--annotations", tmp_path / "a.json")
    assert call("data", "build", "coco", *source, "--to", tmp_path / "to", "--workers", 0) == 0
    assert "1 of 1 boxes lie within 0..1" in capsys.readouterr().err
    figures = tmp_path / "figures"
    assert call("data", "check", tmp_path / "to", "--figures", figures) == 1
    out = capsys.readouterr().out
    assert "1 of 1 boxes lie within 0..1" in out and "no faults found" not in out
    assert (figures / "to.txt").read_text() in out and "cup" in out
    assert (figures / "to.png").read_bytes().startswith(b"\x89PNG")
    assert call("data", "check", tmp_path / "to", "--figures", tmp_path / "1.png") == 2
    out, err = capsys.readouterr()
    assert "1.png" in err and not out  # said before the shards are read

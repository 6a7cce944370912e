"""The command line on JAX without TensorFlow: what works, and the error of what does not."""

import json

import keras
import pytest

from kgarden import cli

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="KERAS_BACKEND=jax makes TensorFlow impossible to import"
)
SMALL = {
    "model": {
        "name": "centernet",
        "num_classes": 3,
        "backbone": {"name": "resnet18", "norm": "bn", "stem_channels": 8, "res2_channels": 8},
        "neck": {"channels": 32},
        "dense_head": {"num_convs": 1},
    },
    "data.canvases": [[64, 96]],
    "data.batch_size": 2,
}


def test_bench_runs_without_tensorflow(tmp_path, capsys):
    file = tmp_path / "figures.json"
    settings = [f"--set={key}={json.dumps(value)}" for key, value in SMALL.items()]
    assert cli.main(["bench", "quickstart", "--what", "train", "--json", str(file), *settings]) == 0
    found = json.loads(file.read_text())
    assert found["machine"]["backend"] == "jax" and found["train"]["step_s"] > 0
    assert "train: images_per_s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["train", "quickstart", "--run", "run"],
        ["data", "build", "shapes", "--to", "shards", "--count", "4"],
    ],
)
def test_commands_that_require_tensorflow_fail_in_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    out, err = capsys.readouterr()
    needs = "this command requires TensorFlow, on the JAX backend too"
    assert err == f"kgarden: {needs}: pip install 'tensorflow~=2.21.0'\n"
    assert out == "" and not (tmp_path / "run").exists()

"""Masks in the files and pictures of a run, and in Python: a stand-in that gives masks, trained."""

import io
import json
import types

import keras
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_tools
from rich.console import Console
from support.coco_masks import directly, numbers
from support.fake_detector import CELL, DISC, RECIPE, MaskedStandIn, StandInData, pictures

import kgarden
from kgarden import build, cli
from kgarden.config.loading import load_recipe
from kgarden.inference.predictor import compiled_inference
from kgarden.training.reporter import Reporter


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a stand-in that gives masks, on pictures of discs; what was said on the way."""
    pytest.importorskip("tensorflow")
    from kgarden.commands import train

    folder = tmp_path_factory.mktemp("masks")
    (folder / "standin.yaml").write_text(RECIPE)

    def build_detector(settings, num_classes, seed=0):
        detector = MaskedStandIn(num_classes, seed)
        detector.build()
        return detector

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "prepare_data", lambda *_, **__: StandInData(folder, discs=True))
        patch.setattr(build, "build_detector", build_detector)
        reporter = Reporter(Console(file=said, width=200, highlight=False))
        train.train(load_recipe(folder / "standin.yaml"), folder / "run", reporter=reporter)
        recipe, detector, categories = build.load_run(folder / "run")
    return types.SimpleNamespace(
        run=folder / "run",
        truth=folder / "annotations.json",
        said=said.getvalue(),
        predictor=kgarden.Predictor(detector, recipe, categories),
    )


@pytest.mark.tensorflow
def test_mask_metrics_are_in_all_outputs_of_a_run(trained, capsys):
    """Masks of 16 cells on discs of 32 px: IoU of about 0.95."""
    run = trained.run
    evaluation = json.loads((run / "evaluation.json").read_text())
    of_masks = evaluation["masks"]["metrics"]
    assert of_masks["ap75"] == 100.0 and of_masks["ap"] > 80
    np.testing.assert_allclose(numbers(of_masks), directly(trained.truth, run / "detections.json"), atol=1e-5)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "val/ap" in line]
    assert [line["step"] for line in measured] == [4, 8, 12]
    assert all(f"val/masks_{name}" in line for line in measured for name in ("ap", "ap50", "ap_medium"))
    assert measured[-1]["val/masks_ap75"] == 100.0
    assert trained.said.count("  mask AP ") == 3 and "10 images, masks" in trained.said

    found, truth = (str(path) for path in (run / "detections.json", trained.truth))
    out = run.parent / "numbers.json"
    capsys.readouterr()
    assert (
        cli.main(["evaluate", found, "--annotations", truth, "--iou-type", "segm", "--json", str(out)]) == 0
    )
    assert json.loads(out.read_text())["metrics"] == of_masks
    assert cli.main(["evaluate", str(run), "--iou-type", "segm"]) == 2
    assert "also on masks if its model predicts them" in capsys.readouterr().err


@pytest.mark.tensorflow
def test_tensorboard_has_mask_metrics(trained):
    from tensorflow.python.summary.summary_iterator import summary_iterator

    tags = set()
    for path in (trained.run / "tensorboard").glob("events*"):
        tags |= {value.tag for event in summary_iterator(str(path)) for value in event.summary.value}
    assert {"val/ap", "val/masks_ap", "val/masks_ap50"} <= tags


def painted(picture, image):
    """(H, W) bool: where something was painted on a picture that was stored without loss."""
    return (np.asarray(picture) != image).any(axis=-1)


@pytest.mark.tensorflow
def test_drawn_images_of_a_run_show_discs(trained):
    """Eight times enlarged: inside the disc it is tinted, between disc and frame it is not."""
    data = StandInData(trained.run.parent, discs=True)
    image = data.images[0].repeat(8, axis=0).repeat(8, axis=1)
    changed = painted(Image.open(trained.run / "pictures/100.png"), image)
    x0, y0, x1, y1 = (data.boxes[0, 0] * 8).astype(int)
    assert x1 - x0 == 8 * CELL
    inside = changed[y0:y1, x0:x1]
    disc = DISC.repeat(8, axis=0).repeat(8, axis=1)
    clear = np.zeros_like(disc)
    clear[30:-6, 6:-6] = True  # where neither frame nor name can lie
    assert inside[disc & clear].mean() > 0.95 and inside[~disc & clear].mean() < 0.2


@pytest.mark.tensorflow
def test_predictor_returns_masks_for_the_original_size(trained, tmp_path):
    """A picture of another size: 160 x 240 px, discs of 40 px; masks through the public function."""
    small, boxes, _ = pictures(1, seed=9, shape=DISC)
    photo = np.asarray(Image.fromarray(small[0]).resize((240, 160), Image.BICUBIC))
    found = trained.predictor(photo)
    assert found["masks"].shape == (2, CELL, CELL) and found["masks"].dtype == np.float32
    pasted = kgarden.paste_masks(found["masks"], found["boxes"], photo.shape[:2])
    assert pasted.shape == (2, 160, 240) and pasted.dtype == bool and not pasted[1].any()
    x0, y0, x1, y1 = boxes[0, 0] * 2.5
    y, x = np.mgrid[:160, :240] + 0.5
    disc = (x - (x0 + x1) / 2) ** 2 + (y - (y0 + y1) / 2) ** 2 < 20**2
    assert (pasted[0] & disc).sum() / (pasted[0] | disc).sum() > 0.93

    from kgarden.commands.predict import draw_files

    Image.fromarray(photo).save(tmp_path / "photo.png")
    (one,), faults = draw_files(trained.predictor, [tmp_path / "photo.png"], tmp_path / "drawn")
    assert not faults and len(one["detections"]) == 1
    code = json.loads(json.dumps(one))["detections"][0]["segmentation"]
    np.testing.assert_array_equal(mask_tools.decode(code), pasted[0])
    changed = painted(Image.open(tmp_path / "drawn/photo.png"), photo)
    middle = np.s_[int(y0) + 16 : int(y0) + 24, int(x0) + 16 : int(x0) + 24]
    assert changed[middle].all() and changed.mean() < 0.2


def test_masks_of_inference_on_either_backend():
    """The stand-in's masks are what is bright in its cell; batch and jit as evaluation has them."""
    detector = MaskedStandIn(2)
    detector.build()
    images, _, _ = pictures(3, shape=DISC)
    x = {"images": images, "size_hw": np.tile(np.int32([[64, 96]]), (3, 1))}
    found = compiled_inference(detector).predict_on_batch(x)
    masks = keras.ops.convert_to_numpy(found["masks"])
    assert masks.shape == (3, 2, CELL, CELL)
    np.testing.assert_array_equal(masks[:, 0] > 0.5, np.tile(DISC, (3, 1, 1)))
    assert not masks[:, 1].any()

"""Event files are read back: hyperparameters, curves, photos."""

import numpy as np
import pytest
from support.fake_detector import RECIPE

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

from tensorboard.backend.event_processing import event_accumulator  # noqa: E402
from tensorboard.util import tensor_util  # noqa: E402

from kgarden.config.loading import load_recipe  # noqa: E402
from kgarden.evaluation import _objects_by_image  # noqa: E402
from kgarden.metrics.report import score  # noqa: E402
from kgarden.training.tensorboard_results import write_results  # noqa: E402
from kgarden.utils.files import make_folder, write_json  # noqa: E402

BOX = {"image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 40]}
TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 80}],
    "categories": [{"id": 3, "name": "lid"}, {"id": 7, "name": "cup"}],
    "annotations": [{**BOX, "id": 1}, {**BOX, "id": 2, "bbox": [60, 10, 30, 30], "iscrowd": 0}],
}


def test_results_are_read_back(tmp_path):
    recipe_file = tmp_path / "standin.yaml"
    recipe_file.write_text(RECIPE)
    wrong = {**BOX, "bbox": [0, 60, 10, 10], "score": 0.8}
    evaluation, analysis = score(TRUTH, [{**BOX, "score": 0.9}, wrong])
    photo = np.arange(24, dtype="uint8").reshape(2, 4, 3)
    recipe = load_recipe(recipe_file)
    run = tmp_path / "run"
    write_json(make_folder(run) / "evaluation.json", {**evaluation, "step": 12})
    write_json(make_folder(run / "evaluation") / "analysis.json", analysis)
    write_results(run, recipe, [(1, photo)])

    events = event_accumulator.EventAccumulator(
        str(run / "tensorboard"), size_guidance={"tensors": 0}
    ).Reload()
    data = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
    assert tensor_util.make_ndarray(data["final/ap50"][0].tensor_proto) == pytest.approx(
        evaluation["metrics"]["ap50"]
    )
    assert data["final/ap50"][0].step == 12
    hits, false, negatives, missed, precision, recall = tensor_util.make_ndarray(
        data["iou50/cup/pr_curves"][0].tensor_proto
    )
    assert recall[0] == 1.0 and recall[-1] == 0.0 and (negatives == 0).all()
    at_half = int(np.flatnonzero(recall == 0.5)[0])  # one of two objects, by the first detection
    assert (hits[at_half], false[at_half], missed[at_half], precision[at_half]) == (1, 0, 1, 1.0)
    assert precision[0] == 0 and hits[0] == 0 and missed[0] == 2
    width, height, png = data["validation/1"][0].tensor_proto.string_val
    assert (int(width), int(height)) == (4, 2) and png.startswith(b"\x89PNG")
    plugins = events.summary_metadata
    content = [
        one.plugin_data.content for one in plugins.values() if one.plugin_data.plugin_name == "hparams"
    ]
    assert content and b"schedule.base_lr" in content[0]


def test_objects_by_image():
    [(objects, size)] = _objects_by_image(TRUTH, [TRUTH["categories"][1]]).values()
    assert size == (80, 100) and objects["boxes"].tolist() == [[10, 10, 50, 50], [60, 10, 90, 40]]
    assert objects["labels"].tolist() == [0, 0] and not objects["crowd"].any()

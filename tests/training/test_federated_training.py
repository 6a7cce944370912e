"""A training with the federated loss: the counts of its data reach the loss, LVIS's AP is measured."""

import numpy as np
import pytest
from support.small_backbone import RESNET10

pytest.importorskip("tensorflow")

from kgarden import build  # noqa: E402
from kgarden.config.loading import load_recipe  # noqa: E402
from kgarden.training import trainer  # noqa: E402

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow]
SMALL = {
    "model.backbone": RESNET10,
    "model.neck": {"channels": 32, "levels": [3, 6]},
    "model.proposer.train": 32,
    "model.roi_head.num_samples": 16,
    "model.roi_head.width": 16,
    "data.train": {"format": "shapes", "count": 8, "seed": 1, "num_classes": 60, "size_hw": [64, 64]},
    "data.val": {"format": "shapes", "count": 4, "seed": 2, "num_classes": 60, "size_hw": [64, 64]},
    "data.short_side_px": 64,
    "data.long_side_px": 64,
    "data.canvases": [[64, 64]],
    "data.batch_size": 2,
    "schedule.steps": 2,
    "schedule.warmup": None,
    "evaluate.every": None,
    "evaluate.pictures": 0,
}


def test_counts_of_the_data_reach_the_loss(tmp_path, monkeypatch):
    import kgarden

    seen = []
    give = build.give_image_counts
    monkeypatch.setattr(
        trainer.build,
        "give_image_counts",
        lambda detector, data: seen.append(detector) or give(detector, data),
    )
    evaluation = kgarden.train(load_recipe("shapes_long_tail", SMALL, "fed"), tmp_path / "run")
    counts = seen[0].roi_head.federated.image_counts
    assert counts.shape == (60,) and 8 < counts.sum() < 64 and counts.max() <= 8
    assert evaluation["headline"] == "lvis_ap" and np.isfinite(evaluation["metrics"]["lvis_ar300"])

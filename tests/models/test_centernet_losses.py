"""The first stage's losses against the authors' code."""

import numpy as np
import pytest
from keras import ops
from support.golden import assert_agrees, goldens, params
from support.gradients import value_and_gradients

from kgarden.models.centernet import CenterNetHead
from kgarden.ops.points import point_grid
from kgarden.targets.centernet import CenterTargets, center_targets, more_positives

SIGNS = {"positive": "pos", "negative": "neg"}


class Batch:
    """The flat (level, image, cell) rows of a file, and the head that reads them."""

    def __init__(self, golden):
        self.golden = golden
        self.settings = params(golden)
        self.grid = point_grid(self.settings["level_hw"], self.settings["strides"])
        self.images = sum(name.startswith("boxes_im") for name in golden.files)

    def maps(self, flat):
        """(B * A, D) rows -> list of (B, H, W, D)."""
        rows = np.cumsum([self.images * count for count in self.grid.counts()])[:-1]
        if hasattr(flat, "numpy") or not isinstance(flat, np.ndarray):
            parts = ops.split(flat, rows.tolist())
        else:
            parts = np.split(flat, rows)
        return [
            ops.reshape(part, (self.images, height, width, flat.shape[-1]))
            for part, (height, width) in zip(parts, self.grid.sizes, strict=True)
        ]

    def rows(self, flat):
        """(B * A, ...) -> (B, A, ...)."""
        counts = self.grid.counts()
        parts = np.split(flat, np.cumsum([self.images * count for count in counts])[:-1])
        shaped = [
            part.reshape(self.images, count, *flat.shape[1:])
            for part, count in zip(parts, counts, strict=True)
        ]
        return np.concatenate(shaped, axis=1)

    def positives(self, flat_rows, labels):
        """The reference's flat rows -> rows of each image, padded: (B, N), (B, N), (B, N) bool."""
        image_of = self.rows(
            np.repeat(
                np.tile(np.arange(self.images), len(self.grid.sizes)),
                np.repeat(self.grid.counts(), self.images),
            )
        )
        place = self.rows(np.arange(image_of.size))
        image, cell = np.array([np.argwhere(place == row)[0] for row in flat_rows]).reshape(-1, 2).T
        rows = np.zeros((self.images, max(1, len(flat_rows))), "int32")
        found, valid = np.zeros_like(rows), np.zeros(rows.shape, bool)
        for number, (i, c) in enumerate(zip(image, cell, strict=True)):
            rows[i, number], found[i, number], valid[i, number] = c, labels[number], True
        return rows, found, valid

    def targets(self, empty=False):
        golden = self.golden
        inds = np.zeros(0, int) if empty else golden["pos_inds"]
        labels = golden["labels"] if "labels" in golden else np.zeros(len(inds), int)
        rows, found, valid = self.positives(inds, labels)
        heat = golden["heatmap"].reshape(len(golden["heatmap"]), -1)
        keep = 0.0 if empty else 1.0
        return CenterTargets(
            rows,
            found,
            valid,
            heat=self.rows(heat * np.float32(keep)),
            ltrb=self.rows(golden["reg_targets"]),
            ltrb_valid=self.rows(golden["reg_valid"]) & (not empty),
        )

    def head(self, **changed):
        s = {**self.settings, **changed}
        return CenterNetHead(
            s["strides"],
            num_classes=s.get("num_classes") if "cls_logits" in self.golden else None,
            objectness=changed.get("agn", "cls_logits" not in self.golden),
            alpha=s["alpha"] if s["alpha"] >= 0 else None,
            beta=s["beta"],
            gamma=s["gamma"],
            clamp=s["sigmoid_clamp"],
            ignore_above=s["ignore_high_fp"] if s["ignore_high_fp"] > 0 else None,
            box_loss=s["loc_loss"],
            weigh_by_heat=not s["not_norm_reg"],
            weights={"positive": s["pos_weight"], "negative": s["neg_weight"], "box": s["reg_weight"]},
        )

    def truth(self):
        names = [f"boxes_im{image}" for image in range(self.images)]
        most = max(len(self.golden[name]) for name in names)
        boxes = np.zeros((self.images, most, 4), "float32")
        labels = np.full((self.images, most), -1, "int32")
        for image, name in enumerate(names):
            boxes[image, : len(self.golden[name])] = self.golden[name]
            labels[image, : len(self.golden[name])] = self.golden[name.replace("boxes", "classes")]
        return boxes, labels, labels >= 0


def reference_names(terms, case):
    """centernet/class_positive -> <case>_loss_centernet_pos, and so on."""
    names = {}
    for name, term in terms.items():
        what = name.split("/")[1]
        if what == "box":
            what = "loc"
        elif what.startswith("class_"):
            what = SIGNS[what.removeprefix("class_")]
        else:
            what = "agn_" + SIGNS[what]
        names[f"{case}_loss_centernet_{what}"] = ops.convert_to_numpy(term)
    return names


@pytest.mark.parametrize("golden", goldens("cn2_losses_agnostic"), ids=str)
def test_blind_losses_agree_with_the_reference(golden):
    batch, got = Batch(golden), {}

    def terms(logits, ltrb, case, changed):
        raw = {"objectness": batch.maps(ops.reshape(logits, (-1, 1))), "ltrb": batch.maps(ltrb)}
        settings = {} if case == "emptygt" else changed
        return batch.head(**settings).losses_of_targets(raw, batch.targets(empty=case == "emptygt"))

    for case, changed in batch.settings["variants"].items():
        got |= reference_names(terms(golden["agn_logits"], golden["reg_pred"], case, changed), case)
    _, gradients = value_and_gradients(
        lambda logits, ltrb: sum(terms(logits, ltrb, "cfg", {}).values()),
        [golden["agn_logits"], golden["reg_pred"]],
    )
    got["grad_agn_logits"] = gradients[0]
    got["grad_reg_pred_nonzero_rows"] = gradients[1][golden["reg_valid"]]
    assert_agrees(golden, got)


@pytest.mark.parametrize("golden", goldens("cn2_losses_classwise"), ids=str)
def test_class_losses_and_extra_positives_agree_with_the_reference(golden):
    batch = Batch(golden)

    def terms(head, logits, targets):
        raw = {"classes": batch.maps(logits), "ltrb": batch.maps(golden["reg_pred"])}
        if head.objectness is not None:
            raw["objectness"] = batch.maps(golden["agn_logits"].reshape(-1, 1))
        return head.losses_of_targets(raw, targets)

    targets = batch.targets()
    got = reference_names(terms(batch.head(), golden["cls_logits"], targets), "cfg")
    with_agn = batch.head(agn=True, ignore_high_fp=batch.settings["with_agn_ignore_high_fp"])
    got |= reference_names(terms(with_agn, golden["cls_logits"], targets), "with_agn")
    _, (gradient,) = value_and_gradients(
        lambda logits: sum(terms(batch.head(), logits, targets).values()), [golden["cls_logits"]]
    )
    got["grad_cls_logits_im_first1000"] = gradient[:1000]

    ltrb = ops.convert_to_tensor(batch.rows(golden["reg_pred"]))
    made = center_targets(*batch.truth(), batch.grid, batch.settings["soi"], batch.settings["num_classes"])
    for case, limits in batch.settings["morepos"].items():
        found = more_positives(
            made,
            batch.head()._loss_at(ltrb),
            *batch.truth(),
            batch.grid,
            batch.settings["soi"],
            threshold=limits["thresh"],
            top_k=limits["topk"],
        )
        mask = ops.convert_to_numpy(found.positive_valid)
        place = batch.rows(np.arange(len(golden["reg_pred"])))
        flat = np.take_along_axis(place, ops.convert_to_numpy(found.positive), axis=1)
        got[f"morepos_{case}_pos_inds"] = flat[mask]
        got[f"morepos_{case}_labels"] = ops.convert_to_numpy(found.positive_label)[mask]
        got |= reference_names(terms(batch.head(), golden["cls_logits"], found), f"morepos_{case}")
    assert_agrees(golden, got)

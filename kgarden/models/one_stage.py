"""A detector with a dense head alone: backbone, neck, dense head, selection."""

from kgarden.models.detector import Detector


class OneStage(Detector):
    """Dense detector.

    Args:
        dense_head: see kgarden/models/detector.py.
        selection:  kgarden.heads.selection.Selection.
    """

    def __init__(self, *, dense_head, selection, **kwargs):
        super().__init__(**kwargs)
        self.dense_head = dense_head
        self.selection = selection

    def parts(self):
        return {**super().parts(), "dense_head": self.dense_head}

    def call(self, x, training=False):
        return self.dense_head(self.pyramid(x, training), training=training)

    def loss_terms(self, x, y, raw, training):
        return self.dense_head.losses(raw, y, step=self.step if training else None)

    def candidates(self, x, raw):
        return self.dense_head.candidates(raw, x["size_hw"])

"""What goes wrong in a training, said in words as soon as the numbers show it.

Judged by the reports of a run, each the mean over some steps. Every sentence is said once.
"""

import math
import statistics

FIRST = 3  # reports that tell how a training began,
LAST = 5  # and how it goes now
PATIENCE = 200  # steps after the warm-up in which a loss should have begun to fall
FALLEN = 0.97  # of its first value: less is a fall
RISEN = 3.0  # times the lowest loss so far
GROWN = 20.0  # times the usual norm of the gradient


class Diagnosis:
    """Looks at one report after the other.

    Args:
        warmup:   steps in which the learning rate rises.
        clips:    whether the gradient's norm is limited already.
        canvases: sizes of batches; the step is traced once for each.
        trained:  whether the weights were trained before: then the loss need not fall.
        reports:  those of the same run before it was stopped, as `add` takes them.
    """

    def __init__(self, warmup=0, clips=False, canvases=1, trained=False, reports=()):
        self.warmup, self.clips, self.canvases = warmup, clips, canvases
        self.trained = trained
        self.losses, self.norms, self.said = [], [], set()
        for report in reports:
            self.add(**report)

    def add(self, step, loss, gradient_norm=math.nan, traces=0, **_):
        """Take in a report.

        Args:
            step:          of its end.
            loss:          mean over its steps.
            gradient_norm: of its last step, before clipping.
            traces:        how often the step was traced so far.
        Returns:
            [sentence, ...], usually none.
        """
        found = {
            "falls": self._no_fall(step, loss),
            "rises": self._rise(step, loss),
            "gradients": self._explosion(step, gradient_norm),
            "traces": self._traces(traces),
        }
        self.losses.append(loss)
        if math.isfinite(gradient_norm):
            self.norms.append(gradient_norm)
        new = {name: sentence for name, sentence in found.items() if sentence and name not in self.said}
        self.said |= new.keys()
        return list(new.values())

    def _no_fall(self, step, loss):
        losses = [*self.losses, loss]
        if self.trained or step < self.warmup + PATIENCE or len(losses) < FIRST + LAST:
            return None
        first, last = statistics.median(losses[:FIRST]), statistics.median(losses[-LAST:])
        if last <= FALLEN * first:
            return None
        return (
            f"the loss does not fall: {first:.3g} when training began, {last:.3g} now, at step {step}. Look "
            f"at what is learned (kgarden data show), at the learning rate, and at what is frozen"
        )

    def _rise(self, step, loss):
        if len(self.losses) < FIRST or step <= self.warmup:
            return None
        lowest = min(self.losses)
        if not (lowest > 0 and loss > RISEN * lowest):
            return None
        return (
            f"the loss rises: {loss:.3g} at step {step}, it has been {lowest:.3g}. Lower schedule.base_lr or "
            f"lengthen schedule.warmup"
        )

    def _explosion(self, step, norm):
        if len(self.norms) < FIRST:
            return None
        usual = statistics.median(self.norms)
        if not (usual > 0 and norm > GROWN * usual):
            return None
        cure = "" if self.clips else f", or set schedule.optimizer.clip_norm (usual would be {usual:.2g})"
        return (
            f"the gradient explodes: its norm is {norm:.3g} at step {step}, usually {usual:.3g}. Lower "
            f"schedule.base_lr or lengthen schedule.warmup{cure}"
        )

    def _traces(self, traces):
        if traces <= self.canvases:
            return None
        return (
            f"the step was traced {traces} times for {self.canvases} canvases, which takes a while each "
            f"time: something else changes shape from batch to batch"
        )

"""Training diagnostics: warnings on stagnating or rising losses, exploding gradients and repeated tracing.

They are computed from the reports of a run, each a mean over some steps. Each warning is given once.
"""

import math
import statistics
from collections.abc import Iterable

FIRST = 3  # reports whose median is the initial loss
LAST = 5  # reports whose median is the current loss
PATIENCE = 200  # steps after the warm-up within which the loss should begin to fall
FALLEN = 0.97  # a loss has fallen below this fraction of its initial value
RISEN = 3.0  # a loss has risen above this multiple of its minimum
GROWN = 20.0  # a gradient norm explodes above this multiple of its median


class Diagnostics:
    """Collects reports and returns warnings.

    Args:
        warmup:   number of warm-up steps.
        clips:    whether the gradient norm is clipped already.
        canvases: number of canvases; the step is traced once for each.
        trained:  whether the initial weights are trained; then the loss need not fall.
        reports:  earlier reports of the same run, as dictionaries of the arguments of `add`.
    """

    def __init__(
        self,
        warmup: int = 0,
        clips: bool = False,
        canvases: int = 1,
        trained: bool = False,
        reports: Iterable[dict] = (),
    ):
        self.warmup, self.clips, self.canvases = warmup, clips, canvases
        self.trained = trained
        self.losses, self.norms, self.reported = [], [], set()
        for report in reports:
            self.add(**report)

    def add(self, step: int, loss: float, gradient_norm: float = math.nan, traces: int = 0, **_) -> list[str]:
        """Adds a report.

        Args:
            step:          the last step of the report.
            loss:          mean over its steps.
            gradient_norm: of its last step, before clipping.
            traces:        number of times that the step has been traced so far.
        Returns:
            [warning, ...], usually empty.
        """
        warnings = {
            "falls": self._no_fall(step, loss),
            "rises": self._rise(step, loss),
            "gradients": self._explosion(step, gradient_norm),
            "traces": self._traces(traces),
        }
        self.losses.append(loss)
        if math.isfinite(gradient_norm):
            self.norms.append(gradient_norm)
        new = {name: text for name, text in warnings.items() if text and name not in self.reported}
        self.reported |= new.keys()
        return list(new.values())

    def _no_fall(self, step, loss):
        losses = [*self.losses, loss]
        if self.trained or step < self.warmup + PATIENCE or len(losses) < FIRST + LAST:
            return None
        first, last = statistics.median(losses[:FIRST]), statistics.median(losses[-LAST:])
        if last <= FALLEN * first:
            return None
        return (
            f"the loss does not fall: {first:.3g} at the beginning, {last:.3g} at step {step}. Check the "
            f"training batches (kgarden data show), the learning rate, and which parts are frozen"
        )

    def _rise(self, step, loss):
        if len(self.losses) < FIRST or step <= self.warmup:
            return None
        lowest = min(self.losses)
        if not (lowest > 0 and loss > RISEN * lowest):
            return None
        return (
            f"the loss rises: {loss:.3g} at step {step}, the minimum was {lowest:.3g}. Lower "
            f"schedule.base_lr or lengthen schedule.warmup"
        )

    def _explosion(self, step, norm):
        if len(self.norms) < FIRST:
            return None
        usual = statistics.median(self.norms)
        if not (usual > 0 and norm > GROWN * usual):
            return None
        remedy = "" if self.clips else f", or set schedule.optimizer.clip_norm (for example {usual:.2g})"
        return (
            f"the gradient explodes: its norm is {norm:.3g} at step {step}, the median is {usual:.3g}. Lower "
            f"schedule.base_lr or lengthen schedule.warmup{remedy}"
        )

    def _traces(self, traces):
        if traces <= self.canvases:
            return None
        return (
            f"the step was traced {traces} times for {self.canvases} canvases, which is slow: another "
            f"shape changes from batch to batch"
        )

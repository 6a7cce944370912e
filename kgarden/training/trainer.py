"""One training from its first step to its last: a callback of `model.fit` that knows what is due.

It counts steps; at intervals it averages, reports, evaluates, keeps the best weights and writes a checkpoint.
Values are fetched from the device every REPORT_EVERY steps and not at each one. Of several workers all count
and agree on when to stop; the chief alone evaluates and writes.
"""

import contextlib
import math
import signal
import threading
import time

import keras
import numpy as np
from keras import ops

from kgarden import build
from kgarden.errors import TrainingFailed, UserError
from kgarden.evaluate import batches_of, draw_examples, evaluate
from kgarden.inference.predictor import inference_of
from kgarden.metrics.report import numbers_of
from kgarden.ops.jit import compiled
from kgarden.runs import best_weights
from kgarden.structures import IMAGE_ID
from kgarden.training.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from kgarden.training.data_wait import Clock, timed
from kgarden.training.diagnostics import Diagnosis
from kgarden.training.loggers import make_loggers
from kgarden.training.weight_averaging import Averages
from kgarden.utils.files import read_json, write_json

REPORT_EVERY = 20  # steps between two looks at the losses,
REPORT_SECONDS = 10  # unless steps are so slow that this time has passed
AGREE_EVERY = 5  # steps after which several workers ask each other whether one wants to stop


class Session(keras.callbacks.Callback):
    """One training: knows how far it is and what is due.

    Args:
        detector: compiled, its optimizer built.
        recipe:   without stages.
        run:      directory.
        data:     kgarden.build.Data.
        reporter: kgarden.training.reporter.Reporter.
        team:     kgarden.training.distribution.Team.
        trained:  whether the weights come from an earlier training.
    """

    def __init__(self, detector, recipe, run, data, reporter, team, trained=False):
        super().__init__()
        self.detector, self.recipe, self.run, self.data, self.reporter = detector, recipe, run, data, reporter
        self.team, self.trained = team, trained
        self.step, self.best, self.best_step = 0, None, None
        self.saved = 0  # step of the last checkpoint
        self.train_s = 0.0  # seconds in steps, without evaluation and the building of graphs
        self.total = recipe.schedule.steps
        self.every = min(recipe.evaluate.every or self.total, self.total)
        self.checkpoint_every = recipe.schedule.checkpoint_every or self.total
        self.rate = build.learning_rate_of(recipe)
        ema = recipe.schedule.ema
        with team.strategy.scope():
            self.averages = Averages(detector.weights, ema.decay, compiled) if ema else None
        self.inference = inference_of(detector, recipe)  # outside of the scope: the chief's own work
        self.clock, self.interrupted, self.loggers = Clock(), False, []

    # --- before and after -------------------------------------------------------------------------

    def resume(self):
        """Take up the checkpoint of the run, if there is one."""
        folder = self.run / "checkpoint"
        if has_checkpoint(folder):
            state = load_checkpoint(folder, self.detector, self.detector.optimizer, self.averages)
            self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
            self.saved, self.train_s = self.step, state["train_s"]
            self.reporter.line(f"going on from step {self.step} of {self.total}")
        if not self.team.agree(self.step):
            raise UserError(
                f"{folder}: the workers do not all find the checkpoint of step {self.step} there: "
                f"give a --run that they share"
            )

    def fit(self):
        """From the present step to the last one, or to an interruption."""
        batches = self.data.train_batches(self.step, self.team.share, self.team.pieces)
        callbacks = _Callbacks([self], add_history=True, model=self.detector)
        self._open_loggers()
        self.reporter.start(self.total, self.step)
        try:
            with _interrupts_noted(self):
                self.detector.fit(
                    self.team.dealt(timed(batches, self.clock)),
                    epochs=1,
                    verbose=0,
                    shuffle=False,
                    callbacks=callbacks,
                    steps_per_epoch=self.total - self.step,
                )
        finally:
            self.reporter.stop()
            for logger in self.loggers:
                logger.close()

    def _open_loggers(self):
        """The chief's; what was reported before tells the diagnosis how this training began."""
        if not self.team.is_chief:
            return
        schedule = self.recipe.schedule
        self.loggers = make_loggers(self.recipe.loggers, self.run, self.recipe, after=self.step)
        self.diagnosis = Diagnosis(
            warmup=schedule.warmup.steps if schedule.warmup else 0,
            clips=schedule.optimizer.clip_norm is not None,
            canvases=len(build.canvases(self.recipe)),
            trained=self.trained,
            reports=[report for report in self.loggers[0].reports if "loss" in report],
        )

    def finish(self):
        """What a run leaves: weights, the evaluation of the best ones on all pictures, drawings."""
        if self.team.is_chief:
            self._leave()
        self.team.meet()
        return read_json(self.run / "evaluation.json")

    def _leave(self):
        self.reporter.line("evaluating the best weights")
        weights = best_weights(self.run)
        load_weights(self.detector, weights)
        evaluation, results = self._evaluate(limit=None, folder=self.run / "evaluation")
        write_json(self.run / "detections.json", results)
        evaluation |= {
            "weights": weights.name,
            "best_step": self.best_step,
            "train_s": round(self.train_s),
        }
        write_json(self.run / "evaluation.json", evaluation)
        if count := self.recipe.evaluate.pictures:
            batches, categories = self._batches(count), self.data.categories
            draw_examples(self.inference, batches, categories, count=count, folder=self.run / "pictures")
        self.reporter.evaluation(evaluation)

    # --- at each step -----------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self.begun = self.seen = self.step
        self.seen_at = time.perf_counter()
        self.clock.taken()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        now = time.perf_counter()
        stop, slow = self._wanted(self.interrupted, now - self.seen_at > REPORT_SECONDS)
        due = self.step % self.every == 0 or self.step == self.total
        save = due or stop or self.step % self.checkpoint_every == 0
        if self.averages or save:
            self._sync()
        if self.averages:
            self.averages.update()
        first = self.step == self.begun + 1  # building the graph took its time
        if due or slow or first or stop or self.step - self.seen >= REPORT_EVERY:
            self._report(logs, now)
        self.reporter.advance(self.step)
        if due and self.team.is_chief:
            self._interval()
        if save and self.team.is_chief:
            self._save()
        if stop:
            self.detector.stop_training = True

    def _wanted(self, *flags):
        """Flags that are up on any worker; several workers ask each other now and then."""
        asks = not self.team.workers or self.step % AGREE_EVERY == 0
        return self.team.any(*flags) if asks else (False,) * len(flags)

    def _report(self, logs, now):
        """Fetch the mean of every term since the last report, show and write them."""
        self._sync()
        bad_step = int(logs["first_bad_step"])
        names = ("loss", *(name for name in logs if name not in ("loss", "first_bad_step")))
        terms = {name: float(logs[name]) for name in names}
        self.detector.reset_metrics()
        if wrong := [name for name, value in terms.items() if not math.isfinite(value)]:
            self._give_up(bad_step, wrong)
        if self.team.is_chief:
            self._tell(terms, now)
        self.seen, self.seen_at = self.step, time.perf_counter()

    def _tell(self, terms, now):
        """Show and write what was fetched."""
        seconds, steps = now - self.seen_at, self.step - self.seen
        per_second = steps / seconds
        if self.step > self.begun + 1:
            self.train_s += seconds
        images_per_s = per_second * self.recipe.data.batch_size
        waiting = min(self.clock.taken() / seconds, 1.0)
        rate = float(self.rate(ops.convert_to_tensor(self.step - 1, "int32")))
        self.reporter.values(
            self.step,
            terms,
            rate,
            images_per_s=images_per_s,
            waiting=waiting,
            seconds_left=self._seconds_left(per_second),
        )
        report = {
            **terms,
            "lr": rate,
            "gradient_norm": self._gradient_norm(),
            "images_per_s": round(images_per_s, 3),
            "data_wait": round(waiting, 4),
            "traces": self.detector.traces,
        }
        self._log(report)
        for sentence in self.diagnosis.add(self.step, **report):
            self.reporter.line(f"step {self.step}: {sentence}")

    def _log(self, values):
        for logger in self.loggers:
            with self._surviving(logger.name):
                logger.add(self.step, values)

    def _gradient_norm(self):
        """Of the last step, before clipping."""
        optimizer = getattr(self.detector.optimizer, "inner_optimizer", self.detector.optimizer)
        return float(ops.convert_to_numpy(optimizer.gradient_norm.value))

    def _give_up(self, step, wrong):
        """A loss is no longer finite: keep the batch in which it began, and say all that is known."""
        x, y = next(iter(self.data.train_batches(start_step=step - 1)))  # the same batch again
        batch = {name: np.asarray(value) for name, value in {**x, **y}.items()}
        path = self.run / "bad_batch.npz"
        with self._surviving("bad_batch.npz"):
            if self.team.is_chief:
                np.savez(path, **batch)
        ids = ", ".join(map(str, batch[IMAGE_ID].tolist()))
        raise TrainingFailed(
            f"step {step}: {', '.join(wrong)} no longer finite, on the pictures {ids} (batch in {path}); "
            f"the checkpoint of step {self.saved} is untouched; lower schedule.base_lr, lengthen "
            f"schedule.warmup or set schedule.optimizer.clip_norm"
        )

    def _seconds_left(self, per_second):
        """Not known after the first step, which built the graph."""
        return (self.total - self.step) / per_second if self.step > self.begun + 1 else math.inf

    def _interval(self):
        """Evaluate, keep the best weights; at the end also the last ones."""
        with self.averages.in_place() if self.averages else contextlib.nullcontext():
            first = self.best is None
            evaluation, _ = self._evaluate(self.recipe.evaluate.limit, explained=first)
            metrics = evaluation["metrics"]
            value = metrics[evaluation["headline"]] or 0.0
            if first or value > self.best:
                with self._surviving("best.weights.h5"):
                    save_weights(self.detector, self.run / "best.weights.h5")
                    self.best, self.best_step = value, self.step
            if self.step == self.total:
                with self._surviving("model.weights.h5"):
                    save_weights(self.detector, self.run / "model.weights.h5")
        self.reporter.interval(self.step, evaluation, self.best, self.best_step)
        measured = {f"val/{name}": one for name, one in numbers_of(evaluation).items() if one is not None}
        self._log({"train_s": round(self.train_s), **measured})
        # evaluation is no training time
        self.seen_at = time.perf_counter()
        self.clock.taken()

    # --- helpers ----------------------------------------------------------------------------------

    def _evaluate(self, limit, **more):
        return evaluate(
            self.detector,
            self.recipe,
            self._batches(limit),
            categories=self.data.categories,
            annotations=self.data.annotations,
            model=self.inference,
            **more,
        )

    def _batches(self, limit):
        return batches_of(self.data, self.recipe, self.detector, limit)

    def _save(self):
        state = {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "train_s": self.train_s,
            "recipe_sha256": self.recipe.digest(),
        }
        with self._surviving("the checkpoint"):
            save_checkpoint(
                self.run / "checkpoint",
                self.detector,
                self.detector.optimizer,
                averages=self.averages,
                state=state,
            )
            self.saved = self.step

    @contextlib.contextmanager
    def _surviving(self, what):
        """A full disk ends no training: what was written before stays, and is spoken of."""
        try:
            yield
        except OSError as error:
            last = f"that of step {self.saved} stays" if self.saved else "there is no earlier one"
            self.reporter.line(
                f"step {self.step}: {what} could not be written ({error.strerror or error}); "
                f"training goes on; of checkpoints {last}"
            )

    def _sync(self):
        """On JAX `fit` keeps variables to itself until it is asked for them."""
        if keras.backend.backend() == "jax":
            self.detector.jax_state_sync()


# --- around fit -----------------------------------------------------------------------------------


class _Callbacks(keras.callbacks.CallbackList):
    """Keras' list fetches every value at every step, a wait for the device each time; this one does not."""

    def on_train_batch_begin(self, batch, logs=None):
        pass

    def on_train_batch_end(self, batch, logs=None):
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


@contextlib.contextmanager
def _interrupts_noted(session):
    """Ctrl-C and SIGTERM let the step end and a checkpoint be written; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
        session.interrupted = True
        several = session.team.workers
        session.reporter.line(f"stopping {f'within {AGREE_EVERY} steps' if several else 'after this step'}")
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Trainer: a callback of `model.fit` that schedules reports, evaluation, checkpoints and early stopping.

It counts steps and, at intervals, updates the EMA, reports, evaluates, saves the best weights and writes a
checkpoint. Values are fetched from the device every REPORT_EVERY steps, not at each one. With several workers
all count steps and agree on when to stop; only the chief evaluates and writes files.
"""

import contextlib
import functools
import math
import pathlib
import time

import keras
import numpy as np
from keras import ops

from kgarden import build
from kgarden.config.recipe import Recipe
from kgarden.errors import TrainingFailed, UserError
from kgarden.evaluation import batches_of, draw_examples, evaluate
from kgarden.inference.predictor import inference_of
from kgarden.metrics.registry import is_better
from kgarden.metrics.report import numbers_of
from kgarden.models.base.detector import Detector
from kgarden.ops.jit import compiled
from kgarden.runs import best_weights
from kgarden.structures import IMAGE_ID
from kgarden.training.checkpoint import (
    has_checkpoint,
    load_checkpoint,
    load_weights,
    not_finite,
    save_checkpoint,
    save_weights,
)
from kgarden.training.data_wait import DataWait, measure_wait
from kgarden.training.diagnostics import Diagnostics
from kgarden.training.distribution import Cluster
from kgarden.training.interrupts import graceful_interrupts
from kgarden.training.loggers import Tolerant, make_loggers
from kgarden.training.reporter import Reporter
from kgarden.training.tensorboard_results import write_results
from kgarden.training.weight_averaging import ExponentialMovingAverage
from kgarden.utils.files import read_json, replacing, write_json, write_report
from kgarden.utils.fonts import missing_glyphs
from kgarden.utils.output_folder import OutputFolder

REPORT_EVERY = 20  # steps between two reports
REPORT_SECONDS = 10  # seconds after which a report is made earlier, where steps are slow
STOP_CHECK_EVERY = 5  # steps between two collective checks whether any worker should stop


class Trainer(keras.callbacks.Callback):
    """State and schedule of one training.

    Args:
        detector: compiled, its optimizer built.
        recipe:   without stages.
        run:      run directory.
        data:     kgarden.build.Data.
        reporter: kgarden.training.reporter.Reporter.
        cluster:  kgarden.training.distribution.Cluster.
        trained:  whether the weights come from an earlier training.
    """

    def __init__(
        self,
        detector: Detector,
        recipe: Recipe,
        run: pathlib.Path,
        data: build.Data,
        *,
        reporter: Reporter,
        cluster: Cluster,
        trained: bool = False,
    ):
        super().__init__()
        self.detector, self.recipe, self.run, self.data, self.reporter = detector, recipe, run, data, reporter
        self.cluster, self.trained = cluster, trained
        self.step, self.best, self.best_step = 0, None, None
        self.saved = 0  # step of the last checkpoint
        self.train_s = 0.0  # seconds in steps, without evaluation and tracing
        self.total = recipe.schedule.steps
        self.every = min(recipe.evaluate.every or self.total, self.total)
        self.checkpoint_every = recipe.schedule.checkpoint_every or self.total
        self.learning_rate = build.learning_rate_of(recipe)
        build.give_image_counts(detector, data)
        ema = recipe.schedule.ema
        with cluster.strategy.scope():
            self.ema = ExponentialMovingAverage(detector.weights, ema.decay, compiled) if ema else None
        self.inference = inference_of(detector, recipe)  # outside the scope: only the chief evaluates
        self.data_wait, self.interrupted, self.loggers = DataWait(), False, []
        self.val_batches = functools.cache(functools.partial(batches_of, data, recipe, detector))

    # --- start and end ----------------------------------------------------------------------------

    def resume(self) -> None:
        """Restores the checkpoint of the run, if there is one."""
        folder = self.run / "checkpoint"
        if has_checkpoint(folder):
            state = load_checkpoint(
                folder, self.detector, self.detector.optimizer, ema=self.ema, say=self.reporter.line
            )
            self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
            self.saved, self.train_s = self.step, state["train_s"]
            self.reporter.line(f"resuming from step {self.step} of {self.total}")
        if not self.cluster.all_equal(self.step):
            raise UserError(
                f"{folder}: not all workers find the checkpoint of step {self.step}; "
                f"use a --run on shared storage"
            )

    def fit(self) -> None:
        """Trains from the current step to the last one, or to an interruption."""
        batches = self.data.train_batches(
            self.step, share=self.cluster.worker_position, pieces=self.cluster.local_replicas
        )
        self.detector.reports_first_bad_step = True
        callbacks = _Callbacks([self], add_history=True, model=self.detector)
        self._open_loggers()
        self.reporter.start(self.total, self.step)
        try:
            with graceful_interrupts(self._request_stop):
                self.detector.fit(
                    self.cluster.distribute_dataset(measure_wait(batches, self.data_wait)),
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

    def _request_stop(self):
        self.interrupted = True
        when = f"within {STOP_CHECK_EVERY} steps" if self.cluster.workers else "after this step"
        self.reporter.line(f"stopping {when}")

    def _open_loggers(self):
        """Opens the chief's loggers; the diagnostics get the reports from before a resume."""
        if not self.cluster.is_chief:
            return
        schedule = self.recipe.schedule
        self.loggers = make_loggers(
            self.recipe.loggers, self.run, self.recipe, after=self.step, say=self.reporter.line
        )
        self.diagnostics = Diagnostics(
            warmup=schedule.warmup.steps if schedule.warmup else 0,
            clips=schedule.optimizer.clip_norm is not None,
            canvases=len(build.canvases(self.recipe)),
            trained=self.trained,
            reports=[report for report in self.loggers[0].reports if "loss" in report],
        )

    def finish(self) -> dict:
        """Evaluates the best weights on all images, writes the results and returns `evaluation.json`."""
        if self.cluster.is_chief:
            self._evaluate_best()
        self.cluster.barrier()
        return read_json(self.run / "evaluation.json")

    def _evaluate_best(self):
        self.reporter.line(f"evaluating the {'last' if self.best is None else 'best'} weights")
        weights = best_weights(self.run)
        load_weights(self.detector, weights)
        evaluation, results = self._evaluate(
            limit=None, folder=OutputFolder(self.run / "evaluation", owned=True)
        )
        write_json(self.run / "detections.json", results)
        evaluation |= {
            "weights": weights.name,
            "best_step": self.best_step,
            "train_s": round(self.train_s),
        }
        write_report(self.run / "evaluation.json", evaluation)
        if note := missing_glyphs(self.data.categories):
            self.reporter.line(note)
        count, where = self.recipe.evaluate.pictures, self.run / "pictures"
        photos = []
        if count:
            photos = draw_examples(
                self.inference, self.val_batches(count), self.data, count=count, folder=where
            )
        Tolerant("TensorBoard", lambda: write_results(self.run, self.recipe, photos), self.reporter.line)
        self.reporter.evaluation(evaluation)

    # --- at each step -----------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self.first_step = self.reported_step = self.step
        self.reported_at, self.reported_traces = time.perf_counter(), self.detector.traces
        self.data_wait.take()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        now = time.perf_counter()
        stop, slow = self._any_worker(self.interrupted, now - self.reported_at > REPORT_SECONDS)
        due = self.step % self.every == 0 or self.step == self.total
        save = due or stop or self.step % self.checkpoint_every == 0
        if self.ema or save:
            self._sync()
        if self.ema:
            self.ema.update()
        first = self.step == self.first_step + 1  # it included tracing
        if due or slow or first or stop or self.step - self.reported_step >= REPORT_EVERY:
            self._report(logs, now)
        if save:
            self._check_finite(logs, now)
        self.reporter.advance(self.step)
        if due and self.cluster.is_chief:
            self._evaluate_interval()
        if save and self.cluster.is_chief:
            self._save()
        if stop:
            self.detector.stop_training = True

    def _any_worker(self, *flags):
        """Returns whether each flag is set on any worker; several workers synchronise at intervals only."""
        due = not self.cluster.workers or self.step % STOP_CHECK_EVERY == 0
        return self.cluster.any(*flags) if due else (False,) * len(flags)

    def _report(self, logs, now):
        """Fetches the mean of every loss term since the last report, prints and logs them."""
        self._sync()
        bad_step = int(logs["first_bad_step"])
        names = ("loss", *(name for name in logs if name not in ("loss", "first_bad_step")))
        terms = {name: float(logs[name]) for name in names}
        self.detector.reset_metrics()
        if bad_terms := [name for name, value in terms.items() if not math.isfinite(value)]:
            self._fail(bad_step, bad_terms)
        if self.cluster.is_chief:
            self._log_report(terms, now)
        self.reported_step, self.reported_at = self.step, time.perf_counter()

    def _log_report(self, terms, now):
        """Prints and logs the fetched values."""
        seconds, steps = now - self.reported_at, self.step - self.reported_step
        per_second = steps / seconds
        if self.step > self.first_step + 1:
            self.train_s += seconds
        images_per_s = per_second * self.recipe.data.batch_size
        waiting = min(self.data_wait.take() / seconds, 1.0)
        rate = float(self.learning_rate(ops.convert_to_tensor(self.step - 1, "int32")))
        traces, warmup = self.detector.traces, self.recipe.schedule.warmup
        compiled = traces > self.reported_traces or self.step == self.first_step + 1
        self.reporter.values(
            self.step,
            terms,
            rate=rate,
            seconds=seconds,
            images_per_s=images_per_s,
            waiting=waiting,
            seconds_left=math.inf if compiled else (self.total - self.step) / per_second,
            compiled=compiled,
            warming_up=warmup is not None and self.step <= warmup.steps,
        )
        self.reported_traces = traces
        report = {
            **terms,
            "lr": rate,
            "gradient_norm": self._gradient_norm(),
            "images_per_s": round(images_per_s, 3),
            "data_wait": round(waiting, 4),
            "traces": traces,
        }
        self._log(report)
        for warning in self.diagnostics.add(self.step, **report):
            self.reporter.line(f"step {self.step}: {warning}")

    def _log(self, values):
        for logger in self.loggers:
            logger.add(self.step, values)

    def _gradient_norm(self):
        """Returns the gradient norm of the last step, before clipping."""
        optimizer = getattr(self.detector.optimizer, "inner_optimizer", self.detector.optimizer)
        return float(ops.convert_to_numpy(optimizer.gradient_norm.value))

    def _fail(self, step, bad_terms):
        """Raises TrainingFailed for a non-finite loss, after saving the batch in which it first occurred."""
        x, y = next(iter(self.data.train_batches(start_step=step - 1)))  # the same batch again
        batch = {name: np.asarray(value) for name, value in {**x, **y}.items()}
        path = self.run / "bad_batch.npz"
        with self._tolerating_full_disk("bad_batch.npz"):
            if self.cluster.is_chief:
                with replacing(path) as temporary:
                    np.savez(temporary, **batch)
        ids = ", ".join(map(str, batch[IMAGE_ID].tolist()))
        raise TrainingFailed(
            f"step {step}: {', '.join(bad_terms)} no longer finite, on the images {ids} (batch in {path}); "
            f"{self._kept()}; lower schedule.base_lr, lengthen "
            f"schedule.warmup or set schedule.optimizer.clip_norm"
        )

    def _check_finite(self, logs, now):
        """Ends the training before anything that is not finite is saved or evaluated."""
        name = not_finite(self.detector, self.detector.optimizer, ema=self.ema)
        if name is None:
            return
        if self.reported_step < self.step:
            self._report(logs, now)  # if a loss is not finite either, this names it and the batch
        raise TrainingFailed(
            f"step {self.step}: {name} is no longer finite, though the loss is; {self._kept()}; lower "
            f"schedule.base_lr, lengthen schedule.warmup or set schedule.optimizer.clip_norm"
        )

    def _kept(self):
        """Which checkpoint stays, for messages."""
        return f"the checkpoint of step {self.saved} is kept" if self.saved else "there is no checkpoint yet"

    def _evaluate_interval(self):
        """Evaluates and saves the weights if they are the best so far; at the end also the last ones.

        As long as no evaluation could be measured, the last weights are kept as the best.
        """
        with self.ema.in_place() if self.ema else contextlib.nullcontext():
            evaluation, _ = self._evaluate(self.recipe.evaluate.limit, explained=self.best_step is None)
            value = evaluation["metrics"][evaluation["headline"]]
            if is_better(value, self.best):
                with self._tolerating_full_disk("best.weights.h5"):
                    save_weights(self.detector, self.run / "best.weights.h5")
                    self.best, self.best_step = value, self.step
            if self.step == self.total:
                with self._tolerating_full_disk("model.weights.h5"):
                    save_weights(self.detector, self.run / "model.weights.h5")
        self.reporter.interval(self.step, evaluation, self.best, self.best_step)
        self._log(
            {
                "train_s": round(self.train_s),
                **{f"val/{name}": value for name, value in numbers_of(evaluation).items()},
            }
        )
        # exclude the evaluation from the training time
        self.reported_at = time.perf_counter()
        self.data_wait.take()

    # --- helpers ----------------------------------------------------------------------------------

    def _evaluate(self, limit, **more):
        images = sum(len(dataset.index) for dataset in self.data.val)
        with self.reporter.evaluating(min(images, limit or images)) as on_batch:
            return evaluate(
                self.detector,
                self.recipe,
                self.val_batches(limit),
                self.data.categories,
                annotations=self.data.annotations,
                model=self.inference,
                on_batch=on_batch,
                **more,
            )

    def _save(self):
        state = {
            "step": self.step,
            "best": self.best,
            "best_step": self.best_step,
            "train_s": self.train_s,
            "recipe_sha256": self.recipe.digest(),
        }
        with self._tolerating_full_disk("the checkpoint"):
            save_checkpoint(
                self.run / "checkpoint", self.detector, self.detector.optimizer, ema=self.ema, state=state
            )
            self.saved = self.step

    @contextlib.contextmanager
    def _tolerating_full_disk(self, what):
        """Reports an OSError, such as a full disk, instead of ending the training; earlier files stay."""
        try:
            yield
        except OSError as error:
            self.reporter.line(
                f"step {self.step}: {what} could not be written ({error.strerror or error}); "
                f"training continues; {self._kept()}"
            )

    def _sync(self):
        """On JAX, writes the state of `fit` back to the model's variables."""
        if keras.backend.backend() == "jax":
            self.detector.jax_state_sync()


# --- around fit -----------------------------------------------------------------------------------


class _Callbacks(keras.callbacks.CallbackList):
    """Callback list without the device sync at every step of keras.callbacks.CallbackList."""

    def on_train_batch_begin(self, batch, logs=None):
        pass

    def on_train_batch_end(self, batch, logs=None):
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)

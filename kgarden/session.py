"""One training from its first step to its last: a callback of `model.fit` that knows what is due.

It counts steps; at intervals it averages, reports, evaluates, keeps the best weights and writes a checkpoint.
Values are fetched from the device every REPORT_EVERY steps and not at each one.
"""

import contextlib
import math
import signal
import threading
import time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kgarden import build
from kgarden.checkpoint import (
    Averages,
    has_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from kgarden.evaluate import draw_examples, evaluate
from kgarden.ops.compiled import compiled
from kgarden.predict import compiled_inference
from kgarden.progress import MetricsFile
from kgarden.schema import IMAGE_ID
from kgarden.scoring import write_json

REPORT_EVERY = 20  # steps between two looks at the losses,
REPORT_SECONDS = 10  # unless steps are so slow that this time has passed


class TrainingFailed(RuntimeError):
    """The work ran and went wrong; the message is one line that says what to do."""


class Session(keras.callbacks.Callback):
    """One training: knows how far it is and what is due.

    Args:
        detector: compiled, its optimizer built.
        recipe:   without stages.
        run:      directory.
        data:     kgarden.build.Data.
        reporter: kgarden.progress.Reporter.
    """

    def __init__(self, detector, recipe, run, data, reporter):
        super().__init__()
        self.detector, self.recipe, self.run, self.data, self.reporter = detector, recipe, run, data, reporter
        self.step, self.best, self.best_step = 0, None, None
        self.saved = 0  # step of the last checkpoint
        self.train_s = 0.0  # seconds in steps, without evaluation and the building of graphs
        self.total = recipe.schedule.steps
        self.every = min(recipe.evaluate.every or self.total, self.total)
        self.checkpoint_every = recipe.schedule.checkpoint_every or self.total
        self.rate = build.learning_rate_of(recipe)
        ema = recipe.schedule.ema
        self.averages = Averages(detector.weights, ema.decay, compiled) if ema else None
        self.inference = compiled_inference(detector)
        self.clock, self.interrupted = Clock(), False

    # --- before and after -------------------------------------------------------------------------

    def resume(self):
        """Take up the checkpoint of the run, if there is one."""
        folder = self.run / "checkpoint"
        if has_checkpoint(folder):
            state = load_checkpoint(folder, self.detector, self.detector.optimizer, self.averages)
            self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
            self.saved, self.train_s = self.step, state["train_s"]
            self.reporter.line(f"going on from step {self.step} of {self.total}")
        self.metrics = MetricsFile(self.run / "metrics.jsonl", after=self.step)

    def fit(self):
        """From the present step to the last one, or to an interruption."""
        batches = self.data.train_batches(start_step=self.step)
        callbacks = _Callbacks([self], add_history=True, model=self.detector)
        self.board = tf.summary.create_file_writer(str(self.run / "tensorboard"))
        self.reporter.start(self.total, self.step)
        try:
            with _interrupts_noted(self):
                self.detector.fit(
                    timed(batches, self.clock),
                    epochs=1,
                    verbose=0,
                    shuffle=False,
                    callbacks=callbacks,
                    steps_per_epoch=self.total - self.step,
                )
        finally:
            self.reporter.stop()
            self.board.close()

    def finish(self):
        """What a run leaves: weights, the evaluation of the best ones on all pictures, drawings."""
        self.reporter.line("evaluating the best weights")
        weights = build.best_weights(self.run)
        load_weights(self.detector, weights)
        evaluation, results = self._evaluate(limit=None, folder=self.run / "evaluation")
        write_json(self.run / "detections.json", results)
        evaluation |= {
            "weights": weights.name,
            "best_step": self.best_step,
            "train_s": round(self.train_s),
        }
        write_json(self.run / "evaluation.json", evaluation)
        draw_examples(self.inference, self.data, self.recipe.evaluate.pictures, self.run / "pictures")
        self.reporter.evaluation(evaluation)
        return evaluation

    # --- at each step -----------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self.begun = self.seen = self.step
        self.seen_at = time.perf_counter()
        self.clock.taken()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        due = self.step % self.every == 0 or self.step == self.total
        save = due or self.interrupted or self.step % self.checkpoint_every == 0
        if self.averages or save:
            self._sync()
        if self.averages:
            self.averages.update()
        now = time.perf_counter()
        slow = now - self.seen_at > REPORT_SECONDS
        first = self.step == self.begun + 1  # building the graph took its time
        if due or slow or first or self.interrupted or self.step - self.seen >= REPORT_EVERY:
            self._report(logs, now)
        self.reporter.advance(self.step)
        if due:
            self._interval()
        if save:
            self._save()
        if self.interrupted:
            self.detector.stop_training = True

    def _report(self, logs, now):
        """Fetch the mean of every term since the last report, show and write them."""
        self._sync()
        bad_step = int(logs["first_bad_step"])
        names = ("loss", *(name for name in logs if name not in ("loss", "first_bad_step")))
        terms = {name: float(logs[name]) for name in names}
        self.detector.reset_metrics()
        if wrong := [name for name, value in terms.items() if not math.isfinite(value)]:
            self._give_up(bad_step, wrong)
        seconds, steps = now - self.seen_at, self.step - self.seen
        per_second = steps / seconds
        if self.step > self.begun + 1:
            self.train_s += seconds
        images_per_s = per_second * self.recipe.data.batch_size
        waiting = min(self.clock.taken() / seconds, 1.0)
        rate = float(self.rate(ops.convert_to_tensor(self.step - 1, "int32")))
        self.reporter.values(self.step, terms, rate, images_per_s, waiting, self._seconds_left(per_second))
        with self._surviving("metrics.jsonl"):
            self.metrics.add(
                step=self.step,
                **terms,
                lr=rate,
                images_per_s=round(images_per_s, 3),
                data_wait=round(waiting, 4),
            )
        with self.board.as_default(step=self.step):
            for name, value in {
                **terms,
                "lr": rate,
                "images_per_s": images_per_s,
                "data_wait": waiting,
            }.items():
                tf.summary.scalar(f"train/{name}", value)
        self.seen, self.seen_at = self.step, time.perf_counter()

    def _give_up(self, step, wrong):
        """A loss is no longer finite: keep the batch in which it began, and say all that is known."""
        x, y = next(iter(self.data.train_batches(start_step=step - 1)))  # the same batch again
        batch = {name: np.asarray(value) for name, value in {**x, **y}.items()}
        path = self.run / "bad_batch.npz"
        with self._surviving("bad_batch.npz"):
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
        with self._surviving("metrics.jsonl"):
            self.metrics.add(
                step=self.step,
                train_s=round(self.train_s),
                **{f"val/{name}": value for name, value in metrics.items()},
            )
        with self.board.as_default(step=self.step):
            for name, value in metrics.items():
                if value is not None:
                    tf.summary.scalar(f"val/{name}", value)
        # evaluation is no training time
        self.seen_at = time.perf_counter()
        self.clock.taken()

    # --- helpers ----------------------------------------------------------------------------------

    def _evaluate(self, limit, **more):
        return evaluate(
            self.detector,
            self.recipe,
            self.data.val_batches(limit),
            self.data.categories,
            self.data.annotations,
            model=self.inference,
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
        with self._surviving("the checkpoint"):
            save_checkpoint(
                self.run / "checkpoint", self.detector, self.detector.optimizer, self.averages, state
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


class Clock:
    """Seconds that the training step waited for its batches."""

    def __init__(self):
        self.seconds = self.asked_at = 0.0

    def asked(self):
        """A batch is asked for."""
        self.asked_at = time.perf_counter()
        return np.int64(0)

    def came(self):
        """It has come."""
        self.seconds += time.perf_counter() - self.asked_at
        return np.int64(0)

    def taken(self):
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def timed(dataset, clock):
    """The same batches; the clock counts how long each was waited for.

    `zip` asks its parts in turn: the first part notes when a batch was asked for, the map when it had come.
    """
    asked = tf.data.Dataset.counter().map(lambda _: tf.numpy_function(clock.asked, [], tf.int64))

    def note(_, batch):
        with tf.control_dependencies([tf.numpy_function(clock.came, [], tf.int64)]):
            return tf.nest.map_structure(tf.identity, batch)

    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # would ask ahead of the training step
    return tf.data.Dataset.zip(asked, dataset).map(note).with_options(options)


@contextlib.contextmanager
def _interrupts_noted(session):
    """Ctrl-C and SIGTERM let the step end and a checkpoint be written; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
        session.interrupted = True
        session.reporter.line("stopping after this step")
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""One worker of a training, in a process of its own.

    python -m support.programs.workers DATA RUN REPLICAS [MOMENT NUMBER]

TF_CONFIG names the workers. One that is not the chief fails when it writes anything. MOMENT and NUMBER as
in resume.py, and "told to stop": SIGTERM after the NUMBER-th step.
"""

import os
import pathlib
import signal
import sys

from support.programs import resume

from kgarden.commands.train import train
from kgarden.config.loading import load_recipe
from kgarden.errors import TrainingFailed, UserError
from kgarden.training import distribution, trainer
from kgarden.training.reporter import Reporter

WRITING = {"os.rename", "os.mkdir", "os.remove", "os.truncate"}
STEPS = 6


def ask_to_stop(trainer, *arguments, **more):
    """SIGTERM to this process, then the end of the step as ever."""
    os.kill(os.getpid(), signal.SIGTERM)
    return end_of_step(trainer, *arguments, **more)


end_of_step = trainer.Trainer.on_train_batch_end
resume.MOMENTS["told to stop"] = (trainer.Trainer, "on_train_batch_end", ask_to_stop)


def forbid_writing(folder):
    """Any file that this process opens for writing in the folder, makes, moves or removes ends it."""

    def hook(event, arguments):
        writes = event in WRITING or event == "open" and set(str(arguments[1])) & set("wax+")
        if writes and str(arguments[0]).startswith(str(folder)):
            print(f"a worker writes: {event} {arguments}", flush=True)
            os._exit(3)

    sys.addaudithook(hook)


def main(data, run, replicas, moment=None, number=1):
    shards = {"data.train": f"{data}/train", "data.val": f"{data}/val"}
    changes = {"replicas": int(replicas), "schedule.steps": STEPS, "evaluate.every": 3}
    recipe = load_recipe("quickstart", {**resume.OVERRIDES, **shards, **changes})
    distribution.WAIT_S = float(os.environ.get("WAIT_S", 120))
    if distribution._read_tf_config()[1] != 0:
        forbid_writing(run)
    if moment:
        resume.arm(moment, int(number))
    try:
        return 0 if train(recipe, pathlib.Path(run), reporter=Reporter()) else 4
    except (TrainingFailed, UserError) as error:
        print(error, flush=True)
        return 1 if isinstance(error, TrainingFailed) else 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

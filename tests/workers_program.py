"""One worker of a training, in a process of its own.

    python workers_program.py DATA RUN REPLICAS [MOMENT NUMBER]

TF_CONFIG names the workers. One that is not the chief fails when it writes anything. MOMENT and NUMBER as
in resume_program.py, and "told to stop": SIGTERM after the NUMBER-th step.
"""

import os
import pathlib
import signal
import sys

import resume_program

from kgarden import distribute, session
from kgarden.progress import Reporter
from kgarden.recipe import load_recipe
from kgarden.schema import TrainingFailed, UserError
from kgarden.train import train

WRITING = {"os.rename", "os.mkdir", "os.remove", "os.truncate"}
STEPS = 6


def ask_to_stop(session, *arguments, **more):
    """SIGTERM to this process, then the end of the step as ever."""
    os.kill(os.getpid(), signal.SIGTERM)
    return end_of_step(session, *arguments, **more)


end_of_step = session.Session.on_train_batch_end
resume_program.MOMENTS["told to stop"] = (session.Session, "on_train_batch_end", ask_to_stop)


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
    recipe = load_recipe("quickstart", {**resume_program.OVERRIDES, **shards, **changes})
    distribute.WAIT_S = float(os.environ.get("WAIT_S", 120))
    if distribute._cluster()[1] != 0:
        forbid_writing(run)
    if moment:
        resume_program.arm(moment, int(number))
    try:
        return 0 if train(recipe, pathlib.Path(run), reporter=Reporter()) else 4
    except (TrainingFailed, UserError) as error:
        print(error, flush=True)
        return 1 if isinstance(error, TrainingFailed) else 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`kgarden train` with the stand-in as model and data, in a process of its own, on whichever backend.

python -m support.programs.train_fake FOLDER RUN STEPS
"""

import pathlib
import sys

from support.fake_detector import RECIPE, StandIn, StandInData

from kgarden import build, cli


def build_detector(settings, num_classes, seed=0):
    detector = StandIn(num_classes, seed)
    detector.build()
    return detector


def main(folder, run, steps):
    build.prepare_data = lambda *_, **__: StandInData(pathlib.Path(folder))
    build.build_detector = build_detector
    recipe = pathlib.Path(folder) / "standin.yaml"
    recipe.write_text(RECIPE)
    return cli.main(["train", str(recipe), "--run", run, "--set", f"schedule.steps={steps}"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Conversions that do not end well; `main(HOW, FOLDER, ...)`."""

import os
import resource
import signal
import sys
import time

from tfrecords import pool
from tfrecords.converters import shapes
from tfrecords.schema import DataError

SMALL = {"size_hw": (64, 64), "seed": 1, "shards": 4}
COUNT = 24


def killed(to, after, workers=None):
    """Dies, as by kill -9, when so many images are done."""
    pool.TELL_EVERY = 1

    def die(done, total):
        if done >= int(after):
            os.kill(os.getpid(), signal.SIGKILL)

    shapes.build(to, count=COUNT, **SMALL, workers=workers and int(workers), progress=die)


def slow(to):
    """Takes a tenth of a second and more for an image."""
    draw = shapes.draw

    def drawn(*arguments):
        time.sleep(0.1)
        return draw(*arguments)

    shapes.draw = drawn
    shapes.build(to, count=COUNT, **SMALL)


def full(to):
    """A limit on the size of files is to a process what a full disk is."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    try:
        shapes.build(to, count=COUNT, **SMALL)
    except DataError as error:
        print(f"said: {error}")
        sys.exit(1)


def main(how, *arguments):
    {"killed": killed, "slow": slow, "full": full}[how](*arguments)

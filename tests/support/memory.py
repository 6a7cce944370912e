"""Memory of a test process: what has been freed goes back to the system after tests that took much."""

import ctypes
import gc
import pathlib
import resource
import sys

GROWTH = 800 * 2**20  # bytes
_held = 0


def resident():
    """Bytes of this process in physical memory."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def release():
    """Gives freed memory back to the system if the process has grown.

    Compilers allocate and free many small blocks on many threads; glibc keeps them, and searches among them
    with every allocation: without this a process of the suite grows to 9 GiB and slows down. JAX keeps every
    program; those that are needed again come from the directory of compiled ones.
    """
    global _held
    if sys.platform != "linux" or resident() < _held + GROWTH:
        return
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _held = resident()

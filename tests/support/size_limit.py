"""Files that cannot grow: as on a full disk, a write is short first, and then refused."""

import contextlib
import resource


@contextlib.contextmanager
def size_limit(size):
    """Limits every file of this process to so many bytes; beyond it, writing raises "File too large"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

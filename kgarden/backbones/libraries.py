"""Names of backbones of other libraries, told from our own without importing those."""

LIBRARIES = {"kerashub": ("keras_hub", "keras-hub"), "kerascv": ("keras_cv", "keras-cv")}  # module, extra


def is_adapted(name: str | None) -> bool:
    """Whether a backbone's name is "kerashub:PRESET" or "kerascv:PRESET"."""
    return isinstance(name, str) and name.partition(":")[0] in LIBRARIES and ":" in name

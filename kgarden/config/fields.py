"""Base class of recipe sections, and the short forms that their values may take."""

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """Base class of the sections: unknown keys are errors, values are frozen and strictly typed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def as_tuple(value):
    """Returns one value or a list of values as a tuple, so that a frozen recipe is immutable."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


AsTuple = BeforeValidator(as_tuple)


def as_sides(value):
    """Returns a number or a list as a tuple; {"from": 480, "to": 960} as all whole numbers between."""
    if not isinstance(value, dict):
        return as_tuple(value)
    ends = value.get("from"), value.get("to")
    if value.keys() != {"from", "to"} or any(type(end) is not int for end in ends) or ends[0] > ends[1]:
        raise ValueError("a range of sizes is {from: 480, to: 960}, both ends included")
    return tuple(range(ends[0], ends[1] + 1))


def as_sources(value):
    """Returns a glob, a dictionary, or a list of either as a tuple of dictionaries."""
    return tuple({"glob": one} if isinstance(one, str) else one for one in as_tuple(value))


def as_names(value):
    """Returns a dictionary with its keys and values as text: YAML reads a class named 0 as a number."""
    if not isinstance(value, dict) or not all(
        type(one) in (str, int) for pair in value.items() for one in pair
    ):
        return value
    return {str(old): str(new) for old, new in value.items()}


def as_canvases(value):
    """Returns a list of [height, width] as a tuple of tuples."""
    return tuple(tuple(c) if isinstance(c, list) else c for c in value) if isinstance(value, list) else value


def named(value):
    """Returns `centernet2`, short for {name: centernet2}, in full."""
    return {"name": value} if isinstance(value, str) else value


def convention(value):
    """Returns `detectron2`, short for {convention: detectron2}, in full."""
    return {"convention": value} if isinstance(value, str) else value


def as_augment(value):
    """Returns names, and names with settings, as a tuple of {name: settings}."""
    entries = [{one: {}} if isinstance(one, str) else one for one in as_tuple(value)]
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or len(entry) != 1
            or not isinstance(next(iter(entry.values())), dict | type(None))
        ):
            raise ValueError(
                f"{entry}: an entry must be a name, or a name with settings, "
                f"for example {{mixup: {{alpha: 8}}}}"
            )
    return tuple({name: settings or {} for name, settings in entry.items()} for entry in entries)

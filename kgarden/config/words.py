"""Messages of recipe validation in kgarden's words: what a key must be, as it is written."""

EXAMPLE = "{format: coco, images: DIR, annotations: FILE}"
SOURCES = f"must be shards (a folder or glob) or raw data, for example {EXAMPLE}"
OF_KEYS = {
    "data.train": SOURCES,
    "data.val": f"{SOURCES}; every training is evaluated on data.val",
    "replicas": "must be a whole number greater than 0, or all",
    "model": "must be a mapping with the name of a model, for example {name: fcos}",
    "schedule.decay": "must be a mapping, for example {name: cosine} or {at: [60000, 80000], factor: 0.1}",
    "schedule.warmup": "must be a mapping, for example {steps: 500, factor: 0.001}",
    "init": "must be a mapping, for example {run: runs/first} or {weights: FILE.weights.h5}",
}
OF_KINDS = {  # of pydantic -> words, filled in from its context
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text; quote it",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be greater than or equal to {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be less than or equal to {le:g}",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys, {{key: value}}",
    "model_type": "must be a mapping of keys, {{key: value}}",
    "too_short": "must have at least {min_length} item",
    "too_long": "must have at most {max_length} items",
}


def words_of(problem: dict, keys: tuple[str, ...]) -> str:
    """Returns what is wrong with a value, "= 9.5: must be a whole number".

    Args:
        problem: an entry of pydantic's `ValidationError.errors()`.
        keys:    of `written_keys`.
    """
    kind, value = problem["type"], problem.get("input")
    words = OF_KEYS.get(".".join(key for key in keys if not key.isdigit()))
    if words is None:
        words = OF_KINDS.get(kind, "{message}").format(
            **problem.get("ctx", {}), message=problem["msg"][0].lower() + problem["msg"][1:]
        )
    return f"= {_shown(value)}: {words}"


def _shown(value):
    if value is None:
        return "null"
    return f"{list(value) if isinstance(value, tuple) else value!r:.200}"


def written_keys(tree: dict, loc: tuple) -> tuple[str, ...]:
    """Returns the keys of a value as the recipe has them.

    pydantic's place also has the positions in lists that short forms stand for, and the kinds of a union.

    Args:
        tree: the recipe, before its short forms are written out.
        loc:  place of a problem, of pydantic.
    """
    keys, at = [], tree
    for part in loc:
        if isinstance(at, dict) and (isinstance(part, str) or part in at):
            keys.append(str(part))
            at = at.get(part)
        elif isinstance(at, list | tuple) and isinstance(part, int):
            keys.append(str(part))
            at = at[part] if part < len(at) else None
    return tuple(keys)

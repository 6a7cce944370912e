"""The way back: a model's weights under another project's names and in its layout."""

import re

import numpy as np
from keras import ops

from kgarden.errors import UserError
from kgarden.weights.state_dict import converted, is_of_training

# A variable of our layer -> a PyTorch module's tensor.
SUFFIXES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# What a pattern of a table is made of.
TOKEN = re.compile(
    r"\(\?:(?P<optional>[^()]*)\)\?|\((?P<group>[^()?][^()]*)\)|\\(?P<escaped>\W)|(?P<plain>.)"
)


def their_name(module, table, with_optional=True):
    """The other project's name of one of our modules: `our_name` read from right to left.

    Args:
        module:        such as "centernet2/backbone/res2_0/conv1"; a table knows its end.
        table:         pairs (regular expression of a module's name, replacement), the first that fits counts.
        with_optional: whether parts of a pattern that may be absent are written.
    Returns:
        their module, such as "backbone.bottom_up.res2.0.conv1", or None where the table says nothing.
    Raises:
        UserError: the table's pattern stands for several names.
    """
    for pattern, replacement in table:
        tokens = list(TOKEN.finditer(pattern))
        groups = [token["group"] for token in tokens if token["group"]]
        match = re.search(f"(?:^|/){_ours(replacement, groups)}$", module)
        if match:
            values = [match[f"g{number + 1}"] for number in range(len(groups))]
            return _filled(pattern, tokens, iter(values), with_optional)
    return None


def _ours(replacement, groups):
    """A replacement such as "backbone/res\\1" as a regular expression with named groups."""
    parts = re.split(r"\\(\d)", replacement)
    return "".join(
        f"(?P<g{part}>{groups[int(part) - 1]})" if number % 2 else re.escape(part)
        for number, part in enumerate(parts)
    )


def _filled(pattern, tokens, values, with_optional):
    written = []
    for token in tokens:
        if token["group"]:
            written.append(next(values))
        elif token["optional"] is not None:
            written.append(re.sub(r"\\(\W)", r"\1", token["optional"]) if with_optional else "")
        elif token["escaped"]:
            written.append(token["escaped"])
        elif token["plain"] in "\\[]*+?|":
            raise UserError(f"weights: {pattern!r} stands for several names, none of which can be chosen")
        else:
            written.append(token["plain"])
    return "".join(written)


def state_dict_of(layer, table, pool_size=7, conversions=(), with_optional=True):
    """A layer's weights as another project's state dict.

    Args:
        layer:         keras layer or model whose variables exist.
        table:         of that project.
        pool_size:     side of the RoI features that "fc1" reads.
        conversions:   triples as in `match_state_dict`; the inverse functions are applied.
        with_optional: see `their_name`.
    Returns:
        {name: array}, float32, in the order of the layer's variables.
    Raises:
        UserError: a variable that the table has no name for.
    """
    state = {}
    for variable in layer.weights:
        if is_of_training(variable.path):
            continue
        array = ops.convert_to_numpy(variable).astype("float32")
        written = _elements(variable.path, array, table, with_optional) or {
            _name_of(variable.path, table, with_optional): to_their_layout(
                array, pool_size if "/fc1/" in variable.path else None
            )
        }
        for name, value in written.items():
            state[name] = np.ascontiguousarray(converted(name, value, conversions, back=True))
    return state


def _name_of(path, table, with_optional):
    module, leaf = path.rsplit("/", 1)
    whole = their_name(f"{module}.{leaf}", table, with_optional)
    if whole is not None:  # a parameter that is no module's
        return whole
    name, suffix = their_name(module, table, with_optional), SUFFIXES.get(leaf, leaf)
    if name is None and module.endswith("/norm"):  # detectron2 has norms inside their convolutions
        name, suffix = their_name(module.removesuffix("/norm"), table, with_optional), f"norm.{suffix}"
    if name is None:
        raise UserError(f"weights: {path} has no name there")
    return f"{name}.{suffix}"


def _elements(path, array, table, with_optional):
    """A vector that is a list of modules there: {"head.scales.0.scale": (1,), ...}; others: {}."""
    if array.ndim > 1 or array.size > 16:
        return {}
    names = [their_name(f"{path}[{number}]", table, with_optional) for number in range(array.size)]
    elements = zip(names, array.ravel(), strict=True)
    return {f"{name}.scale": value.reshape(1) for name, value in elements if name}


def to_their_layout(array, pool_size=None):
    """HWIO -> OIHW; (in, out) -> (out, in), where `in` is (y, x, channel) here if `pool_size` is given."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim != 2:
        return array
    array = array.T
    if pool_size:
        channels = array.shape[1] // pool_size**2
        array = array.reshape(-1, pool_size, pool_size, channels).transpose(0, 3, 1, 2)
    return array.reshape(len(array), -1)

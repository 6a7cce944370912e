"""Loading of PyTorch state dicts through a table of names."""

import re

import numpy as np

from kgarden.errors import UserError

# A PyTorch module's tensor -> the variable of our layer.
SUFFIXES = {
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}

# What training remembers from step to step: no weight, and in no state dict.
OF_TRAINING = r".*/(step|average(_before|_step)?)"


def our_name(name, table):
    """A reference's name in our words, or None where the table says nothing.

    Args:
        name:  such as "backbone.fpn_lateral3.weight".
        table: pairs (regular expression of a module's name, replacement), the first that fits counts.
    Returns:
        "neck/lateral3.weight": our module and, behind the dot, the reference's suffix.
    """
    for pattern, replacement in table:
        match = re.fullmatch(pattern + r"((?:\.norm)?\.[a-z_]+)", name)
        if match:
            module = match.expand(replacement)
            return module + match.group(match.lastindex).replace(".norm.", "/norm.")
    return None


def to_our_layout(array, pool_size=None):
    """OIHW -> HWIO; (out, in) -> (in, out), where `in` is (channel, y, x) if `pool_size` is given."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim != 2:
        return array
    if pool_size:
        channels = array.shape[1] // pool_size**2
        array = array.reshape(-1, channels, pool_size, pool_size).transpose(0, 2, 3, 1)
    return array.reshape(len(array), -1).T


def load_state_dict(
    layer, state_dict, table, prefix="", pool_size=7, ignore=(), partial=False, conversions=()
):
    """Assign a reference's weights to a built model or layer.

    Args:
        layer:      keras layer or model whose variables exist.
        state_dict: {reference's name: array}.
        table:      see `our_name`.
        prefix:     put before every name, for a part's own state dict.
        pool_size:  side of the RoI features that "fc1" reads.
        ignore:     regular expressions of names without a counterpart here.
        partial:    variables without a value keep theirs, instead of raising.
        conversions: pairs (regular expression of a name, function of its array), where an array means
                    something else here: another order of classes, say.
    Raises:
        UserError: a name that the table does not know, a shape that does not fit, or a variable of the
            layer that got no value.
    """
    open_variables = {variable.path: variable for variable in layer.weights}
    for name, array in state_dict.items():
        full = prefix + name
        if any(re.fullmatch(pattern, full) for pattern in ignore):
            continue
        target = our_name(full, table)
        if target is None:
            raise UserError(
                f"weights: {full!r} has no counterpart in this model; leave it out or extend the table"
            )
        module, suffix = target.rsplit(".", 1)
        flattened = pool_size if module.endswith("/fc1") else None
        _assign(
            open_variables,
            module,
            suffix,
            array=to_our_layout(converted(full, np.asarray(array, "float32"), conversions), flattened),
            full=full,
        )
    left = [path for path in open_variables if not re.fullmatch(OF_TRAINING, path)]
    if left and not partial:
        raise UserError(f"weights: {len(left)} variables got no value, first {left[0]}")


def converted(name, array, conversions):
    """The array, changed by the first conversion whose pattern fits its name."""
    for pattern, function in conversions:
        if re.fullmatch(pattern, name):
            return function(array)
    return array


def _assign(open_variables, module, suffix, array, full):
    element = re.fullmatch(r"(.*)\[(\d+)\]", module)
    if element:
        return _assign_element(open_variables, *element.groups(), array, full)
    for leaf in _leaves(suffix, array.ndim):
        path = _find(open_variables, f"{module}/{leaf}")
        if path:
            variable = open_variables.pop(path)
            if tuple(variable.shape) != array.shape:
                raise UserError(
                    f"weights: {full} has shape {array.shape} here, {path} has {tuple(variable.shape)}"
                )
            return variable.assign(array)
    raise UserError(f"weights: {full!r}: this model has no {module}/{suffix}")


def _assign_element(open_variables, module, number, array, full):
    """Scalars of a list of modules that are one vector here; the vector leaves with its last element."""
    path = _find(open_variables, module)
    if not path:
        raise UserError(f"weights: {full!r}: this model has no {module}")
    variable = open_variables[path]
    values = np.array(variable.numpy() if hasattr(variable, "numpy") else variable)
    values[int(number)] = array.reshape(())
    variable.assign(values)
    if int(number) == len(values) - 1:
        del open_variables[path]


def _leaves(suffix, dimensions):
    if suffix == "weight":
        return ["gamma"] if dimensions == 1 else ["kernel"]
    return ["bias", "beta"] if suffix == "bias" else [SUFFIXES.get(suffix, suffix)]


def _find(open_variables, target):
    """A variable whose path ends like the target, or the other way round (a part outside its model)."""
    for path in open_variables:
        if f"/{path}".endswith(f"/{target}") or f"/{target}".endswith(f"/{path}"):
            return path
    return None

"""Loading of PyTorch state dicts through a table of names."""

import dataclasses
import functools
import re

import numpy as np
from keras import ops

from kgarden.errors import UserError

# A PyTorch module's tensor -> the variable of our layer.
SUFFIXES = {
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}

# What training remembers from step to step: no weight, and in no state dict.
OF_TRAINING = r".*/(step|average(_before|_step)?)"


def is_of_training(path):
    """Whether a variable's path is that of what training remembers."""
    return re.fullmatch(OF_TRAINING, path) is not None


def our_name(name, table):
    """A reference's name in our words, or None where the table says nothing.

    Args:
        name:  such as "backbone.fpn_lateral3.weight".
        table: pairs (regular expression of a module's name, replacement), the first that fits counts. A
               parameter that is no module's has a whole name instead: (r"net\\.w_1", "net/w.kernel").
    Returns:
        "neck/lateral3.weight": our module and, behind the dot, the reference's suffix.
    """
    for pattern, replacement in table:
        whole, with_suffix = _compiled(pattern)
        match = whole.fullmatch(name)
        if match:
            return match.expand(replacement)
        match = with_suffix.fullmatch(name)
        if match:
            module = match.expand(replacement)
            return module + match.group(match.lastindex).replace(".norm.", "/norm.")
    return None


@functools.cache  # a table may have more patterns than `re` remembers
def _compiled(pattern):
    return re.compile(pattern), re.compile(pattern + r"((?:\.norm)?\.[a-z_]+)")


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


@dataclasses.dataclass
class Matched:
    """What a state dict holds for a model.

    Attributes:
        values:  {path of a variable: array in our layout}.
        sources: {path: names in the state dict}, of the same variables.
        ignored: names that the source's table leaves out on purpose.
        unknown: {name: reason} of names without a counterpart here.
        misfits: {path: reason} of variables whose counterpart has another shape.
        missing: paths of variables without a value, misfits among them.
    """

    values: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sources: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    ignored: list[str] = dataclasses.field(default_factory=list)
    unknown: dict[str, str] = dataclasses.field(default_factory=dict)
    misfits: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)

    def assign_to(self, layer):
        """Gives the layer's variables their values."""
        variables = {variable.path: variable for variable in layer.weights}
        for path, value in self.values.items():
            variables[path].assign(value)


def match_state_dict(layer, state_dict, table, prefix="", pool_size=7, ignore=(), conversions=()):
    """Finds the variable of each array of a state dict; assigns nothing.

    Args:
        layer:      keras layer or model whose variables exist.
        state_dict: {reference's name: array}.
        table:      see `our_name`.
        prefix:     put before every name, for a part's own state dict.
        pool_size:  side of the RoI features that "fc1" reads.
        ignore:     regular expressions of names without a counterpart here.
        conversions: triples (regular expression of a name, function of its array, its inverse), where an
                    array means something else here: another order of classes, say.
    Returns:
        Matched.
    """
    matched = Matched()
    variables = {variable.path: variable for variable in layer.weights}
    open_paths = dict.fromkeys(variables)
    for name, array in state_dict.items():
        full = prefix + name
        target = our_name(full, table)
        if any(re.fullmatch(pattern, full) for pattern in ignore):
            matched.ignored.append(full)
            continue
        if target is None:
            matched.unknown[full] = "has no counterpart in this model; leave it out or extend the table"
            continue
        module, suffix = target.rsplit(".", 1)
        array = converted(full, np.asarray(array, "float32"), conversions)
        array = to_our_layout(array, pool_size if module.endswith("/fc1") else None)
        _place(matched, (variables, open_paths), (module, suffix), full=full, array=array)
    for path in open_paths.keys() & matched.values.keys():  # elements that are not there keep their values
        own = ops.convert_to_numpy(variables[path])
        matched.values[path] = np.where(np.isnan(matched.values[path]), own, matched.values[path])
    matched.missing = [path for path in open_paths if not is_of_training(path)]
    return matched


def load_state_dict(layer, state_dict, table, partial=False, **more):
    """Assigns a reference's weights to a built model or layer.

    Args:
        layer, state_dict, table: of `match_state_dict`, like all further arguments.
        partial: variables without a value keep theirs, instead of raising.
    Raises:
        UserError: a name that the table does not know, a shape that does not fit, or a variable of the
            layer that got no value.
    """
    matched = match_state_dict(layer, state_dict, table, **more)
    for name, reason in matched.unknown.items():
        raise UserError(f"weights: {name!r} {reason}")
    for reason in matched.misfits.values():
        raise UserError(f"weights: {reason}")
    if matched.missing and not partial:
        raise UserError(f"weights: {len(matched.missing)} variables got no value, first {matched.missing[0]}")
    matched.assign_to(layer)


def converted(name, array, conversions, back=False):
    """The array, changed by the first conversion whose pattern fits its name, or by the inverse of it."""
    for pattern, function, inverse in conversions:
        if re.fullmatch(pattern, name):
            return inverse(array) if back else function(array)
    return array


def _place(matched, places, target, full, array):
    """Notes the array under the open variable that it belongs to, or why there is none."""
    (variables, open_paths), (module, suffix) = places, target
    element = re.fullmatch(r"(.*)\[(\d+)\]", module)
    if element:
        return _place_element(matched, places, element.groups(), full=full, array=array)
    for leaf in _leaves(suffix, array.ndim):
        path = _find(open_paths, f"{module}/{leaf}")
        if path is None:
            continue
        shape = tuple(variables[path].shape)
        if shape != array.shape:
            matched.misfits[path] = f"{full} has shape {array.shape} here, {path} has {shape}"
            return None
        del open_paths[path]
        matched.values[path] = array
        matched.sources[path] = [full]
        return None
    matched.unknown[full] = f"fits nothing: this model has no {module}/{suffix}"
    return None


def _place_element(matched, places, element, full, array):
    """Scalars of a list of modules that are one vector here; the vector is complete when none is open."""
    (variables, open_paths), module, number = places, element[0], int(element[1])
    path = _find(open_paths, module)
    if path is None or number >= variables[path].shape[0]:
        matched.unknown[full] = f"fits nothing: this model has no {module}[{number}]"
        return
    shape = tuple(variables[path].shape)
    values = matched.values.setdefault(path, np.full(shape, np.nan, "float32"))
    values[number] = array.reshape(())
    matched.sources.setdefault(path, []).append(full)
    if not np.isnan(values).any():
        del open_paths[path]


def _leaves(suffix, dimensions):
    if suffix == "weight":
        return ["gamma"] if dimensions == 1 else ["kernel"]
    return ["bias", "beta"] if suffix == "bias" else [SUFFIXES.get(suffix, suffix)]


def _find(open_paths, target):
    """A variable whose path ends like the target, or the other way round (a part outside its model)."""
    for path in open_paths:
        if f"/{path}".endswith(f"/{target}") or f"/{target}".endswith(f"/{path}"):
            return path
    return None

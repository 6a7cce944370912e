"""YAML of strangers: a safe loader with bounds on size, depth, aliases and digits.

A few lines of YAML can stand for billions of values (aliases of aliases), for a value inside itself, or for
a number that takes minutes to convert. Such a file is refused with its line before anything is built from it.
"""

import yaml

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50  # levels of mappings and lists
MAX_NODES = 100_000  # values, where each use of an alias counts as a copy
MAX_DIGITS = 30  # of an integer
TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")
}


class BoundedLoader(yaml.SafeLoader):
    """Safe loader of YAML within the bounds of this file; all that it refuses is a yaml.YAMLError.

    Values are text, numbers, true, false, null, lists and mappings; keys are scalars. Dates stay text.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self._depth, self._nodes, self._size_of = 0, 0, {}

    def compose_node(self, parent, index):
        mark, is_alias, before = self.peek_event().start_mark, self.check_event(yaml.AliasEvent), self._nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._size_of:
            raise _refused("a value that contains itself", mark)
        self._nodes += self._size_of[node] if is_alias else 1
        if self._nodes > MAX_NODES:
            raise _refused(f"more than {MAX_NODES} values, aliases included", mark)
        self._size_of.setdefault(node, self._nodes - before)
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key that is a list or a mapping; keys are text", key.start_mark)
        return node

    def construct_object(self, node, deep=False):
        if node.tag not in TAGS:
            raise _refused(f"the tag {node.tag!r} is not supported", node.start_mark)
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MAX_DIGITS:
            raise _refused(f"a number of more than {MAX_DIGITS} digits", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, IndexError) as error:  # `!!int abc`, `!!float ""`
            kind = node.tag.rpartition(":")[2]
            raise _refused(f"{str(node.value)[:40]!r} is no {kind} ({error})", node.start_mark) from None


BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(text, loader=BoundedLoader):
    """Parse a YAML text -> its value.

    Args:
        text:   str.
        loader: BoundedLoader or a class derived from it.
    Raises:
        yaml.YAMLError: not valid, or beyond a bound; `line_of` and `reason_of` describe it.
    """
    return yaml.load(bounded(text), loader)


def bounded(text):
    """The text itself.

    Raises:
        yaml.YAMLError: it is longer than MAX_CHARACTERS.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS} characters")
    return text


def line_of(error):
    """Line of a yaml.YAMLError, from 1, or None."""
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else None


def reason_of(error):
    """What a yaml.YAMLError says, in one line."""
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _refused(problem, mark):
    return yaml.constructor.ConstructorError(None, None, problem, mark)

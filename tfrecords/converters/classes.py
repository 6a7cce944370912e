"""Classes of a build: which classes of the source are kept, under which name, and in which order."""

from tfrecords.conversion_report import Fault
from tfrecords.labels import read_labels
from tfrecords.schema import DataError

NOT_LISTED = "its class is not in the list"  # the reason of boxes of classes that are not chosen
NAMED = 8  # classes of the source that a message names


class Classes:
    """Renames the classes of a source, joins those of one name, and chooses and orders them by a list.

    All renamings apply at once: a=b and b=a swap two names. The list, which holds the new names, is applied
    last; without one all classes are kept.

    Args:
        listed: file with a class list, in label order, see `tfrecords.labels.read_labels`; its ids become the
                category ids. None: all classes.
        rename: {old name: new name}; classes with the same new name are joined. None: none.
    Raises:
        DataError: the list cannot be read or has a name twice, or a new name is empty.
    """

    def __init__(self, listed=None, rename=None):
        self.path, self.rename = listed, dict(rename or {})
        self.listed = _distinct(read_labels(listed), listed) if listed else None
        if not all(name.strip() for name in self.rename.values()):
            raise DataError("rename: a new class name is empty")

    def of_names(self, names, source, faults):
        """Classes of a source that has names alone; without a list they are numbered alphabetically from 1.

        Args:
            names:  of the source.
            source: where they are, for messages.
            faults: Faults, to which renamings without effect are added.
        Returns:
            ([{"id", "name"}, ...] in label order, {name in the source: id}); names that are not chosen have
            no id.
        Raises:
            DataError: the list has no class of the source.
        """
        new = {name: self.rename.get(name, name) for name in names}
        self._check(new, source, faults)
        categories = self.listed or [
            {"id": number, "name": name} for number, name in enumerate(sorted(set(new.values())), 1)
        ]
        number_of = {category["name"]: category["id"] for category in categories}
        return categories, {old: number_of[name] for old, name in new.items() if name in number_of}

    def of_categories(self, categories, source, faults):
        """Classes of a source that has ids; without a list each keeps its id, joined ones the first of them.

        Args:
            categories: [{"id", "name"}, ...] of the source, in label order.
            source, faults: as in `of_names`.
        Returns:
            ([{"id", "name"}, ...] in label order, {id in the source: id}), as in `of_names`.
        Raises:
            DataError: as in `of_names`.
        """
        new = {one["id"]: self.rename.get(one["name"], one["name"]) for one in categories}
        self._check({one["name"]: new[one["id"]] for one in categories}, source, faults)
        if self.listed:
            number_of = {category["name"]: category["id"] for category in self.listed}
            return self.listed, {old: number_of[name] for old, name in new.items() if name in number_of}
        kept, joined, number_of = [], {}, {}
        for one in categories:
            name = new[one["id"]]
            # only renaming joins: classes that the source itself names alike stay apart
            first = joined.setdefault(name, one["id"]) if name in self.rename.values() else one["id"]
            number_of[one["id"]] = first
            if first == one["id"]:
                kept.append({**one, "name": name})
        return kept, number_of

    def _check(self, new, source, faults):
        faults.remarks += [
            Fault(f"rename {old}={name}", "no class of the data set has this name")
            for old, name in self.rename.items()
            if old not in new
        ]
        if self.listed and new and not set(new.values()) & {one["name"] for one in self.listed}:
            found = sorted(set(new.values()))
            named = ", ".join(found[:NAMED]) + f" and {len(found) - NAMED} more" * (len(found) > NAMED)
            raise DataError(f"{self.path}: none of its classes is in {source}, which has: {named}")


def _distinct(categories, path):
    names = [category["name"] for category in categories]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a class name is listed twice")
    return categories

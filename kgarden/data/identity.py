"""Identity of data sets: what a run remembers of its data, and how other data differ.

A shard is identified by the digest in the manifest beside it, a shard of other tools by name, size and number
of records. Moved or renamed shards are the same data.
"""

import collections
import hashlib
import pathlib

from kgarden.errors import UserError
from tfrecords.labels import difference
from tfrecords.write import read_manifest

NAMED = 3  # shards that a line names


def identity_of(dataset) -> dict:
    """Returns what identifies a data set, as JSON types.

    Args:
        dataset: kgarden.data.sources.Dataset.
    Returns:
        {"images", "objects", "masks": counts, "shards": {name: digest}, "ground_truth": digest}
    """
    folders = [pathlib.Path(path).parent for path in dataset.annotations]
    manifests = [read_manifest(folder) for folder in folders]
    listed = {
        _path_of(one["file"], folder): one
        for folder, manifest in zip(folders, manifests, strict=True)
        for one in manifest["shards"]
    }
    files = [pathlib.Path(file) for file in dataset.index.files]
    return {
        "images": len(dataset.index),
        "objects": int(dataset.index.objects.sum()),
        "masks": sum(masks_in(manifest) for manifest in manifests),
        "shards": {
            name: _digest(file, listed.get(file, {})) for name, file in zip(_names(files), files, strict=True)
        },
        "ground_truth": _digest_of_files(dataset.annotations),
    }


def masks_in(manifest: dict) -> int:
    """Returns the number of masks that the records of a data set hold, by its manifest.

    The manifest counts the masks of the annotations, which evaluation reads; `--no-masks` leaves them out of
    the records.
    """
    return manifest.get("masks", 0) if manifest.get("source", {}).get("masks", True) else 0


def _path_of(listed, folder):
    """Path of a shard that a manifest lists: by its name in the folder, or by its path (of other tools)."""
    path = pathlib.Path(listed)
    return folder / path if path.name == listed else path


def _names(files):
    """Names of shards, with as many of their folders as it takes to tell them apart."""
    names = []
    for count in range(1, max((len(file.parts) for file in files), default=0) + 1):
        names = ["/".join(file.parts[-count:]) for file in files]
        if len(set(names)) == len(set(files)):
            break
    return names


def _digest(file, entry):
    size = file.stat().st_size
    if entry.get("bytes") == size and "sha256" in entry:
        return entry["sha256"]
    return f"{file.name}, {entry.get('records')} records, {size} bytes"


def _digest_of_files(paths):
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def changes(before: dict, now: dict) -> list[str]:
    """Describes how data differ from those that a run remembers, a line for each difference.

    Args:
        before: {"train": [of `identity_of`, ...], "val": [...]}, remembered.
        now:    the same of the data at hand; splits that it lacks are not compared.
    Returns:
        ["data.val: 4 images, 6 when the run began", ...]
    """
    lines = []
    for split, sets in now.items():
        old = before.get(split, [])
        if len(sets) != len(old):
            lines.append(f"data.{split}: {len(sets)} data sets, {len(old)} when the run began")
            continue
        for number, pair in enumerate(zip(old, sets, strict=True)):
            name = f"data.{split}[{number}]" if len(sets) > 1 else f"data.{split}"
            lines += [f"{name}: {line}" for line in _differences(*pair)]
    return lines


def _differences(before, now):
    lines = [
        f"{now[key]} {what}, {before[key]} when the run began"
        for key, what in (("images", "images"), ("objects", "objects"), ("masks", "objects with a mask"))
        if now[key] != before[key]
    ]
    old, new = before["shards"], now["shards"]
    moved = collections.Counter(old.values()) & collections.Counter(new.values())
    changed = [name for name in new if name in old and new[name] != old[name]]
    missing = [name for name in old if name not in new and old[name] not in moved]
    added = [name for name in new if name not in old and new[name] not in moved]
    if missing and added and not changed and not moved:
        lines.append(f"all {len(new)} shards differ from the {len(old)} of the run")
    else:
        lines += [f"{_shards(missing)} missing"] * bool(missing) + [f"{_shards(added)} new"] * bool(added)
    if changed:
        lines.append(f"the contents of {_some(changed)} differ: other images, boxes or masks")
    if not lines and now["ground_truth"] != before["ground_truth"]:
        lines.append("annotations.json differs: another ground truth")
    return lines


def _some(names):
    more = f" and {len(names) - NAMED} more shards" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shards(names):
    return f"{_some(names)} {'is' if len(names) == 1 else 'are'}"


def check_equal_classes(recipe, datasets: dict[str, list]) -> None:
    """Raises UserError, with the difference and the way out, unless all data sets have the same classes.

    Args:
        recipe:   names the sources.
        datasets: {"train": [Dataset, ...], "val": [...]}.
    """
    first = None
    for split, sets in datasets.items():
        for dataset, name in zip(sets, source_names(recipe, split), strict=False):
            first = first or (dataset.categories, name)
            check_classes(*first, dataset.categories, name)


def check_classes(expected: list[dict], where: str, found: list[dict], source: str) -> None:
    """Raises UserError, with the difference and the way out, if two lists of classes differ.

    Args:
        expected, found: [{"id", "name"}, ...] in label order.
        where, source:   what has them, for the message.
    """
    if how := difference(expected, found, names=[one.split(" (")[0] for one in (where, source)]):
        raise UserError(
            f"{source} has other classes than {where}: {how}. Give both one list (classes: FILE in the "
            f"recipe, --classes FILE of kgarden data build; a COCO JSON is one too), and rename: what is "
            f"called differently"
        )


def source_names(recipe, split: str) -> list[str]:
    """Returns the names of the recipe's sources of train or val in messages: ["data.val (val.json)"]."""
    sources = getattr(recipe.data, split)
    names = []
    for number, one in enumerate(sources):
        key = f"data.{split}[{number}]" if len(sources) > 1 else f"data.{split}"
        names.append(f"{key} ({one.glob or one.annotations or one.root or one.format})")
    return names

"""Image names as other systems write them: finds the file of a folder that an annotation means.

A name is, in this order, the file at that path; the path with backslashes for slashes, in another Unicode
normal form (macOS decomposes accents) or in other capitals; what a URL or a path of Label Studio leads to;
the name without the marks that labelling tools add. Of a path that leads elsewhere (another drive, a prefix
such as images/) the trailing part counts, down to the base name: the one image of that name in the folder is
taken, and this is remarked; several are an error.
"""

import dataclasses
import functools
import os
import pathlib
import re
import unicodedata
import urllib.parse

from tfrecords.images import MISSING, UNREAD_SUFFIXES, suffixes
from tfrecords.schema import DataError

OUTSIDE = "file_name must be a relative path that stays in the folder"
ELSEWHERE = "not at this path: the one file of its name in the folder is taken"
LINKED = "a symbolic link that leaves the folder: followed"
SHOWN = 3  # images that the message about an ambiguous name lists

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*/")  # of a URL with its host or bucket
DRIVE = re.compile(r"^[A-Za-z]:")
LABEL_STUDIO = re.compile(r"/data/local-files/?\?d=")
UPLOADED = re.compile(r"^(?!(?:19|20)\d{6})[0-9a-f]{8}-(?=.)")  # Label Studio: abcd1234-name.jpg; no date
ROBOFLOW = re.compile(r"^(.+)[_.-](?:jpe?g|png|bmp|tiff?|webp|gif)\.rf\.[0-9A-Za-z]{8,}$", re.IGNORECASE)


class NotFound(DataError):
    """No file has this name; the message is the reason alone."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A file of a folder.

    name:   its path relative to the folder, with slashes.
    remark: why this is not plainly what was written, or None.
    """

    name: str
    remark: str | None = None


class ImageFolder:
    """A folder whose images are found by the names that annotations give them.

    The folder is listed when the first name is not at its path, and once. `linked` has the linked folders in
    it, which are not searched.
    """

    def __init__(self, folder):
        self.folder, self.linked = pathlib.Path(folder), []
        self._inside = {}  # real path of a directory -> whether it is in the folder

    def find(self, name):
        """The file that a name means -> Found.

        Raises:
            NotFound:  there is none.
            DataError: there are several, or the name leaves the folder; the message is the reason alone.
        """
        here = self._relative(name)
        if is_safe(here) and os.path.isfile(self.folder / here):
            return self._found(pathlib.PurePosixPath(here).as_posix(), None)
        return self._found(*self.names.find(here))

    def find_stem(self, stem, preferred=""):
        """The image whose path without ending is this -> Found.

        Args:
            stem:      path of an annotation file without its ending.
            preferred: base name that decides between images which differ in their endings.
        Raises:
            NotFound, DataError: as `find`.
        """
        return self._found(*self.stems.find(stem, preferred))

    @functools.cached_property
    def files(self):
        """Every file of the folder and its subfolders, sorted; not of hidden folders and linked ones."""
        files = []
        for folder, folders, names in os.walk(self.folder):
            self.linked += [
                os.path.join(folder, name) for name in folders if os.path.islink(os.path.join(folder, name))
            ]
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = pathlib.PurePath(folder).relative_to(self.folder).as_posix()
            files += names if here == "." else [f"{here}/{name}" for name in names]
        return sorted(files, key=lambda name: name.split("/"))

    @functools.cached_property
    def images(self):
        """The files with the ending of an image, of formats that are not read too."""
        endings = suffixes() | UNREAD_SUFFIXES
        return [name for name in self.files if os.path.splitext(name)[1].lower() in endings]

    @functools.cached_property
    def names(self):
        """`Names` of the files."""
        return Names(self.files)

    @functools.cached_property
    def stems(self):
        """`Names` of the images without their endings."""
        return Names(self.images, ending=False)

    def _relative(self, name):
        """An absolute path into the folder -> the path in it; any other name as it is."""
        if os.path.isabs(name) and is_valid(name):
            for folder in (os.path.abspath(self.folder), self._real):
                if pathlib.PurePath(name).is_relative_to(folder):
                    return pathlib.PurePath(name).relative_to(folder).as_posix()
        return name

    @functools.cached_property
    def _real(self):
        return os.path.realpath(self.folder)

    def _found(self, name, remark):
        path = self.folder / name
        parent = path.parent
        if parent not in self._inside:
            self._inside[parent] = self._is_inside(parent)
        leaves = not self._inside[parent] or (path.is_symlink() and not self._is_inside(path))
        return Found(name, LINKED if leaves else remark)

    def _is_inside(self, path):
        return pathlib.PurePath(os.path.realpath(path)).is_relative_to(self._real)


class Names:
    """Known relative paths, found by what other systems make of them.

    Args:
        names:  relative paths with slashes.
        ending: False: they are found without their endings.
    """

    def __init__(self, names, ending=True):
        self.ending = ending
        self.parts = {name: _parts(name if ending else os.path.splitext(name)[0]) for name in names}
        self._tables, self._ends = {}, {}

    def find(self, name, preferred=""):
        """The known path that a name means -> (path, remark or None).

        Args:
            name:      what is written.
            preferred: base name that decides between paths that differ in their endings.
        Raises:
            NotFound, DataError: as `ImageFolder.find`.
        """
        readings = list(_readings(name)) if is_valid(name) else []
        if not readings or any(".." in parts for parts, _ in readings):
            raise DataError(OUTSIDE)
        for parts, is_relative in readings:
            for spelling, base in self._keys(parts[-1]):
                if base in self._by(spelling):
                    best = self._best(spelling, base, parts, preferred)
                    same = is_relative and _all(_composed, parts) == _all(_composed, self.parts[best])
                    return best, None if same else ELSEWHERE
        base = readings[0][0][-1]
        raise NotFound(MISSING if is_safe(name) else f"{OUTSIDE}, and no file {base!r} is in it")

    def get(self, name):
        """The known path that a name means, or None if there is none, or several."""
        try:
            return self.find(name)[0]
        except DataError:
            return None

    def _keys(self, base):
        """Where a base name is looked up: [(spelling of the known names, key), ...], the plainest first.

        A name with marks means one without; not one with other marks, which is another image.
        """
        plain, unmarked = self._spelled(folded, base), self._spelled(_unmarked, base)
        marks = folded if unmarked != plain else _unmarked
        return (_composed, self._spelled(_composed, base)), (folded, plain), (marks, unmarked)

    def _best(self, spelling, base, parts, preferred):
        """Of the paths with a base name, the one that shares most trailing folders."""
        found = self._by(spelling)[base]
        if len(found) > 1:
            found = self._with_folders(spelling, base, _all(folded, parts[:-1]))
        if len(found) > 1 and preferred:
            found = [name for name in found if name.rsplit("/", 1)[-1] == preferred] or found
        if len(found) > 1:
            listed = ", ".join(found[:SHOWN]) + ", ..." * (len(found) > SHOWN)
            raise DataError(f"ambiguous: {len(found)} files in the folder have this name: {listed}")
        return found[0]

    def _with_folders(self, spelling, base, folders):
        """The paths with a base name that end in most of these folders, or are these folders alone."""
        if (spelling, base) not in self._ends:
            ends = self._ends[spelling, base] = {}
            for name in self._by(spelling)[base]:
                known = _all(folded, self.parts[name][:-1])
                ends.setdefault((None, *known), []).append(name)
                for start in range(len(known) + 1):
                    ends.setdefault(known[start:], []).append(name)
        ends = self._ends[spelling, base]
        starts = range(len(folders) + 1)
        return next(ends[key] for n in starts for key in ((None, *folders[n:]), folders[n:]) if key in ends)

    def _by(self, spelling):
        """{base name in a spelling: [known path]}, made when first asked for."""
        if spelling not in self._tables:
            table = self._tables[spelling] = {}
            for name, parts in self.parts.items():
                table.setdefault(self._spelled(spelling, parts[-1]), []).append(name)
        return self._tables[spelling]

    def _spelled(self, spelling, base):
        stem, ending = os.path.splitext(base) if self.ending else (base, "")
        return spelling(stem) + (spelling(ending) if ending else "")


def slashed(path):
    """A path with the separators of Windows replaced."""
    return path.replace("\\", "/")


def is_safe(name):
    """Whether a name is a valid relative path that stays inside its folder, on every system."""
    path = pathlib.PurePosixPath(slashed(name))
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and is_valid(name) and ":" not in path.parts[0]


def is_valid(name):
    """Whether a name can be that of a file: no NUL, no lone surrogates."""
    return "\0" not in name and name.encode("utf-8", "replace").decode("utf-8") == name


def _readings(name):
    """What a name may mean: (folders and base name, whether relative), the likeliest first."""
    plain = slashed(name)
    inner, seen = _unwrapped(plain), set()
    for text in (inner, slashed(urllib.parse.unquote(inner)), plain, name):
        local = DRIVE.sub("", text)
        parts = tuple(part for part in local.split("/") if part not in ("", "."))
        if parts and parts not in seen and is_valid(text):
            seen.add(parts)
            yield parts, local == text and not local.startswith("/")


def _parts(path):
    """Folders and base name of a known path."""
    return tuple(part for part in slashed(path).split("/") if part not in ("", ".")) or (path,)


def _unwrapped(name):
    """The path inside a URL or a path of Label Studio."""
    if match := LABEL_STUDIO.search(name):
        return name[match.end() :]
    return SCHEME.sub("", name).split("?", 1)[0] if SCHEME.match(name) else name


def _composed(text):
    """In Unicode normal form C."""
    return unicodedata.normalize("NFC", text)


def folded(text):
    """Without the difference of capitals."""
    return _composed(_composed(text).casefold())


def _unmarked(text):
    """Without what Label Studio puts before a name and Roboflow behind it."""
    stem = UPLOADED.sub("", text)
    match = ROBOFLOW.match(stem)
    return folded(match.group(1) if match else stem)


def _all(function, parts):
    return tuple(map(function, parts))

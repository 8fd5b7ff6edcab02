"""Find the images that a command line names: files, folders, globs and URLs."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenvl_kit.captions.sidecars import IMAGE_SUFFIX
from qwenvl_kit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Search:
    """How folders are searched; hidden files and folders never are.

    Attributes
    ----------
    recursive : bool
        Search the folders below too. Links to folders are not followed.
    only_images : bool
        Only files with a suffix of images.
    exclude : sequence of str
        Globs of files to leave out, matched with the name and with the path from the folder.
    """

    recursive: bool = False
    only_images: bool = False
    exclude: Sequence[str] = ()

    def files(self, folder: str) -> list[str]:
        """Return the files of a folder, sorted."""
        found = _walk(folder) if self.recursive else _listed(folder)
        return sorted(path for path in found if self.takes(path, os.path.relpath(path, folder)))

    def takes(self, path: str, shown: str) -> bool:
        """Return whether a file is wanted."""
        names = (os.path.basename(path), shown)
        if any(fnmatch.fnmatch(name, pattern) for name in names for pattern in self.exclude):
            return False
        return not self.only_images or IMAGE_SUFFIX.fullmatch(os.path.splitext(path)[1]) is not None

    def __str__(self) -> str:
        what = "images" if self.only_images else "files"
        return f"{what} beside those of --exclude" if self.exclude else what


_ALL = Search()


def images_in(places: Sequence[str], search: Search = _ALL) -> Iterator[str]:
    """Yield URLs and files, and the files of each folder and glob, sorted.

    A glob is a place that names no file; ``**`` stands for any number of folders.

    Raises
    ------
    ConfigError
        There is no such folder, or no file in it.
    """
    for place in places:
        path = os.path.expanduser(place)
        is_local = "://" not in place
        if is_local and os.path.isdir(path):
            yield from _files(path, place, search)
        elif is_local and place.endswith(("/", os.sep)):
            raise ConfigError(f"No folder {place}. Relative paths start from {Path.cwd()}.")
        elif is_local and glob.has_magic(path) and not os.path.exists(path):
            yield from _matches(path, place, search)
        else:
            yield place


def cell_of(place: str) -> str:
    """Return the cell of a file; names with outer white space become URIs, since cells are stripped."""
    return Path(os.path.abspath(place)).as_uri() if place != place.strip() and os.path.isfile(place) else place


def _files(folder: str, shown: str, search: Search) -> list[str]:
    try:
        found = search.files(folder)
    except OSError as error:
        raise ConfigError(
            f"Cannot read the folder {shown}: {error.strerror}. Pass files, or another folder."
        ) from error
    if not found:
        raise ConfigError(f"The folder {shown} contains no {search}. Pass files, or another folder.")
    return found


def _matches(pattern: str, shown: str, search: Search) -> list[str]:
    found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path) and search.takes(path, path)]
    if not found:
        raise ConfigError(f"The glob {shown} matches no {search}. Relative paths start from {Path.cwd()}.")
    return sorted(found)


def _listed(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if entry.is_file() and not entry.name.startswith(".")]


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (os.path.join(parent, name) for name in names if not name.startswith("."))
        yield from filter(os.path.isfile, paths)


def _raise(error: OSError) -> None:
    raise error

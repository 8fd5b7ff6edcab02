"""Find the images that a command line names: files, folders and URLs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qwenvl_kit.errors import ConfigError


def images_in(places: list[str]) -> Iterator[str]:
    """Yield URLs and files, and the files of each folder, sorted, without hidden ones."""
    for place in places:
        path = os.path.expanduser(place)
        if "://" not in place and os.path.isdir(path):
            yield from _files(path, place)
        elif "://" not in place and place.endswith(("/", os.sep)):
            raise ConfigError(f"No folder {place}. Relative paths start from {Path.cwd()}.")
        else:
            yield place


def cell_of(place: str) -> str:
    """Return the cell of a file; names with outer white space become URIs, since cells are stripped."""
    return Path(os.path.abspath(place)).as_uri() if place != place.strip() and os.path.isfile(place) else place


def _files(folder: str, shown: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.path for entry in entries if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the folder {shown}: {error.strerror}. Pass files, or another folder."
        ) from error
    if not found:
        raise ConfigError(f"The folder {shown} contains no files. Pass files, or another folder.")
    return found

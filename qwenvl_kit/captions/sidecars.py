"""Write captions to text files beside their images, as programs that train on folders read them.

A file is written under another name and renamed when it is complete, so a process that is killed leaves no part of a
caption. What could stop a write is looked for before any model loads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from qwenvl_kit.captions.image_files import image_file
from qwenvl_kit.errors import ConfigError, RowError, printable

if TYPE_CHECKING:
    from qwenvl_kit.options import ImageSrcType

Existing = Literal["skip", "overwrite", "append"]

IMAGE_SUFFIX = re.compile(
    r"\.(avif|bmp|gif|hei[cf]|hif|ico|j2k|jfif|jp2|jpe|jpe?g|jpx|mpo|png|tiff?|webp)", re.IGNORECASE
)
"""Suffixes of files that are taken for images."""

_SUFFIX = re.compile(r"\.[^/\\\0]+")
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The text files of a call.

    Attributes
    ----------
    paths : tuple of str or None
        One per row; None for rows without an image.
    existing : {"skip", "overwrite", "append"}
        What happens to files that exist.
    """

    paths: tuple[str | None, ...]
    existing: Existing = "skip"

    @classmethod
    def of(
        cls,
        cells: Sequence[object],
        suffix: str,
        existing: Existing = "skip",
        image_src_type: ImageSrcType = "auto",
    ) -> Sidecars:
        """Name the file of each row, and check that it can be written.

        Parameters
        ----------
        cells : sequence
            The images.
        suffix : str
            Takes the place of the image's, such as ``.txt``.
        existing : {"skip", "overwrite", "append"}
            ``skip`` keeps files with a caption and does not ask for one, ``append`` adds a line.
        image_src_type : str
            How to read texts and bytes among the cells.

        Raises
        ------
        ConfigError
            The suffix is not one of text files, an image is no local file, two images have one text file, or a folder
            cannot be written.
        """
        check_suffix(suffix)
        if existing not in get_args(Existing):
            raise ConfigError(f"existing={existing!r} is invalid. Use skip, overwrite or append.")
        images = [_image_of(row, cell, image_src_type) for row, cell in enumerate(cells)]
        sidecars = cls(tuple(image and os.path.splitext(image)[0] + suffix for image in images), existing)
        _check_distinct(images, sidecars.paths)
        for folder in dict.fromkeys(os.path.dirname(path) for path in sidecars.paths if path):
            _check_folder(folder)
        for path in filter(None, sidecars.paths):
            if os.path.isdir(path):
                raise ConfigError(f"sidecar={suffix!r} names {_shown(path)}, which is a folder. Use another suffix.")
        return sidecars

    def kept(self, row: int) -> str | None:
        """Return the caption that a row's file has and keeps; None where the row is to be asked.

        A blank file counts as none.
        """
        path = self.paths[row]
        if self.existing != "skip" or path is None:
            return None
        return read_caption(path) or None

    def write(self, row: int, caption: str) -> None:
        """Write the caption of a row.

        With ``append``, a file that ends with this very caption stays as it is.

        Raises
        ------
        RowError
            It cannot be written, of the stage ``write``.
        """
        path = self.paths[row]
        if path is None:
            return
        try:
            before = read_caption(path) if self.existing == "append" else ""
            if before == caption or before.endswith(f"\n{caption}"):
                return
            write_text(path, f"{before}\n{caption}" if before else caption)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise RowError("write", f"Cannot write {_shown(path)}: {why}. The caption is in the results.") from error


def check_suffix(suffix: str) -> None:
    """Raise ConfigError for a suffix that no text file beside an image can have."""
    if not isinstance(suffix, str) or not _SUFFIX.fullmatch(suffix):
        raise ConfigError(f"sidecar={suffix!r} is invalid. Use a suffix that begins with a dot, such as '.txt'.")
    if IMAGE_SUFFIX.fullmatch(suffix):
        raise ConfigError(f"sidecar={suffix!r} is a suffix of images, which would be overwritten. Use '.txt'.")


def read_caption(path: str) -> str:
    """Return the text of a file without outer white space; empty where there is no file."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as file:
        return file.read().decode("utf-8-sig", "replace").strip()
    return ""


def write_text(path: str, text: str) -> None:
    """Write a file in UTF-8 that is there as a whole or not at all, also after a power cut.

    Raises
    ------
    OSError, UnicodeEncodeError
        It cannot be written; an earlier file is as it was.
    """
    data = text.encode()
    path = os.path.realpath(path)  # a link stays one
    partial = _partial(path)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def _partial(path: str) -> str:
    """Return a hidden name of fixed length, which the next write of the same file takes again."""
    folder, name = os.path.split(path)
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return os.path.join(folder, f".{digest}.qwenvl_kit.partial")


def _image_of(row: int, cell: object, image_src_type: ImageSrcType) -> str | None:
    try:
        return image_file(cell, image_src_type)
    except RowError as error:
        raise ConfigError(
            f"sidecar= needs a file for each image. Row {row}: {error.message} Leave the row or sidecar out."
        ) from error


def _check_distinct(images: Sequence[str | None], paths: Sequence[str | None]) -> None:
    owners: dict[str, tuple[int, str]] = {}
    for row, (image, path) in enumerate(zip(images, paths, strict=True)):
        if image is None or path is None:
            continue
        other, name = owners.setdefault(path, (row, image))
        if other != row:
            what = "are the same image" if name == image else f"{_shown(name)} and {_shown(image)}, have one stem"
            raise ConfigError(
                f"Rows {other} and {row}{' ' if name == image else ', '}{what}: both captions would be "
                f"{_shown(path)}. Leave one out, or rename it."
            )
    known = set(images)
    if taken := [path for path in owners if path in known]:
        raise ConfigError(f"The caption {_shown(taken[0])} would overwrite an image. Use another suffix.")


def _check_folder(folder: str) -> None:
    """Raise ConfigError for a folder where no file can be created; one that does not exist has no images either."""
    if not os.path.isdir(folder):
        return
    trial = os.path.join(folder, f".{os.getpid()}.qwenvl_kit.partial")
    try:
        os.close(os.open(trial, os.O_CREAT | os.O_WRONLY, 0o600))
        os.unlink(trial)
    except OSError as error:
        raise ConfigError(
            f"No text file can be written to the folder {_shown(folder)}: {error.strerror}. Make it writable, or leave "
            "sidecar out."
        ) from error


def _shown(path: str) -> str:
    return printable(os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path)), _SHOWN)

"""Return the file of a cell's image, and the names that a prompt may quote."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from qwenvl_kit.errors import RowError
from qwenvl_kit.images import classify
from qwenvl_kit.images.fetch.files import local_path

if TYPE_CHECKING:
    from qwenvl_kit.options import ImageSrcType
    from qwenvl_kit.types import ImageSource


def image_file(cell: object, image_src_type: ImageSrcType = "auto") -> str | None:
    """Return the absolute path of a cell's image; None for a null cell.

    Raises
    ------
    RowError
        The cell has several images, or one that is no local file, of the stage ``write``.

    Examples
    --------
    >>> image_file("/data/a.png"), image_file(None)
    ('/data/a.png', None)
    """
    sources = _sources(cell, image_src_type)
    if not sources:
        return None
    if len(sources) > 1 or sources[0].kind != "path":
        what = f"has {len(sources)} images" if len(sources) > 1 else f"is no local file, but {sources[0].label}"
        raise RowError("write", f"The cell {what}, so no text file can stand beside it.")
    return os.path.abspath(local_path(str(sources[0].value)))


def file_names(cell: object, image_src_type: ImageSrcType = "auto") -> dict[str, str]:
    r"""Return ``name``, ``stem`` and ``folder`` of a cell's first image; undecodable bytes are replaced.

    Raises
    ------
    RowError
        The image has no file name, of the stage ``generate``.

    Examples
    --------
    >>> file_names("https://example.org/dogs/rex%201.jpg?size=2")
    {'name': 'rex 1.jpg', 'stem': 'rex 1', 'folder': 'dogs'}
    """
    sources = _sources(cell, image_src_type)
    path = _path(sources[0]) if sources else None
    if path is None or not path.name:
        raise RowError("generate", "The prompt quotes the name of the image's file, and the image has none.")
    names = {"name": path.name, "stem": path.stem, "folder": path.parent.name}
    return {field: text.encode("utf-8", "replace").decode() for field, text in names.items()}


def _sources(cell: object, image_src_type: ImageSrcType) -> tuple[ImageSource, ...]:
    return classify(cell, image_src_type)


def _path(source: ImageSource) -> PurePosixPath | None:
    if source.kind == "path":
        return PurePosixPath(os.path.abspath(local_path(str(source.value))).replace(os.sep, "/"))
    if source.kind in ("url", "remote"):
        return PurePosixPath(unquote(urlsplit(str(source.value)).path))
    return None

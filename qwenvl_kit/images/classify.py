"""Classify the content of a cell: URL, path, base64, bytes, Pillow image or array.

Nothing is read here; only for an ambiguous text it is checked whether a file of that name exists.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.source_context import stage_context
from qwenvl_kit.images.urls import redact_path, redact_url
from qwenvl_kit.types import ImageSource

if TYPE_CHECKING:
    from qwenvl_kit.options import ImageSrcType

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\-\s]+")
_MAX_PATH = 4096
_HEAD = 128
_MAX_HASHED = 2**28  # bytes of an array whose key is a digest of its content
# NumPy's kinds of objects, bytes and texts: https://numpy.org/doc/stable/reference/arrays.dtypes.html
_NON_NUMERIC = "OSTU"
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    b"\xff\x4f\xff\x51",  # a bare JPEG 2000 code stream
    b"\x00\x00\x00",  # AVIF, HEIF, JPEG 2000
    b"\x00\x00\x01\x00",
    b"qoif",
)


def classify(cell: object, image_src_type: ImageSrcType = "auto") -> tuple[ImageSource, ...]:
    """Return the sources of the images in a cell, not yet read.

    Parameters
    ----------
    cell : object
        A URL, path, base64 text, bytes, Pillow image, array, or a mapping with ``bytes`` or ``path`` (the form of data
        sets on the hub). For several images, a list of these, or an array or Series of texts.
    image_src_type : {"auto", "image_url", "image_base64", "image_binary"}
        Meaning of texts and bytes.

    Returns
    -------
    tuple of ImageSource
        In the cell's order; empty for a null cell.

    Raises
    ------
    RowError
        The cell has another content, or its own code raised, of the stage ``fetch``.

    Examples
    --------
    >>> [source.kind for source in classify(["https://example.org/a.png", b"..."])]
    ['url', 'bytes']
    >>> classify(None)
    ()
    """
    # Reading a cell may run its own code, as with lazy arrays and paths of a mount, and raise anything.
    with stage_context("fetch", "Cannot read the cell"):
        cell = _without_wrapper(cell)
        if is_null(cell):
            return ()
        parts = _parts(cell)
        return (_classify_one(cell, image_src_type),) if parts is None else _classify_many(parts, image_src_type)


def is_null(cell: object) -> bool:
    """Return whether a cell has no image: None, NaN, pd.NA, NaT, an empty text, empty bytes or an empty list."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return True
    if isinstance(cell, str):
        return not cell or cell.isspace()
    if isinstance(cell, float | np.floating):
        return bool(np.isnan(cell))
    return isinstance(cell, bytes | bytearray | memoryview | list | tuple) and len(cell) == 0


def count_images(cell: object) -> int:
    """Return how many images a cell holds; 1 where reading it raises, which `classify` reports."""
    try:
        parts = _parts(_without_wrapper(cell))
        return int(not is_null(cell)) if parts is None else len(parts)
    except Exception:  # noqa: BLE001  # of the cell's own code
        return 1


def _without_wrapper(cell: object) -> object:
    """Return the value of an Arrow scalar, or of a non-numeric array without dimensions."""
    if isinstance(cell, str | bytes):
        return cell
    if isinstance(cell, np.ndarray):
        return cell.item() if cell.ndim == 0 and cell.dtype.kind in _NON_NUMERIC else cell
    return cell.as_py() if hasattr(cell, "as_py") else cell


def _parts(cell: object) -> list[object] | None:
    """Return the elements of a list or of a non-numeric array; None for one image.

    Columns of lists come back from Parquet as arrays of objects, and from ``groupby(…).unique()`` as arrays of texts.
    """
    if isinstance(cell, list | tuple):
        return list(cell)
    if isinstance(cell, np.ndarray):
        return cell.tolist() if cell.ndim == 1 and cell.dtype.kind in _NON_NUMERIC else None
    if isinstance(cell, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        return None if pd.api.types.is_numeric_dtype(cell.dtype) else list(cell)
    if hasattr(cell, "to_pylist"):  # Arrow
        return list(cell.to_pylist())
    return None


def _classify_many(cell: Sequence[object], image_src_type: ImageSrcType) -> tuple[ImageSource, ...]:
    sources: list[ImageSource] = []
    for position, part in enumerate(map(_without_wrapper, cell), start=1):
        if is_null(part) or _parts(part) is not None:
            what = "is missing" if is_null(part) else "is itself a list"
            raise RowError("fetch", f"Image {position} of {len(cell)} in this cell {what}. Give one image each.")
        sources.append(_classify_one(part, image_src_type))
    return tuple(sources)


def _classify_one(cell: object, image_src_type: ImageSrcType) -> ImageSource:
    if isinstance(cell, Mapping) and ("bytes" in cell or "path" in cell):
        given = [cell[name] for name in ("bytes", "path") if name in cell and not is_null(cell[name])]
        if not given:
            raise RowError("fetch", "The cell is a mapping whose 'bytes' and 'path' are both empty. Fill one of them.")
        cell = given[0]
    if isinstance(cell, str | os.PathLike):
        return _classify_text(os.fspath(cell), image_src_type)
    if isinstance(cell, bytes | bytearray | memoryview):
        return _classify_bytes(bytes(cell), image_src_type)
    if isinstance(cell, Image.Image):
        return ImageSource("pil", cell, f"PIL image {cell.mode} {cell.width}×{cell.height}", f"pil:{id(cell)}")
    if hasattr(cell, "__array__") and not isinstance(cell, np.generic):
        return _array(_as_array(cell))
    raise RowError(
        "fetch",
        f"A cell of type {type(cell).__name__} is not an image. Give a URL, path, base64 text, bytes, PIL image or "
        "array.",
    )


def _classify_text(text: str | bytes, image_src_type: ImageSrcType) -> ImageSource:
    text = os.fsdecode(text)
    if image_src_type == "image_binary":
        right: ImageSrcType = "image_base64" if _looks_like_base64(text) else "image_url"
        raise _mismatch("image_binary", "a text", right)
    if image_src_type == "image_base64":
        if _SCHEME.match(text.lstrip()):
            raise _mismatch("image_base64", "a URL", "image_url")
        return _base64(text)
    if image_src_type == "image_url":
        return _base64(text) if _is_data_uri(text) else _url_or_path(text)
    return _base64(text) if _is_base64(text) else _url_or_path(text)


def _classify_bytes(data: bytes, image_src_type: ImageSrcType) -> ImageSource:
    if image_src_type == "image_url":
        raise _mismatch("image_url", "bytes", "image_binary")
    if image_src_type == "image_base64":
        if data.startswith(_SIGNATURES) or not _looks_like_base64(data.decode("latin-1")):
            raise _mismatch("image_base64", "the bytes of an image", "image_binary")
        return _base64(data.decode("latin-1"))
    if image_src_type == "auto" and not data.startswith(_SIGNATURES):
        head = data[:_HEAD].decode("latin-1")
        if _is_data_uri(head) or (_looks_like_base64(head) and _starts_like_image(head)):
            return _base64(data.decode("latin-1"))
    return ImageSource("bytes", data, f"{len(data)} bytes", f"bytes:{_digest(data)}")


def _mismatch(given: ImageSrcType, content: str, right: ImageSrcType) -> RowError:
    return RowError(
        "fetch", f"image_src_type={given!r} does not fit a cell that is {content}. Pass image_src_type={right!r}."
    )


def _url_or_path(text: str) -> ImageSource:
    text = text.strip()
    found = _SCHEME.match(text)
    scheme = found.group(1).lower() if found else ""
    if scheme in ("http", "https"):
        return ImageSource("url", text, redact_url(text), text)
    if scheme not in ("", "file"):
        return ImageSource("remote", text, redact_url(text), text)
    return ImageSource("path", text, redact_path(text), text)


def _base64(text: str) -> ImageSource:
    return ImageSource(
        "base64",
        text,
        f"base64 text of {len(text)} characters",
        f"base64:{_digest(text.encode(errors='surrogatepass'))}",
    )


def _as_array(cell: object) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(cell)
    except (TypeError, ValueError, RuntimeError) as error:  # tensors with a gradient, on a GPU, or in bfloat16
        raise RowError(
            "fetch",
            f"A cell of type {type(cell).__name__} does not convert to an array ({type(error).__name__}). Give a NumPy "
            "array; of a tensor, tensor.detach().float().cpu().numpy().",
        ) from error


def _array(array: np.ndarray[Any, Any]) -> ImageSource:
    name = f"{array.dtype}{array.shape}"
    if array.nbytes > _MAX_HASHED:  # a view of one number may claim terabytes, and would be copied
        return ImageSource("array", array, f"array {name}", f"array:{id(array)}")
    is_plain = array.nbytes > 0 and not array.dtype.hasobject
    key = _digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if is_plain else "empty"
    return ImageSource("array", array, f"array {name}", f"array:{name}:{key}")


def _is_base64(text: str) -> bool:
    """Return whether a text of unknown kind is base64; "/9j/…" is both a JPEG and an absolute path."""
    if _is_data_uri(text):
        return True
    if _SCHEME.match(text.lstrip()):
        return False
    if len(text) > _MAX_PATH:
        return True
    return not _exists(text) and _looks_like_base64(text) and _starts_like_image(text)


def _looks_like_base64(text: str) -> bool:
    return _is_data_uri(text) or (len(text) >= 16 and _BASE64.fullmatch(text) is not None)


def _is_data_uri(text: str) -> bool:
    return text.lstrip()[:5].lower() == "data:"


def _starts_like_image(text: str) -> bool:
    head = "".join(text[:_HEAD].split())[:64].replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(head[: len(head) // 4 * 4]).startswith(_SIGNATURES)
    except binascii.Error:
        return False


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a NUL in the text
        return False


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()

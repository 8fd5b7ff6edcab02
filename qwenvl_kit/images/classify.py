"""A cell goes in, its `ImageSource` values come out: what the picture is, not yet read.

Nothing is fetched here; the only look outside is whether a text names an existing file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.source_context import source_context
from qwenvl_kit.types import ImageSource

if TYPE_CHECKING:
    from qwenvl_kit.options import ImageSrcType

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\-\s]+")
_SEPARATOR = re.compile(r"([/\\])")
_LONGEST_PATH = 4096
_LONGEST_HEAD = 128
_LARGEST_COMPARED = 2**28  # bytes of an array that is told from others by its content
_NO_NUMBERS = (
    "OSTU"  # NumPy's kinds of objects, bytes and texts: https://numpy.org/doc/stable/reference/arrays.dtypes.html
)
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
    """Tell what pictures a cell holds.

    Parameters
    ----------
    cell : object
        A URL, s3:// or tos:// address, path, base64 text, bytes, PIL image, array, a mapping with ``bytes`` or ``path``
        (the form in which data sets on the hub keep pictures), or a list of these, or an array or Series of texts, for
        several pictures.
    image_src_type : {"auto", "image_url", "image_base64", "image_binary"}
        What the caller says that texts and bytes are.

    Returns
    -------
    tuple of ImageSource
        In the cell's order; empty for a null cell.

    Raises
    ------
    RowError
        The cell holds something else, or its own code raised, of the stage ``fetch``.

    Examples
    --------
    >>> [source.kind for source in classify(["https://example.org/a.png", b"..."])]
    ['url', 'bytes']
    >>> classify(None)
    ()
    """
    # A cell may compute when it is looked at, as lazy arrays and paths of a mount do, and raise anything.
    with source_context("fetch", "the cell", "cannot be read"):
        cell = _without_wrapper(cell)
        if is_null(cell):
            return ()
        parts = _parts(cell)
        return (_classify_one(cell, image_src_type),) if parts is None else _classify_many(parts, image_src_type)


def is_null(cell: object) -> bool:
    """Whether a cell holds no picture: None, NaN, pd.NA, NaT, an empty text, empty bytes or an empty list."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return True
    if isinstance(cell, str):
        return not cell or cell.isspace()
    if isinstance(cell, float | np.floating):
        return bool(np.isnan(cell))
    return isinstance(cell, bytes | bytearray | memoryview | list | tuple) and len(cell) == 0


def redact_url(address: str) -> str:
    """The address without user names, passwords, signed queries and fragments, for messages and records.

    Examples
    --------
    >>> redact_url("https://me:secret@example.org/a.png?X-Amz-Signature=abc")
    'https://***@example.org/a.png?…'
    """
    try:
        parts = urlsplit(address)
    except ValueError:  # brackets that are no IPv6 address; what cannot be taken apart cannot be masked in parts
        return f"{address.partition('://')[0]}://…"
    _, at, host = parts.netloc.rpartition("@")
    # A password with "/", "?" or "#" in it ended the host too early, or one slash too many began the path too early.
    if not at and "@" in address and (":" in host or not host):
        return f"{parts.scheme}://…"
    netloc = f"***@{host}" if at else host
    path, mark, parameters = parts.path.partition(";")  # which may sign the address, as a query does
    path += ";…" if "=" in parameters else mark + parameters
    query = "?…" if parts.query else ""
    return _clip(f"{parts.scheme}://{netloc}{path}{query}")


def _without_wrapper(cell: object) -> object:
    """Take a value out of an Arrow scalar, or out of an array without dimensions that holds no number."""
    if isinstance(cell, str | bytes):
        return cell
    if isinstance(cell, np.ndarray):
        return cell.item() if cell.ndim == 0 and cell.dtype.kind in _NO_NUMBERS else cell
    return cell.as_py() if hasattr(cell, "as_py") else cell


def _parts(cell: object) -> list[object] | None:
    """Take a list, or an array of anything but numbers, apart; None for what is one image.

    Columns of lists come back from Parquet as arrays of objects, and from ``groupby(…).unique()`` as arrays of texts.
    """
    if isinstance(cell, list | tuple):
        return list(cell)
    if isinstance(cell, np.ndarray):
        return cell.tolist() if cell.ndim == 1 and cell.dtype.kind in _NO_NUMBERS else None
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
            raise RowError("fetch", f"picture {position} of {len(cell)} in this cell {what}; give one picture each")
        sources.append(_classify_one(part, image_src_type))
    return tuple(sources)


def _classify_one(cell: object, image_src_type: ImageSrcType) -> ImageSource:
    if isinstance(cell, Mapping) and ("bytes" in cell or "path" in cell):
        given = [cell[name] for name in ("bytes", "path") if name in cell and not is_null(cell[name])]
        if not given:
            raise RowError("fetch", "the cell is a mapping whose 'bytes' and 'path' are both empty")
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
        f"a cell of type {type(cell).__name__} is no picture; give a URL, path, base64 text, bytes, PIL image or array",
    )


def _classify_text(text: str | bytes, image_src_type: ImageSrcType) -> ImageSource:
    text = os.fsdecode(text)
    if image_src_type == "image_binary":
        right = "image_base64" if _looks_like_base64(text) else "image_url"
        raise RowError("fetch", f"image_src_type='image_binary' but the cell is a text; pass image_src_type='{right}'")
    if image_src_type == "image_base64":
        if _SCHEME.match(text.lstrip()):
            raise RowError(
                "fetch", "image_src_type='image_base64' but the cell is an address; pass image_src_type='image_url'"
            )
        return _base64(text)
    if image_src_type == "image_url":
        return _base64(text) if _is_data_uri(text) else _address(text)
    return _base64(text) if _is_base64(text) else _address(text)


def _classify_bytes(data: bytes, image_src_type: ImageSrcType) -> ImageSource:
    if image_src_type == "image_url":
        raise RowError("fetch", "image_src_type='image_url' but the cell is bytes; pass image_src_type='image_binary'")
    if image_src_type == "image_base64":
        if data.startswith(_SIGNATURES) or not _looks_like_base64(data.decode("latin-1")):
            raise RowError(
                "fetch",
                "image_src_type='image_base64' but the cell is the picture's own bytes; "
                "pass image_src_type='image_binary'",
            )
        return _base64(data.decode("latin-1"))
    if image_src_type == "auto" and not data.startswith(_SIGNATURES):
        head = data[:_LONGEST_HEAD].decode("latin-1")
        if _is_data_uri(head) or (_looks_like_base64(head) and _starts_like_image(head)):
            return _base64(data.decode("latin-1"))
    return ImageSource("bytes", data, f"{len(data)} bytes", f"bytes:{_digest(data)}")


def _address(text: str) -> ImageSource:
    text = text.strip()
    found = _SCHEME.match(text)
    scheme = found.group(1).lower() if found else ""
    if scheme in ("http", "https"):
        return ImageSource("url", text, redact_url(text), text)
    if scheme not in ("", "file"):
        return ImageSource("remote", text, redact_url(text), text)
    return ImageSource("path", text, _clip(_mask_path(text)), text)


def _mask_path(text: str) -> str:
    """Hide what would be a secret if the text were an address whose scheme was forgotten.

    Without backtracking: the text is a stranger's, and may be long.
    """
    address, mark, query = "".join(map(_mask_login, _SEPARATOR.split(text))).partition("?")
    return f"{address}?…" if "=" in query else f"{address}{mark}{query}"


def _mask_login(part: str) -> str:
    login, _, host = part.rpartition("@")
    return f"***@{host}" if ":" in login else part


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
            f"a cell of type {type(cell).__name__} cannot be read as an array ({type(error).__name__}); give a numpy "
            "array, of a tensor tensor.detach().float().cpu().numpy()",
        ) from error


def _array(array: np.ndarray[Any, Any]) -> ImageSource:
    name = f"{array.dtype}{array.shape}"
    if array.nbytes > _LARGEST_COMPARED:  # a view of one number may seem to hold terabytes, and would be copied
        return ImageSource("array", array, f"array {name}", f"array:{id(array)}")
    is_plain = array.nbytes > 0 and not array.dtype.hasobject
    key = _digest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if is_plain else "empty"
    return ImageSource("array", array, f"array {name}", f"array:{name}:{key}")


def _is_base64(text: str) -> bool:
    """Whether a text of unknown kind is base64; "/9j/…" is both a JPEG and an absolute path."""
    if _is_data_uri(text):
        return True
    if _SCHEME.match(text.lstrip()):
        return False
    if len(text) > _LONGEST_PATH:
        return True
    return not _exists(text) and _looks_like_base64(text) and _starts_like_image(text)


def _looks_like_base64(text: str) -> bool:
    return _is_data_uri(text) or (len(text) >= 16 and _BASE64.fullmatch(text) is not None)


def _is_data_uri(text: str) -> bool:
    return text.lstrip()[:5].lower() == "data:"


def _starts_like_image(text: str) -> bool:
    head = "".join(text[:_LONGEST_HEAD].split())[:64].replace("-", "+").replace("_", "/")
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


def _clip(text: str, length: int = 120) -> str:
    text = text.encode("utf-8", "replace").decode()  # half characters, as odd file names hold them, fit no message
    return text if len(text) <= length else f"{text[: length - 1]}…"

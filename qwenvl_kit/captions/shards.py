"""Write captioned images as tar files in the form of WebDataset: https://github.com/webdataset/webdataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qwenvl_kit._warnings import warn
from qwenvl_kit.captions.complete_files import complete_file
from qwenvl_kit.errors import ConfigError, RowError, RowErrorWarning
from qwenvl_kit.images import classify
from qwenvl_kit.images.fetch.dispatch import fetch
from qwenvl_kit.images.fetch.limits import FetchLimits
from qwenvl_kit.images.formats import format_of

if TYPE_CHECKING:
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import ImageSource

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "HEIF": "heic"}  # else the format in lower case


def write_shards(
    cells: Sequence[object],
    captions: Sequence[str],
    prompts: Sequence[str],
    path: Path,
    config: Config,
    *,
    rows_per_shard: int,
) -> list[Path]:
    """Write rows to ``train-000000.tar`` and so on, and return the files.

    A sample is named by its row. It has the image as it is stored (arrays and Pillow images as PNG), the caption
    (``txt``), and the prompt (``json``). Rows whose image cannot be read are left out, with a warning.

    Raises
    ------
    ConfigError
        There are such files already, or `rows_per_shard` is no count.
    """
    if not isinstance(rows_per_shard, int) or rows_per_shard < 1:
        raise ConfigError(f"rows_per_shard={rows_per_shard!r} is invalid. Use an integer of at least 1.")
    earlier = sorted(path.parent.glob(f"{path.stem}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"))
    if earlier:
        raise ConfigError(f"{earlier[0]} exists, and a reader would take it for one of these. Use another name.")
    limits, errors = FetchLimits.of(config.fetch), list[tuple[int, RowError]]()
    files: list[Path] = []
    for first in range(0, len(cells), rows_per_shard):
        file = path.with_name(f"{path.stem}-{len(files):06}.tar")
        with complete_file(file) as partial, tarfile.open(partial, "w") as tar:
            for row in range(first, min(first + rows_per_shard, len(cells))):
                try:
                    suffix, data = _encoded(cells[row], config, limits)
                except RowError as error:
                    errors.append((row, error))
                    continue
                prompt = json.dumps({"prompt": prompts[row]}, ensure_ascii=False).encode()
                for kind, content in ((suffix, data), ("txt", captions[row].encode()), ("json", prompt)):
                    _add(tar, f"{row:09}.{kind}", content)
        files.append(file)
    if errors:
        row, fault = errors[0]
        warn(f"{len(errors)} of {len(cells)} rows were left out, such as row {row}: {fault.message}", RowErrorWarning)
    return files


def _encoded(cell: object, config: Config, limits: FetchLimits) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a cell's only image."""
    sources = classify(cell, config.image_src_type)
    if len(sources) != 1:
        raise RowError("fetch", f"The cell has {len(sources)} images. A sample of a shard has one.")
    (source,) = sources
    if source.kind in ("pil", "array"):
        return "png", _png(source)
    data = fetch(source, limits).data
    name = format_of(data)
    return _SUFFIXES.get(name, name.lower()), data


def _png(source: ImageSource) -> bytes:
    written = io.BytesIO()
    try:
        image = source.value if source.kind == "pil" else Image.fromarray(np.asarray(source.value))
        (image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")).save(written, "PNG")
    except (TypeError, ValueError, OSError) as error:
        raise RowError("decode", f"The image cannot be written as PNG: {error}. Convert it to uint8 RGB.") from error
    return written.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))

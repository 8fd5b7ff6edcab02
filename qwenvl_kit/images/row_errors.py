"""Make any exception of the work on one image that image's error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from qwenvl_kit.errors import Stage

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")  # where an object lies in memory is nobody's business


@contextlib.contextmanager
def row_error(stage: Stage, label: str, what: str) -> Iterator[None]:
    """Make any exception of the work on one image that image's error.

    Libraries raise what no list foresees; cancellation and the interpreter's exits are no `Exception` and pass.

    Raises
    ------
    RowError
        In the place of any other exception, with its class in the message.
    """
    try:
        yield
    except RowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit is lower
        raise RowError(
            stage,
            f"{label} is too large for Pillow: {_first_line(error)}; raise max_image_pixels and "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it",
        ) from error
    except UnidentifiedImageError as error:  # whose message holds an address in memory
        raise RowError(stage, f"{label} {what}: its header is broken or cut short") from error
    except MemoryError as error:
        raise RowError(stage, f"{label} {what}: memory ran out; lower max_image_pixels, or free memory") from error
    except Exception as error:
        raise RowError(stage, f"{label} {what}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    try:
        return _ADDRESS.sub("", (str(error).splitlines() or ["without a message"])[0])[:200]
    except Exception:  # noqa: BLE001  # a message that cannot be made is none
        return "without a message"

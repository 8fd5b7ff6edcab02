"""Write a panel's next run as Python code, images included."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.images import is_null
from qwenvl_kit.images.arrays import decode_array
from qwenvl_kit.images.decode import decode_pil

if TYPE_CHECKING:
    from qwenvl_kit.widgets.state import State

MAX_INLINE = 200_000
# Pixels in memory stay pixels: a sampled answer depends on the bytes of its image.
_PIXELS = (
    ["import base64", "import io", "from pathlib import Path", "", "import numpy as np", "from PIL import Image"],
    ["", "", "def panel_pixels(png):", '    return np.asarray(Image.open(io.BytesIO(png), formats=["PNG"]))', ""],
)
_SUFFIX = {b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp"}


def to_code(state: State, *, folder: str | os.PathLike[str] | None = None) -> str:
    """Return the next run as code.

    Parameters
    ----------
    state : State
        The panel's state.
    folder : path, optional
        Folder to write images in memory to; by default the code contains them as base64.

    Raises
    ------
    ConfigError
        The images are too large for the code, and `folder` is None.
    """
    cells = [_cell(state.images[at].cell, f"{at}", folder) for at in sorted(state.chosen)]
    if (size := sum(map(len, cells))) > MAX_INLINE:
        raise ConfigError(
            f"The images take {size} characters of code, more than {MAX_INLINE}. Call to_code(folder='images') to "
            "write them to files."
        )
    lines = ["import pandas as pd", "", "import qwenvl_kit  # registers df.vl"]
    if any("panel_pixels(" in cell for cell in cells):
        lines = [*_PIXELS[0], *lines, *_PIXELS[1]]
    names = [state.images[at].name for at in sorted(state.chosen)]
    # Names of its own: the reader's notebook is likely to have a `df`.
    lines += ["", "panel_images = pd.DataFrame(", '    {"image": [', *(f"        {cell}," for cell in cells), "    ]},"]
    lines += [f"    index={names!r},", ")", *_call(state)]
    return "\n".join(lines) + "\n"


def _call(state: State) -> list[str]:
    # Bytes and pixels have become data URIs or files, which image_src_type='auto' recognises.
    options = [_option(name, value) for name, value in state.asked.items() if name != "image_src_type"]
    if state.labels and not state.vary:
        labels = [f"    {list(state.labels)!r},", "    all=True,"]
        return ["panel_answers = panel_images.vl.classify(", '    "image",', *labels, *options, ")", "panel_answers"]
    if not state.vary:
        return ["panel_answers = panel_images.vl.run(", '    "image",', *options, ")", "panel_answers"]
    vary = ", ".join(f"{name!r}: {_plain(values)!r}" for name, values in state.vary.items())
    varied = [f"    vary={{{vary}}},", *([f"    repeats={state.repeats},"] if state.repeats > 1 else [])]
    return ["panel_answers = panel_images.vl.compare(", '    "image",', *varied, *options, ")", "panel_answers.frame"]


def _option(name: str, value: Any) -> str:
    if name == "headers" and value:
        places = ", ".join(f"{header!r}: ..." for header in value)
        return f"    headers={{{places}}},  # add the values, which are omitted as possible secrets"
    return f"    {name}={value!r},"


def _plain(values: Sequence[Any]) -> list[Any]:
    return [value.item() if hasattr(value, "item") else value for value in values]


def _cell(cell: Any, name: str, folder: str | os.PathLike[str] | None) -> str:
    if isinstance(cell, list | tuple):
        parts = (_cell(part, f"{name}-{at}", folder) for at, part in enumerate(cell))
        return f"[{', '.join(parts)}]"
    if is_null(cell):
        return "None"
    if isinstance(cell, Mapping):
        given = next(cell[key] for key in ("bytes", "path") if not is_null(cell.get(key)))
        return _cell(given, name, folder)
    if isinstance(cell, str | os.PathLike):
        return repr(os.fspath(cell))
    is_encoded = isinstance(cell, bytes | bytearray | memoryview)
    data = bytes(cell) if is_encoded else _png(cell)
    if folder is None:
        text = base64.b64encode(data).decode()
        return repr(f"data:;base64,{text}") if is_encoded else f'panel_pixels(base64.b64decode("{text}"))'
    place = Path(folder) / f"image-{name}{_SUFFIX.get(data[:4], '.jpg')}"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return repr(str(place)) if is_encoded else f"panel_pixels(Path({str(place)!r}).read_bytes())"


def _png(cell: Any) -> bytes:
    """Return an image in memory as PNG, which is lossless."""
    most = 10**9  # already in memory
    pixels = (
        decode_pil(cell, max_image_pixels=most)
        if isinstance(cell, Image.Image)
        else decode_array(np.asarray(cell), max_image_pixels=most)
    )
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    return encoded.getvalue()

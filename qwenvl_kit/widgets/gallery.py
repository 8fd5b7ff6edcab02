"""Pictures to choose from, each with a tick box, and a place to upload more."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import ipywidgets as widgets
import pandas as pd

from qwenvl_kit.errors import ColumnNotFound
from qwenvl_kit.show import thumbnail
from qwenvl_kit.widgets.render import picture_html
from qwenvl_kit.widgets.state import Photo

Pictures = pd.DataFrame | pd.Series | Sequence[object] | None

MAX_OFFERED = 24
MAX_UPLOAD = 32 * 2**20


class Gallery:
    """The pictures of a panel.

    Parameters
    ----------
    photos : sequence of Photo
        Offered at first, all ticked.
    on_added : callable
        Called with pictures that were uploaded.
    on_refused : callable
        Called with a sentence where an upload is no picture.
    """

    def __init__(
        self, photos: Sequence[Photo], on_added: Callable[[Sequence[Photo]], None], on_refused: Callable[[str], None]
    ) -> None:
        self._on_added, self._on_refused = on_added, on_refused
        self._boxes: list[widgets.Checkbox] = []
        self._strip = widgets.Box([], layout={"flex_flow": "row wrap"})
        self._upload = widgets.FileUpload(
            accept="image/*", multiple=True, description="Upload pictures", layout={"width": "180px"}
        )
        self._upload.observe(self._take, names="value")
        self.box = widgets.VBox([self._strip, self._upload])
        self._add(photos)

    def chosen(self) -> list[int]:
        """Positions of those that are ticked."""
        return [at for at, box in enumerate(self._boxes) if box.value]

    def _add(self, photos: Sequence[Photo]) -> None:
        cards = []
        for photo in photos:
            box = widgets.Checkbox(value=True, description=photo.name, indent=False, layout={"width": "120px"})
            image = widgets.HTML(picture_html(photo, alt=f"picture {photo.name}"), layout={"width": "120px"})
            image.add_class("qwenvl")
            self._boxes.append(box)
            cards.append(widgets.VBox([image, box], layout={"margin": "0 8px 8px 0"}))
        self._strip.children = (*self._strip.children, *cards)

    def _take(self, _: object) -> None:
        files, self._upload.value = self._upload.value, ()
        good: list[Photo] = []
        bad: list[str] = []
        for file in files:
            name, data = str(file["name"]), bytes(file["content"])
            why = _fault(data)
            if why:
                bad.append(f"{name} was not added: {why}")
            else:
                good.append(Photo(name, data))
        if good:
            self._add(good)
            self._on_added(good)
        if bad:
            self._on_refused("; ".join(bad))


def offered(pictures: Pictures, column: Hashable) -> tuple[list[Photo], int]:
    """The pictures that a panel offers, named by their index labels, and how many are left out."""
    if pictures is None:
        return [], 0
    if isinstance(pictures, pd.DataFrame):
        if column not in pictures.columns:
            names = ", ".join(map(repr, pictures.columns)) or "no columns at all"
            raise ColumnNotFound(f"there is no column {column!r}; the frame has: {names}")
        pictures = pictures[column]
    labels = pictures.index.to_list() if isinstance(pictures, pd.Series) else list(range(len(pictures)))
    photos = [Photo(str(label), cell) for label, cell in zip(labels, list(pictures), strict=True)]
    return photos[:MAX_OFFERED], max(0, len(photos) - MAX_OFFERED)


def _fault(data: bytes) -> str:
    if not data:
        return "the file is empty"
    if len(data) > MAX_UPLOAD:
        return f"it has {len(data)} bytes; {MAX_UPLOAD} at most can be uploaded, give its path instead"
    found = thumbnail(data)
    return "" if found.startswith("data:") else found

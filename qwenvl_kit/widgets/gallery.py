"""Pictures to choose from, each with a tick box, and a place to upload more."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import ipywidgets as widgets
import pandas as pd

from qwenvl_kit.batches import rows_of
from qwenvl_kit.columns import pick_column
from qwenvl_kit.html import plain
from qwenvl_kit.thumbnails import Thumbnailer, together
from qwenvl_kit.widgets.render import draw_thumbnail, picture_html
from qwenvl_kit.widgets.state import Photo

Pictures = pd.DataFrame | pd.Series | Sequence[object] | None

MAX_OFFERED = 24
MAX_UPLOAD = 32 * 2**20
_LONGEST_NAME = 100
_LONGEST_WAIT_S = 10.0  # the kernel's own thread waits for thumbnails


class Gallery:
    """The pictures of a panel.

    Parameters
    ----------
    photos : sequence of Photo
        Offered at first, all ticked.
    maker : Thumbnailer
        Reads them under the panel's limits.
    on_added : callable
        Called with pictures that were uploaded.
    on_refused : callable
        Called with a sentence where an upload is no picture.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        maker: Thumbnailer,
        on_added: Callable[[Sequence[Photo]], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self._maker = maker
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
        prepare(photos, self._maker)
        cards = []
        for photo in photos:
            box = widgets.Checkbox(value=True, description=photo.name, indent=False, layout={"width": "120px"})
            image = widgets.HTML(
                picture_html(photo, self._maker, alt=f"picture {photo.name}"), layout={"width": "120px"}
            )
            image.add_class("qwenvl")
            self._boxes.append(box)
            cards.append(widgets.VBox([image, box], layout={"margin": "0 8px 8px 0"}))
        self._strip.children = (*self._strip.children, *cards)

    def _take(self, _: object) -> None:
        files, self._upload.value = self._upload.value, ()
        good: list[Photo] = []
        bad: list[str] = []
        for file in files:
            photo = Photo(plain(file["name"], _LONGEST_NAME), bytes(file["content"]))
            why = self._fault(photo)
            if why:
                bad.append(f"{photo.name} was not added: {why}")
            else:
                good.append(photo)
        if good:
            self._add(good)
            self._on_added(good)
        if bad:
            self._on_refused("; ".join(bad))

    def _fault(self, photo: Photo) -> str:
        data: bytes = photo.cell
        if not data:
            return "the file is empty"
        if len(data) > MAX_UPLOAD:
            return f"it has {len(data)} bytes; {MAX_UPLOAD} at most can be uploaded, give its path instead"
        found = draw_thumbnail(photo, self._maker)
        return "" if found.startswith("data:") else found


def prepare(photos: Sequence[Photo], maker: Thumbnailer) -> None:
    """Draw all thumbnails at the same time, within the time that one fetch may take."""
    within_s = min(maker.timeout_s, _LONGEST_WAIT_S)
    made = together([functools.partial(draw_thumbnail, photo, maker) for photo in photos], within_s=within_s)
    for photo, found in zip(photos, made, strict=True):
        if found is None:
            photo.memo["late"] = maker.late(photo.cell, within_s)


def offered(pictures: Pictures, column: Hashable) -> tuple[list[Photo], int]:
    """The pictures that a panel offers, named by their index labels, and how many are left out."""
    if pictures is None:
        return [], 0
    if isinstance(pictures, pd.DataFrame):
        pictures = pick_column(pictures, column)
    cells = rows_of(pictures, "pictures")
    labels = pictures.index if isinstance(pictures, pd.Series) else range(len(cells))
    photos = [
        Photo(plain(label, _LONGEST_NAME), cell)
        for label, cell in zip(labels[:MAX_OFFERED], cells[:MAX_OFFERED], strict=True)
    ]
    return photos, max(0, len(cells) - MAX_OFFERED)

"""The images of a panel, each with a check box, and an upload button."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import ipywidgets as widgets
import pandas as pd

from qwenvl_kit.batches import rows_of
from qwenvl_kit.columns import pick_column
from qwenvl_kit.html import plain
from qwenvl_kit.thumbnails import Thumbnailer, together
from qwenvl_kit.widgets.elements import Uploader
from qwenvl_kit.widgets.images import draw_thumbnail, thumbnail_html
from qwenvl_kit.widgets.state import PanelImage

Pictures = pd.DataFrame | pd.Series | Sequence[object] | None

MAX_OFFERED = 24
_LONGEST_NAME = 100
_LONGEST_WAIT_S = 10.0  # the kernel's main thread waits for thumbnails


class Gallery:
    """The image gallery of a panel.

    Parameters
    ----------
    images : sequence of PanelImage
        Initial images, all checked.
    thumbnailer : Thumbnailer
        Reads them under the panel's limits.
    on_added : callable
        Called with the uploaded images, and with a sentence for each file that was not added.
    """

    def __init__(
        self,
        images: Sequence[PanelImage],
        thumbnailer: Thumbnailer,
        on_added: Callable[[Sequence[PanelImage], Sequence[str]], None],
    ) -> None:
        self._thumbnailer, self._on_added = thumbnailer, on_added
        self._boxes: list[widgets.Checkbox] = []
        self._strip = widgets.Box([], layout={"flex_flow": "row wrap"})
        self.upload_button = Uploader(self._on_files)
        self.box = widgets.VBox([self._strip, self.upload_button])
        self._add(images)

    def chosen(self) -> list[int]:
        """Return the positions of the checked images."""
        return [at for at, box in enumerate(self._boxes) if box.value]

    def _add(self, images: Sequence[PanelImage]) -> None:
        prepare(images, self._thumbnailer)
        cards = []
        for image in images:
            box = widgets.Checkbox(value=True, description=image.name, indent=False, layout={"width": "120px"})
            html = thumbnail_html(image, self._thumbnailer, alt=f"image {image.name}")
            thumbnail = widgets.HTML(str(html), layout={"width": "120px"})
            thumbnail.add_class("qwenvl")
            self._boxes.append(box)
            cards.append(widgets.VBox([thumbnail, box], layout={"margin": "0 8px 8px 0"}))
        self._strip.children = (*self._strip.children, *cards)

    def _on_files(self, files: Sequence[tuple[str, bytes]], refused: Sequence[str]) -> None:
        good: list[PanelImage] = []
        bad = list(refused)
        for name, data in files:
            image = PanelImage(name, data)
            why = self._rejection(image)
            if why:
                bad.append(f"{name} was not added: {why}")
            else:
                good.append(image)
        if good:
            self._add(good)
        self._on_added(good, bad)

    def _rejection(self, image: PanelImage) -> str:
        if not image.cell:
            return "the file is empty"
        found = draw_thumbnail(image, self._thumbnailer)
        return "" if found.startswith("data:") else found


def prepare(images: Sequence[PanelImage], thumbnailer: Thumbnailer) -> None:
    """Draw all thumbnails in parallel, within the timeout of one fetch."""
    within_s = min(thumbnailer.timeout_s, _LONGEST_WAIT_S)
    made = together([functools.partial(draw_thumbnail, image, thumbnailer) for image in images], within_s=within_s)
    for image, found in zip(images, made, strict=True):
        if found is None:
            image.memo["late"] = thumbnailer.late(image.cell, within_s)


def offered(pictures: Pictures, column: Hashable) -> tuple[list[PanelImage], int]:
    """Return the images to offer, named by index label, and the number left out."""
    if pictures is None:
        return [], 0
    if isinstance(pictures, pd.DataFrame):
        pictures = pick_column(pictures, column)
    cells = rows_of(pictures, "pictures")
    labels = pictures.index if isinstance(pictures, pd.Series) else range(len(cells))
    images = [
        PanelImage(plain(label, _LONGEST_NAME), cell)
        for label, cell in zip(labels[:MAX_OFFERED], cells[:MAX_OFFERED], strict=True)
    ]
    return images, max(0, len(cells) - MAX_OFFERED)

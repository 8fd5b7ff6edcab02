"""Show the boxes and points of one frame, or of several beside each other with the overlap of each object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from qwenvl_kit.boxes.drawing import MAX_MARKS, Mark, draw_image, draw_legend, list_objects
from qwenvl_kit.boxes.frame import COORDINATES, TWICE, Kind, checked, kind_of, pictures
from qwenvl_kit.boxes.matching import pair
from qwenvl_kit.errors import ConfigError, printable
from qwenvl_kit.html import plain, render

if TYPE_CHECKING:
    from markupsafe import Markup

    from qwenvl_kit.thumbnails import Thumbnail

BoxFrames = pd.DataFrame | Mapping[str, pd.DataFrame]

_LONGEST_LABEL = 60
_LONGEST_NOTE = 300
_VIEW = """<div class="qwenvl-view">{% if name %}<p class="qwenvl-note"><b>{{ name }}</b>
{%- if summary %} · {{ summary }}{% endif %}</p>{% endif %}{{ image }}
{%- for note in notes %}<p class="qwenvl-note">{{ note }}</p>{% endfor %}{{ objects }}</div>"""
_VIEWS = """<div class="qwenvl-views">{% for view in views %}{{ view }}{% endfor %}</div>"""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The objects of one frame.

    Attributes
    ----------
    name : str
        Its title; empty for a single frame.
    kind : {"boxes", "points"}
    objects, pictures : DataFrame
        As of `checked` and `pictures`.
    places : mapping
        From an image's label to the positions of its objects.
    numbers : sequence of int
        Of each object within its image, from 1.
    reference : Layer, optional
        Boxes that the objects are compared with.
    partners : array of int (n,)
        Position of each object's partner in the reference; -1 without one.
    overlaps : array of float (n,)
        Overlap with it.
    """

    name: str
    kind: Kind
    objects: pd.DataFrame
    pictures: pd.DataFrame
    places: Mapping[Hashable, Sequence[int]]
    numbers: Sequence[int]
    reference: Layer | None = None
    partners: Any = None
    overlaps: Any = None

    @classmethod
    def of(cls, frame: pd.DataFrame, name: str) -> Self:
        """Return the layer of a frame; raises ConfigError as `checked`."""
        shown = f"boxes[{name!r}]" if name else "boxes"
        objects = checked(frame, shown)
        places: dict[Hashable, list[int]] = {}
        numbers = []
        for at, row in enumerate(objects["row"].tolist()):
            places.setdefault(row, []).append(at)
            numbers.append(len(places[row]))
        return cls(name, kind_of(frame), objects, pictures(frame), places, numbers)

    def against(self, reference: Layer) -> Layer:
        """Return the layer with the partner of each object; unchanged where the reference has points."""
        if reference.kind != "boxes":
            return self
        paired = pair(self.objects, reference.objects, 0.0)
        return replace(
            self, reference=reference, partners=paired["partner"].to_numpy(), overlaps=paired["iou"].to_numpy()
        )

    def note(self, at: int) -> str:
        """Return score and overlap of an object, in words."""
        score = float(self.objects["score"].to_numpy()[at])
        parts = [] if np.isnan(score) else [f"{score:.2f}"]
        if self.reference is not None and self.partners[at] < 0:
            parts.append("no match" if self.kind == "boxes" else "in no box")
        elif self.reference is not None:
            number = self.reference.numbers[self.partners[at]]
            overlap = f"IoU {self.overlaps[at]:.2f} with" if self.kind == "boxes" else "in"
            parts.append(f"{overlap} {number}")
        return ", ".join(parts)

    def notes(self, row: Hashable, size: tuple[int, int] | None) -> list[str]:
        """Return what else is to be said of an image: its error, unread text, another size, missed objects."""
        said = []
        about = self.pictures.loc[[row]].iloc[0].to_dict() if row in self.pictures.index else {}
        if about.get("status") == "error":
            said.append(f"error: {printable(str(about.get('error')), _LONGEST_NOTE)}")
        elif size is not None and row not in self.places:
            said.append("no objects")
        if about.get("n_unread", 0) > 0:
            said.append(f"pieces of the answer that are unread: {about['n_unread']}")
        if size is not None and not self.fits(row, size):
            width, height = self.objects[["width", "height"]].iloc[self.places[row][0]].astype(int)
            said.append(
                f"not drawn: coordinates are of an image of {width}×{height} pixels, but this has {size[1]}×{size[0]}"
            )
        if self.reference is not None and (missed := self.missed(row)):
            labels = self.reference.objects["label"]
            named = [f"{self.reference.numbers[at]} {plain(labels.iat[at], _LONGEST_LABEL)}" for at in missed]
            said.append(f"missed: {printable(', '.join(named), _LONGEST_NOTE)}")
        return said

    def fits(self, row: Hashable, size: tuple[int, int]) -> bool:
        """Return whether the objects of an image were found in one of this ``(height, width)``."""
        known = self.objects[["height", "width"]].iloc[list(self.places.get(row, []))].dropna()
        return bool((known == list(size)).all(axis=None))

    def missed(self, row: Hashable) -> list[int]:
        """Return the positions of the reference's objects in an image that no object has for its partner."""
        if self.reference is None:
            return []
        taken = {self.partners[at] for at in self.places.get(row, [])}
        return [at for at in self.reference.places.get(row, []) if at not in taken]

    def summary(self, row: Hashable) -> str:
        """Return how the objects of an image compare with the reference's."""
        if self.reference is None:
            return ""
        partners = [self.partners[at] for at in self.places.get(row, [])]
        n_true, n_paired = len(self.reference.places.get(row, [])), sum(partner >= 0 for partner in partners)
        parts = [f"{n_paired} of {n_true} found", f"{len(partners) - n_paired} extra"]
        if self.kind == "boxes" and n_true:
            overlap = sum(self.overlaps[at] for at in self.places.get(row, [])) / n_true
            parts.append(f"mean IoU {overlap:.2f}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, eq=False)
class BoxViews:
    """Frames of boxes or points, to be drawn image by image.

    Attributes
    ----------
    layers : tuple of Layer
        The first is the reference where there are several.
    counts : dict
        Number of shown objects of each label, in the order of the legend.
    """

    layers: tuple[Layer, ...]
    counts: dict[str, int]

    @classmethod
    def of(cls, boxes: BoxFrames, index: pd.Index, n_rows: int) -> Self:
        """Return the views of one frame, or of several by name, for the first `n_rows` rows of an index.

        Raises
        ------
        ConfigError
            A frame has other columns or values, none of its objects belongs to the index, or the index has a label
            twice.
        """
        if not index.is_unique:
            raise ConfigError(TWICE)
        frames = boxes if isinstance(boxes, Mapping) else {"": boxes}
        if not frames:
            raise ConfigError("boxes is empty. Pass a frame of boxes, or a mapping from names to frames.")
        layers = [Layer.of(frame, str(name)) for name, frame in frames.items()]
        rows = {row for layer in layers for row in layer.places}
        if rows and not any(row in index for row in rows):
            raise ConfigError(
                f"No object of boxes belongs to a row of this frame: {printable(repr(next(iter(rows))), 100)} is not "
                "in its index. The column row of boxes holds index labels."
            )
        shown = set(index[:n_rows])
        counts = Counter(
            label
            for layer in layers
            for row, label in layer.objects[["row", "label"]].itertuples(index=False, name=None)
            if row in shown
        )
        return cls((layers[0], *(layer.against(layers[0]) for layer in layers[1:])), dict(counts))

    @property
    def is_comparison(self) -> bool:
        """Whether several frames are shown beside each other."""
        return len(self.layers) > 1

    def legend(self) -> Markup:
        """Return the legend of all labels."""
        return draw_legend(self.counts)

    def draw(self, row: Hashable, image: Thumbnail, alt: str) -> Markup:
        """Return an image with the objects of its row, once for each frame; a sentence stands for a missing image."""
        styles = {label: at for at, label in enumerate(self.counts)}
        return render(_VIEWS, views=[_view(layer, row, image, alt, styles) for layer in self.layers])


def _view(layer: Layer, row: Hashable, image: Thumbnail, alt: str, styles: Mapping[str, int]) -> Markup:
    marks, n_objects = _marks(layer, row, image.size or (1, 1), styles), len(layer.places.get(row, []))
    if image.size is None:
        drawn = render("<p>{{ text }}</p>", text=image.text)
    else:
        drawn = draw_image(image.text, alt, marks if layer.fits(row, image.size) else [], n_objects)
    return render(
        _VIEW,
        name=plain(layer.name, _LONGEST_LABEL),
        summary=layer.summary(row),
        image=drawn,
        notes=layer.notes(row, image.size),
        objects=list_objects(marks, n_objects),
    )


def _marks(layer: Layer, row: Hashable, size: tuple[int, int], styles: Mapping[str, int]) -> list[Mark]:
    """Return the first objects of an image of ``(height, width)``; smaller ones lie above larger ones."""
    places = list(layer.places.get(row, []))[:MAX_MARKS]
    values = layer.objects[COORDINATES[layer.kind]].to_numpy()[places]
    corners = values if layer.kind == "boxes" else np.hstack([values, values])  # (n, 4)
    sides = corners[:, 2:] - corners[:, :2]
    ranks = np.argsort(np.argsort(-sides.prod(axis=1), kind="stable")) + 1
    shares = corners / (size[1], size[0], size[1], size[0])
    return [
        _mark(layer, at, corner.tolist(), tuple(share.tolist()), int(rank), styles)
        for at, corner, share, rank in zip(places, corners, shares, ranks, strict=True)
    ]


def _mark(
    layer: Layer,
    at: int,
    corners: Sequence[float],
    shares: tuple[float, float, float, float],
    rank: int,
    styles: Mapping[str, int],
) -> Mark:
    label, number, note = str(layer.objects["label"].iat[at]), layer.numbers[at], layer.note(at)
    x0, y0, x1, y1 = (f"{value:.0f}" for value in corners)
    is_point = layer.kind == "points"
    place = f"at {x0}, {y0}" if is_point else f"from {x0}, {y0} to {x1}, {y1}"
    shown = plain(label, _LONGEST_LABEL)
    words = ", ".join(filter(None, [f"{number}: {shown}", note, f"{place} pixels"]))
    return Mark(number, shown, note, shares, styles[label], rank, is_point, words)

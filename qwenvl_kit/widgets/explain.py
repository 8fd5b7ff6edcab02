"""The panel that walks through explained answers, word by word and layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
from IPython.display import HTML, display

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.explain.views import draw_word, show_style
from qwenvl_kit.html import plain, render

if TYPE_CHECKING:
    from qwenvl_kit.explain import Explanation, Explanations

_LONGEST_NAME = 60
_TOLD = """<div role="status">{{ said }}{{ checked }}</div>"""
_STYLE = {"description_width": "60px"}


class Explain(widgets.VBox):  # type: ignore[misc]  # ipywidgets has no types here
    """Choose a row, a word and a layer, and see what the word comes from.

    All choices work with the keyboard: Tab walks from one to the next, arrows change it, and "next word" steps on.
    What is chosen is said to screen readers in words. Below stands a view of the first rows, which a saved notebook
    keeps.

    Parameters
    ----------
    found : Explanations
        The result of ``df.vl.explain``. With ``layers="all"`` there is a choice of layers, with ``check=True`` the
        areas under the curves of each word.

    Raises
    ------
    ConfigError
        No row has an answer.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit
    >>> from qwenvl_kit.demo import draw, sample_scenes
    >>> df = pd.DataFrame({"image": [draw(scene) for scene in sample_scenes(2, seed=3)]})
    >>> found = df.vl.explain("image", layers="all", model_name="demo", progress=False)  # doctest: +SKIP
    >>> qwenvl_kit.widgets.Explain(found)  # doctest: +SKIP
    """

    def __init__(self, found: Explanations) -> None:
        if not len(found):
            raise ConfigError("No row has an answer to explain. See .results for errors.")
        self._found = found
        names = [
            (f"{plain(one.row, _LONGEST_NAME)}: {plain(one.answer, _LONGEST_NAME)}", at) for at, one in enumerate(found)
        ]
        self.row_choice = widgets.Dropdown(options=names, description="row", style=_STYLE, layout={"width": "480px"})
        self.word_choice = widgets.Dropdown(options=[], description="word", style=_STYLE, layout={"width": "240px"})
        self.layer_choice = widgets.Dropdown(options=[], description="layer", style=_STYLE, layout={"width": "200px"})
        self.next_button = widgets.Button(description="next word", layout={"width": "110px"})
        self.picture, self.told = widgets.HTML(), widgets.HTML()
        self.told.add_class("qwenvl-told")
        self.row_choice.observe(lambda _: self._on_row(), names="value")
        for one in (self.word_choice, self.layer_choice):
            one.observe(lambda _: self._draw(), names="value")
        self.next_button.on_click(lambda _: self.next_word())
        chosen = widgets.HBox([self.word_choice, self.next_button, self.layer_choice], layout={"flex_flow": "row wrap"})
        super().__init__([self.row_choice, chosen, self.picture, self.told])
        self._on_row()

    @property
    def explanation(self) -> Explanation:
        """The explanation that is shown."""
        return self._found[self.row_choice.value]

    def next_word(self) -> None:
        """Go on to the next word, and from the last one to the first."""
        n_words = len(self.word_choice.options)
        if n_words:
            self.word_choice.value = (self.word_choice.value + 1) % n_words

    def _on_row(self) -> None:
        one = self.explanation
        strongest = one.strongest(1)
        kept = one.maps.layers if one.maps.words and len(one.maps.words[0].weights) > 1 else ()
        with self.hold_sync():
            self.layer_choice.options = [("mean", None), *((str(layer), layer) for layer in kept)]
            self.layer_choice.disabled = not kept
            self.word_choice.options = [(f"{at + 1} {word}", at) for at, word in enumerate(one.words)]
            if strongest:
                self.word_choice.value = strongest[0]
        self._draw()

    def _draw(self) -> None:
        one, word = self.explanation, self.word_choice.value
        if word is not None and word >= len(one.words):  # between two rows
            return
        drawn, said = draw_word(one, word, self.layer_choice.value)
        self.picture.value = f"{show_style()}{drawn}"
        self.told.value = render(_TOLD, said=said, checked=self._checked(one, word))

    @staticmethod
    def _checked(one: Explanation, word: int | None) -> str:
        if word is None or one.maps.words[word].curves is None:
            return ""
        areas = one.check().iloc[word]
        return (
            f". Area under deletion {areas['deletion']:.2f} (random {areas['random_deletion']:.2f}), insertion "
            f"{areas['insertion']:.2f} (random {areas['random_insertion']:.2f})"
        )

    def _ipython_display_(self) -> None:
        bundle: dict[str, Any] = dict(self._repr_mimebundle_())
        bundle["text/plain"] = "Explain: a panel that needs a running kernel; answers are below"
        display(bundle, raw=True)
        display(HTML(self._found.show(n_rows=3).html))

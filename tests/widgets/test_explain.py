"""The panel over explained answers without a browser."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers.explained import explanation

from qwenvl_kit import ConfigError
from qwenvl_kit.explain import Explanations
from qwenvl_kit.widgets import Explain

RESULTS = pd.DataFrame({"status": ["ok"], "error": [None]}, index=["first"])


def test_a_panel_opens_on_the_strongest_word_and_steps_through_all() -> None:
    panel = Explain(Explanations((explanation(layers=2), explanation("?!")), RESULTS))
    assert panel.word_choice.label == "3 star"
    assert "star: strongest at row 1 of 2, column 3 of 3" in panel.told.value
    assert "Area under deletion 0.25 (random 0.50), insertion 0.75 (random 0.50)" in panel.told.value
    panel.next_word()
    assert panel.word_choice.label == "1 A"
    assert "column 1 of 3" in panel.told.value
    assert panel.picture.value.count("data:image/png") == 1


def test_layers_can_be_chosen_where_they_were_kept_only() -> None:
    panel = Explain(Explanations((explanation(layers=2), explanation(n_pictures=2)), RESULTS))
    assert [name for name, _ in panel.layer_choice.options] == ["mean", "0", "1"]
    panel.layer_choice.value = 1
    panel.row_choice.value = 1
    assert panel.layer_choice.value is None
    assert panel.layer_choice.disabled
    assert panel.picture.value.count("data:image/jpeg") == 2


def test_an_answer_of_no_words_is_shown_with_its_picture() -> None:
    panel = Explain(Explanations((explanation("?!"),), RESULTS))
    assert "the answer has no words" in panel.told.value
    panel.next_word()
    assert "data:image/jpeg" in panel.picture.value


def test_a_panel_without_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match="No row has an answer to explain"):
        Explain(Explanations((), RESULTS))


def test_texts_of_models_never_run() -> None:
    panel = Explain(Explanations((explanation("<script>alert(1)</script>"),), RESULTS))
    assert "<script" not in panel.picture.value + panel.told.value

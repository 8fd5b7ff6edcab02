"""The panel of boxes draws what each size found beside the truth, live and saved."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qwenvl_kit import ConfigError
from qwenvl_kit.widgets import BoxCompare

ANSWER = '[{"bbox_2d": [0, 0, 56, 112], "label": "cat"}]'
TRUTH = pd.DataFrame({"row": ["a"], "label": "cat", "x0": 0.0, "y0": 0.0, "x1": 56.0, "y1": 112.0})


@pytest.fixture
def df() -> pd.DataFrame:
    return pd.DataFrame({"image": [np.full((112, 112, 3), 90, np.uint8)] * 2}, index=["a", "b"])


def test_each_size_is_mapped_by_its_own_input_and_compared_with_the_truth(df: pd.DataFrame) -> None:
    panel = BoxCompare(df, heights=[None, 56], truth=TRUTH, prompt=ANSWER, backend="echo", min_pixels=784)
    panel.run()
    found = panel.boxes()

    assert list(found) == ["resized_height original", "resized_height 56"]
    first, second = (one.loc[0, ["x0", "y0", "x1", "y1"]].tolist() for one in found.values())
    assert first == [0, 0, 56, 112]
    assert second == [0, 0, 112, 112]
    page = panel.sheet.value
    assert "<b>truth</b>" in page
    assert "IoU 1.00 with 1" in page
    assert "IoU 0.50 with 1" in page
    assert page in panel.to_html()
    assert "<script" not in panel.to_html()


def test_without_a_truth_the_first_size_is_the_reference(df: pd.DataFrame) -> None:
    panel = BoxCompare(df, heights=[None, 56], prompt=ANSWER, backend="echo", min_pixels=784)
    panel.run()

    assert "<b>truth</b>" not in panel.sheet.value
    assert panel.sheet.value.count("IoU 0.50 with 1") >= 2


def test_labels_make_the_prompt_in_their_language() -> None:
    panel = BoxCompare(labels=["cat"], points=True, backend="echo")
    assert panel.to_config().prompt.startswith("Point to every cat in the image")
    panel.labels_field.value = "红色的圆、 猫，猫"
    assert panel.to_config().prompt == "指出图中所有的红色的圆、猫，以JSON格式输出坐标。"
    assert panel.to_config().max_caption_length == 1024


def test_before_a_run_nothing_is_drawn_and_a_wrong_truth_or_height_is_said(df: pd.DataFrame) -> None:
    panel = BoxCompare(df, backend="echo")
    assert panel.boxes() == {}
    assert "qwenvl-mark" not in panel.to_html()
    with pytest.raises(ConfigError, match="truth needs the columns row, label"):
        BoxCompare(df, truth=df, backend="echo")
    panel.heights_field.value = ""
    panel.run()
    assert "No height is given" in panel.state.message


def test_images_of_one_name_and_failed_ones_keep_their_own_boxes(df: pd.DataFrame) -> None:
    images = pd.DataFrame({"image": [*df["image"], b"broken"]}, index=["a", "a", "c"])
    panel = BoxCompare(images, heights=[None], prompt=ANSWER, backend="echo", min_pixels=784)
    panel.run()

    assert panel.boxes()["resized_height original"]["row"].tolist() == ["a", "a (image 2)"]
    assert panel.sheet.value.count('class="qwenvl-mark ') == 2
    assert "error: " in panel.sheet.value

"""Importing is light, and the public names are these."""

from __future__ import annotations

import json
import subprocess
import sys

import qwenvl_kit

PROBE = """
import json, sys, time
import pandas
started = time.process_time()
import qwenvl_kit
seconds = time.process_time() - started
heavy = [name for name in ("torch", "transformers", "ipywidgets", "urllib3", "daft", "ray",
    "matplotlib", "sacrebleu", "anywidget") if name in sys.modules]
print(json.dumps({"seconds": seconds, "heavy": heavy}))
"""


def probe() -> dict[str, object]:
    found: dict[str, object] = json.loads(subprocess.check_output([sys.executable, "-c", PROBE]))
    return found


def test_importing_loads_nothing_heavy_and_takes_at_most_half_a_second_more_than_pandas() -> None:
    probes = [probe() for _ in range(3)]

    assert probes[0]["heavy"] == []
    assert min(float(str(found["seconds"])) for found in probes) < 0.5


def test_the_public_names_are_these() -> None:
    assert sorted(qwenvl_kit.__all__) == [
        "BackendBusy",
        "BackendFailed",
        "CheckpointError",
        "ColumnNotFound",
        "Config",
        "ConfigError",
        "Control",
        "CostWarning",
        "ExportFailed",
        "ForkedProcess",
        "InsufficientMemory",
        "Interrupted",
        "MissingExtra",
        "ModelNotFound",
        "OptionWarning",
        "QwenVLError",
        "QwenVLWarning",
        "Result",
        "RowError",
        "RowErrorWarning",
        "RowErrors",
        "ServerError",
        "StoreError",
        "StoreWarning",
        "UnknownOption",
        "__version__",
        "conform",
        "last_run",
        "restamp",
        "stamp",
        "unload",
    ]
    assert all(hasattr(qwenvl_kit, name) for name in qwenvl_kit.__all__)


def test_tab_and_question_mark_show_every_option() -> None:
    import inspect

    import pandas as pd

    from qwenvl_kit.options import option_names

    frame, series = pd.DataFrame(), pd.Series(dtype=object)
    for door in (
        frame.vl.caption,
        frame.vl.ask,
        frame.vl.run,
        frame.vl.compare,
        frame.vl.detect,
        frame.vl.point,
        series.vl.caption,
        series.vl.ask,
        series.vl.detect,
        series.vl.run,
    ):
        shown = inspect.signature(door).parameters
        assert set(option_names()) <= set(shown), door
        assert "options" not in shown or door.__name__ == "ask"  # whose options are possible answers
        assert "maximum size of a decoded image" in (door.__doc__ or "")

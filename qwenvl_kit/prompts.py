"""Choose the prompt of each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, RowError


def fill(prompts: Sequence[object] | None, default: str | None, n_rows: int) -> list[str | None]:
    """Return one prompt per row: its own, else the default, else None.

    Parameters
    ----------
    prompts : sequence of str or None
        One per row; None, NaN, pd.NA and "" mean the default.
    default : str or None
        The ``prompt`` option.
    n_rows : int
        Number of rows.

    Returns
    -------
    list of str or None
        None for a row without a prompt, which becomes that row's error.

    Raises
    ------
    ConfigError
        `prompts` is a single string, has another length, or contains a value that is not a string.

    Examples
    --------
    >>> fill(["What colour?", None], "Describe it.", 2)
    ['What colour?', 'Describe it.']
    """
    default = default or None
    if prompts is None:
        return [default] * n_rows
    if isinstance(prompts, str | bytes):
        raise ConfigError(
            f"prompts is a single string, not one prompt per row. Pass prompt={prompts!r} to use it for all rows."
        )
    if len(prompts) != n_rows:
        raise ConfigError(
            f"prompts has {len(prompts)} entries for {n_rows} rows. Pass one per row; None uses the prompt option."
        )
    return [default if is_missing(prompt) else _text(prompt, row) for row, prompt in enumerate(prompts)]


def is_missing(prompt: object) -> bool:
    """Return whether a prompt is None, NaN, pd.NA, NaT or empty."""
    if prompt is None or prompt is pd.NA or prompt is pd.NaT:
        return True
    if isinstance(prompt, str):
        return prompt == ""
    return isinstance(prompt, float | np.floating) and bool(np.isnan(prompt))


def no_prompt() -> RowError:
    """Return the error of a row without a prompt."""
    return RowError(
        "generate", "The row has no prompt, and the prompt option is None. Pass prompt=…, or fill the column."
    )


def check_whole(text: str, kind: str = "prompt") -> None:
    """Reject a text with an unpaired surrogate, which no tokenizer accepts; `kind` says what it is.

    Raises
    ------
    RowError
        At stage ``generate``.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError("generate", f"The {kind} contains an unpaired surrogate at index {error.start}.") from error


def _text(prompt: object, row: int) -> str:
    if isinstance(prompt, str):
        return prompt
    raise ConfigError(
        f"prompts contains {prompt!r} of type {type(prompt).__name__} at position {row}. Convert the column with "
        ".astype('string')."
    )

"""The prompt that each row gets: a text per row goes out, whatever way the caller gave it.

It deals in texts only; the chat template is the backend's affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, RowError


def fill(prompts: Sequence[object] | None, default: str | None, n_rows: int) -> list[str | None]:
    """Give every row its own prompt, else the default one, else None.

    Parameters
    ----------
    prompts : sequence of str or None
        One per row; None, NaN, pd.NA and "" stand for the default.
    default : str or None
        The ``prompt`` option.
    n_rows : int
        Rows there are.

    Returns
    -------
    list of str or None
        None where a row has no prompt at all, which is that row's error.

    Raises
    ------
    ConfigError
        `prompts` is itself a text, has another length, or holds something that is no text.

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
            f"prompts must have one entry per row; got one text; pass prompt={prompts!r} to ask all of it"
        )
    if len(prompts) != n_rows:
        raise ConfigError(
            f"prompts must have one entry per row; got {len(prompts)} for {n_rows} rows; pass None in "
            "the places where the prompt option should serve"
        )
    return [default if is_missing(prompt) else _text(prompt, row) for row, prompt in enumerate(prompts)]


def is_missing(prompt: object) -> bool:
    """Whether a prompt is None, NaN, pd.NA, NaT or empty."""
    if prompt is None or prompt is pd.NA or prompt is pd.NaT:
        return True
    if isinstance(prompt, str):
        return prompt == ""
    return isinstance(prompt, float | np.floating) and bool(np.isnan(prompt))


def no_prompt() -> RowError:
    """The fault of a row that has no prompt at all."""
    return RowError("generate", "the row has no prompt and the prompt option is None; pass prompt=… or fill the column")


def check_whole(prompt: str) -> None:
    """Refuse a prompt that holds half a character, which no tokenizer takes.

    Raises
    ------
    RowError
        Of the stage ``generate``.
    """
    if not prompt.isascii():
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                "generate", f"the prompt holds half a character (a lone surrogate) at {error.start}"
            ) from error


def _text(prompt: object, row: int) -> str:
    if isinstance(prompt, str):
        return prompt
    raise ConfigError(
        f"prompts must be texts; got {prompt!r} of type {type(prompt).__name__} at position {row}; "
        "convert the column with .astype('string')"
    )

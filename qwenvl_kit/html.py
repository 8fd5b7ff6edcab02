"""Write HTML that a notebook can keep: escaped by jinja2's autoescape, bounded, and without invalid characters."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup

# Characters that HTML excludes: controls but tab and line breaks, surrogates, noncharacters.
_INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def render(template: str, **values: Any) -> Markup:
    r"""Render a jinja2 template; every value is escaped, also in attributes, unless it is itself rendered HTML.

    Parameters
    ----------
    template : str
        A constant of the calling module; compiled once.
    **values
        Its variables.

    Examples
    --------
    >>> str(render("<dd title='{{ text }}'>{{ text }}</dd>", text="<b> 'half\ud83d'"))
    "<dd title='&lt;b&gt; &#39;half�&#39;'>&lt;b&gt; &#39;half�&#39;</dd>"
    """
    from markupsafe import Markup

    return Markup(_compiled(template).render(values))


def plain(value: object, length: int | None = None) -> str:
    """Return the text of a value, without invalid characters, cut after `length` characters.

    Examples
    --------
    >>> plain("a long text", 6)
    'a long… (11 characters)'
    """
    try:
        text = value if isinstance(value, str) else _text_of(value, length)
        n_characters = len(text)
        if length is not None and n_characters > length:
            text = f"{text[:length]}… ({n_characters} characters)"
    except Exception as error:  # noqa: BLE001  # a cell's own __str__ may raise anything
        text = f"({type(value).__name__} without a text: {type(error).__name__})"
    return text if text.isprintable() else _INVALID.sub("\ufffd", text)


def _text_of(value: object, length: int | None) -> str:
    if isinstance(value, bytes | bytearray) and length is not None and len(value) > length:
        return f"{bytes(value[:32])!r}… ({len(value)} bytes)"
    return str(value)


@functools.cache
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, StrictUndefined  # here, since `import qwenvl_kit` stays light

    return Environment(autoescape=True, undefined=StrictUndefined, finalize=_finalize)


def _finalize(value: object) -> object:
    return value if hasattr(value, "__html__") else plain(value)

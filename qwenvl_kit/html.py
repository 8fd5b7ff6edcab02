"""Turn any text into HTML that a notebook can keep: escaped, bounded, and without half characters."""

from __future__ import annotations

import html
import re

# HTML has no place for them: control characters but tab and line breaks, half characters (surrogates), noncharacters.
_NO_HTML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def escape(value: object, length: int | None = None) -> str:
    r"""Return a text escaped for HTML, in attributes too.

    Parameters
    ----------
    value : object
        A text, or anything that `str` makes one of.
    length : int, optional
        Most characters of the text that are kept.

    Examples
    --------
    >>> escape('<b>"half\ud83d"</b>'), escape("a long text", 6)
    ('&lt;b&gt;&quot;half�&quot;&lt;/b&gt;', 'a long… (11 characters)')
    """
    return html.escape(plain(value, length), quote=True)


def plain(value: object, length: int | None = None) -> str:
    """Return `escape`'s text before it is escaped, for what escapes texts itself, such as a widget's label."""
    try:
        text = value if isinstance(value, str) else _written(value, length)
        n_characters = len(text)
        if length is not None and n_characters > length:
            text = f"{text[:length]}… ({n_characters} characters)"
    except Exception as error:  # noqa: BLE001  # a cell's own __str__ may raise anything
        text = f"({type(value).__name__} that cannot be written: {type(error).__name__})"
    return _NO_HTML.sub("\ufffd", text)


def _written(value: object, length: int | None) -> str:
    if isinstance(value, bytes | bytearray) and length is not None and len(value) > length:
        return f"{bytes(value[:32])!r}… ({len(value)} bytes)"
    return str(value)

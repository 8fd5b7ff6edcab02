"""Write quantities as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> duration(0.25), duration(95), duration(7300)
    ('0.2 s', '1 min 35 s', '2 h 2 min')
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"

"""Write probabilities as HTML: the tokens of an answer shaded by theirs, and labels as bars.

The HTML needs no kernel, script or network. Where a page drops its style, the shades and titles stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from qwenvl_kit.html import render
from qwenvl_kit.tasks.classify import softmax
from qwenvl_kit.tasks.token_spans import token_spans

if TYPE_CHECKING:
    from markupsafe import Markup

    from qwenvl_kit.types import Result

PROBABILITY_STYLE = """<style>
.qwenvl .token { position: relative; border-radius: 2px; }
.qwenvl .token:focus { outline: 2px solid var(--jp-brand-color1, #1976d2); }
.qwenvl .token:focus::after { content: attr(title); position: absolute; left: 0; top: 1.6em; z-index: 9;
  width: max-content; max-width: 300px; padding: 4px 8px; font-size: 12px; color: var(--jp-ui-font-color1, CanvasText);
  background: var(--jp-layout-color1, Canvas); border: 1px solid rgba(128, 128, 128, .6); border-radius: 4px; }
.qwenvl details, .qwenvl details table { font-size: 12px; } .qwenvl summary { cursor: pointer; }
.qwenvl details { margin-top: 4px; } .qwenvl details :is(th, td) { padding: 2px 8px 2px 0; }
.qwenvl .labels td { padding: 2px 8px 2px 0; border: 0; vertical-align: middle; }
</style>"""
_MAX_TOKENS = 400  # drawn, so that a saved notebook stays small
_MAX_LISTED = 20
_MAX_LABELS = 12
_SURE = 0.995  # such tokens are not shaded
_TOKENS = """<div style='white-space: pre-wrap'>{% for one in drawn %}{% if one.is_sure %}{{ one.text }}{% else -%}
<span class='token' style='background: rgba(214, 120, 40, {{ one.shade }}){{ one.line }}' title='{{ one.told }}'
{%- if one.is_listed %} tabindex='0' aria-description='{{ one.told }}'{% endif %}>{{ one.text }}</span>
{%- endif %}{% endfor %}
{%- if n_left_out %} … and {{ n_left_out }} more tokens{% endif %}</div>
<details><summary>{{ summary }}</summary>
{%- if listed %}<table><thead><tr><th style='text-align: left; width: 30%' scope='col'>token</th>
<th style='text-align: left; width: 26%' scope='col'>probability</th>
<th style='text-align: left' scope='col'>likeliest there</th></tr></thead>
<tbody>{% for one in listed %}<tr><td style='text-align: left'>{{ one.name }}</td>
<td style='text-align: left'>{{ one.percent }}</td>
<td style='text-align: left'>{{ one.alternatives }}</td></tr>{% endfor %}</tbody></table>{% endif %}</details>"""
_LABELS = """<table class='labels'><tbody>{% for one in bars %}<tr>
<td style='text-align: left; width: 30%'>{{ one.label }}</td>
<td style='text-align: left; width: 50%'><div aria-hidden='true' style='height: 12px; width: {{ one.width }}%;
 min-width: 1px; background: rgba(60, 130, 214, .75)'></div></td>
<td style='text-align: left; width: 20%'>{{ one.percent }}</td></tr>{% endfor %}</tbody></table>
{%- if n_left_out %}<small>{{ n_left_out }} less likely labels are not shown.</small>{% endif %}"""


def tokens_html(result: Result) -> Markup | None:
    """Return the tokens of an answer, shaded by their improbability; None where it has no log-probabilities.

    Hovering shows the likeliest tokens in a place. The least probable ones take the focus, and stand in a table.
    """
    if not result.token_logprobs or result.text is None:
        return None
    pieces = _pieces(result)
    drawn = pieces[:_MAX_TOKENS]
    doubtful = sorted((one for one in drawn if not one.is_sure), key=lambda one: one.probability)[:_MAX_LISTED]
    for one in doubtful:
        one.is_listed = True
    n = len(result.token_logprobs)
    told = f"{n} token{'' if n == 1 else 's'}, together {_percent(math.exp(math.fsum(result.token_logprobs)))}"
    if doubtful:
        told += f"; least probable {doubtful[0].name}, {doubtful[0].percent}"
    listed = [one for one in drawn if one.is_listed]
    return render(_TOKENS, drawn=drawn, listed=listed, summary=told, n_left_out=len(pieces) - len(drawn))


def labels_html(labels: Sequence[str], logprobs: Sequence[float]) -> Markup:
    """Return a bar for each label, the likeliest first, as long as its share among all of them."""
    shares = softmax(np.asarray(logprobs, np.float64)).tolist()
    ordered = sorted(zip(shares, labels, strict=True), key=lambda one: -one[0])
    bars = [
        {"label": label, "width": f"{100 * share:.1f}", "percent": _percent(share)}
        for share, label in ordered[:_MAX_LABELS]
    ]
    return render(_LABELS, bars=bars, n_left_out=len(ordered) - len(bars))


@dataclass(slots=True)
class _Piece:
    """A token, or those that write parts of one character."""

    text: str
    probability: float
    alternatives: str
    is_listed: bool = False

    @property
    def is_sure(self) -> bool:
        return self.probability >= _SURE

    @property
    def name(self) -> str:
        return f"“{self.text}”" if self.text else "end of the answer"

    @property
    def percent(self) -> str:
        return _percent(self.probability)

    @property
    def told(self) -> str:
        return f"{self.percent}; {self.alternatives}" if self.alternatives else self.percent

    @property
    def shade(self) -> str:
        return f"{0.1 + 0.4 * (1 - self.probability):.2f}"

    @property
    def line(self) -> str:
        """A mark beside the colour."""
        return "; text-decoration: underline dotted" if self.probability < 0.5 else ""


def _pieces(result: Result) -> list[_Piece]:
    texts, logprobs = result.token_texts or (), result.token_logprobs or ()
    spans = token_spans(texts, result.text or "")
    if spans is None:
        return [_Piece(text, math.exp(logprobs[at]), _alternatives(result, at)) for at, text in enumerate(texts)]
    pieces: list[_Piece] = []
    for (begin, end), group in groupby(range(len(texts)), key=lambda at: spans[at]):
        places = list(group)
        text = (result.text or "")[begin:end]
        told = _alternatives(result, places[0]) if len(places) == 1 else ""
        pieces.append(_Piece(text, math.exp(math.fsum(logprobs[at] for at in places)), told))
    return pieces


def _alternatives(result: Result, at: int) -> str:
    """Return the likeliest tokens in a place, such as ``“ red” 61 %, “ blue” 30 %``."""
    texts, logprobs = result.alternative_texts or (), result.alternative_logprobs or ()
    n = len(texts) // max(1, len(result.token_texts or ()))
    some = zip(texts[at * n : (at + 1) * n], logprobs[at * n : (at + 1) * n], strict=True)
    return ", ".join(f"{f'“{text}”' if text else 'end'} {_percent(math.exp(logprob))}" for text, logprob in some)


def _percent(share: float) -> str:
    """Return a share in percent, without a line break; nothing short of one rounds to 100."""
    shown = f"{100 * share:.3g}"
    return f"{'>99.9' if shown == '100' and share < 1 else shown}\N{NO-BREAK SPACE}%"

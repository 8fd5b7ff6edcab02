"""torch's flash kernel as its documentation describes it, on the CPU, where torch has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def flash_on_cpu() -> Iterator[None]:
    """Let torch's own operator run on the CPU, with arguments as its schema has them."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", _flash, "CPU")
    try:
        yield
    finally:
        library._destroy()


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    seqused_k: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, ...]:
    """Attend from the queries (total_q, H, d) of each row to its keys (total_k, G, d)."""
    assert cum_seq_q.dtype == cum_seq_k.dtype == torch.int32
    assert (is_causal, dropout_p, return_debug_mask) == (False, 0.0, False)
    starts, begins = cum_seq_q.tolist(), cum_seq_k.tolist()
    used = cum_seq_k.diff().tolist() if seqused_k is None else seqused_k.tolist()
    assert max(used) <= max_k
    output = torch.empty_like(query)
    for row, n in enumerate(used):
        mine = slice(starts[row], starts[row + 1])
        assert starts[row + 1] - starts[row] <= max_q
        held = slice(begins[row], begins[row] + n)
        heads = (part.transpose(0, 1)[None] for part in (query[mine], key[held], value[held]))
        output[mine] = functional.scaled_dot_product_attention(*heads, scale=scale, enable_gqa=True)[0].transpose(0, 1)
    nothing = torch.empty(0)
    return output, nothing, nothing, nothing, nothing

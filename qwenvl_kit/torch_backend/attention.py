"""Attention of the language model: masks for its layers, SDPA with grouped heads, and SDPA without cuDNN."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if TYPE_CHECKING:
    from torch import Tensor

_GROUPED_SDPA = "qwenvl_kit_grouped_sdpa"  # its name in transformers' registry


class AttentionMasks:
    """Masks of full and sliding layers, in the form that the model's attention takes.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
        With ``sdpa`` or ``flash_attention_2``.

    Attributes
    ----------
    is_flash : bool
        The attention is flash attention.
    """

    def __init__(self, text: Any) -> None:
        self.is_flash: bool = text.config._attn_implementation.startswith("flash")
        self._window: int | None = text.config.sliding_window if text.has_sliding_layers else None

    def of(self, mask: Tensor | None, at: Tensor) -> dict[str, Tensor | None]:
        """Return the mask of each kind of layer.

        Parameters
        ----------
        mask : bool Tensor (B, 1, T, L) or None
            None is causal.
        at : int64 Tensor (B, T)
            Indices of the tokens in their slots.
        """
        return {"full_attention": self._fit(mask), "sliding_attention": self._fit(self._sliding(mask, at))}

    def _fit(self, mask: Tensor | None) -> Tensor | None:
        """Reduce a mask to the keys (B, L) for flash attention, which is causal by itself."""
        return mask[:, 0, -1] if mask is not None and self.is_flash else mask

    def _sliding(self, mask: Tensor | None, at: Tensor) -> Tensor | None:
        """Restrict a mask to the window before each token; flash attention gets the window from the layer."""
        if self._window is None or self.is_flash:
            return mask
        columns = torch.arange(at.shape[1] if mask is None else mask.shape[-1], device=at.device)
        near = (columns <= at[:, None, :, None]) & (columns > at[:, None, :, None] - self._window)  # (B, 1, T, L)
        return near if mask is None else near & mask


class _CudnnSwitch:
    """Count the runs without cuDNN's attention: torch has one switch for the whole process."""

    def __init__(self) -> None:
        self._lock, self._n_runs, self._was_enabled = threading.Lock(), 0, True

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            self._n_runs += 1
            if self._n_runs == 1:
                self._was_enabled = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
                torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            yield
        finally:
            with self._lock:
                self._n_runs -= 1
                if not self._n_runs:
                    torch.backends.cuda.enable_cudnn_sdp(self._was_enabled)


_cudnn_switch = _CudnnSwitch()


def without_cudnn() -> contextlib.AbstractContextManager[None]:
    """Return a context in which SDPA does not use cuDNN, in the whole process.

    On GPUs of compute capability 9 and 10 torch prefers cuDNN from 2.10 on. cuDNN builds a plan for each new key
    length, that is for every token; others measured 0.44 s a plan (https://github.com/modelscope/FunASR/issues/3704).
    On B200 it was wrong for models with fewer than 8 KV heads, as the 3B and the 7B have
    (https://github.com/pytorch/pytorch/issues/193893).
    """
    return _cudnn_switch.off()


def use_grouped_sdpa(text: Any) -> None:
    """Set the attention of a language model with ``sdpa`` to `grouped_sdpa`, in place.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
    """
    AttentionInterface.register(_GROUPED_SDPA, grouped_sdpa)
    text.config._attn_implementation = _GROUPED_SDPA


def grouped_sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend like transformers' sdpa, but for a single token make heads that share keys rows of one product.

    transformers does so too from 5.23 on, except under torch.compile; else it copies keys and values for each head:
    https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/sdpa_attention.py.

    Parameters
    ----------
    module : transformers.Qwen2_5_VLAttention
    query : Tensor (B, H, T, d)
    key, value : Tensor (B, G, L, d)
    attention_mask : bool Tensor (B, 1, T, L) or None

    Returns
    -------
    tuple
        Attended values (B, T, H, d), and None for the weights.
    """
    n_rows, _, n_tokens, head_dim = query.shape
    if n_tokens > 1 or attention_mask is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return whole
    groups = query.reshape(n_rows, -1, module.num_key_value_groups, head_dim)  # (B, G, H/G, d)
    attended = functional.scaled_dot_product_attention(groups, key, value, attention_mask, scale=options.get("scaling"))
    return attended.reshape(n_rows, 1, -1, head_dim), None

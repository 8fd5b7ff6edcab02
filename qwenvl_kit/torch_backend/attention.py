"""Attention of the language model: masks for its layers, attention of decode steps, and SDPA without cuDNN."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from qwenvl_kit.torch_backend.slot_attention import attend_slots, slot_index

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = "qwenvl_kit_steps"  # the name of `attend_step` in transformers' registry
_WATCHED = "qwenvl_kit_watched"

Watch = Callable[[int, "Tensor", "Tensor", "Tensor | None", float], None]
"""Called with a layer's index, its queries (B, H, T, d), keys (B, G, L, d), mask (B, 1, T, L) and the factor of their
products."""


class AttentionMasks:
    """Masks of full and sliding layers, in the form that the model's attention takes.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
        With ``sdpa`` or ``flash_attention_2``.
    in_slots : bool
        Decode steps run on `attend_slots`.

    Attributes
    ----------
    is_flash : bool
        The attention of prompts is flash attention.
    """

    def __init__(self, text: Any, *, in_slots: bool = False) -> None:
        self._in_slots = in_slots
        self.is_flash: bool = text.config._attn_implementation.startswith("flash")
        self._window: int | None = text.config.sliding_window if text.has_sliding_layers else None

    def of_step(self, lengths: Tensor, max_len: int, capacity: int) -> dict[str, Tensor | None]:
        """Return what each kind of layer passes to `attend_step`, for rows with `lengths` (B,) tokens before the step.

        `max_len` is how many tokens of its slot a row attends to at most, `capacity` how many a slot has room for.
        """
        if self._in_slots:
            return dict.fromkeys(("full_attention", "sliding_attention"), slot_index(lengths, capacity))
        columns = torch.arange(max_len, device=lengths.device)
        mask = (columns <= lengths[:, None])[:, None, None]  # (B, 1, 1, L)
        return {"full_attention": mask, "sliding_attention": self._within_window(mask, lengths[:, None])}

    def of(self, mask: Tensor | None, at: Tensor) -> dict[str, Tensor | None]:
        """Return the mask of each kind of layer for a pass over prompts.

        Parameters
        ----------
        mask : bool Tensor (B, 1, T, L) or None
            None is causal.
        at : int64 Tensor (B, T)
            Indices of the tokens in their slots.
        """
        return {"full_attention": self._fit(mask), "sliding_attention": self._fit(self._sliding(mask, at))}

    def of_branches(self, mask: Tensor, at: Tensor) -> dict[str, Tensor | None]:
        """Return the mask of each kind of layer, under `masked_attention`, where tokens of one row branch.

        Parameters
        ----------
        mask : bool Tensor (1, 1, T, L)
            Which tokens the last T of a row attend to.
        at : int64 Tensor (L,)
            Places of all tokens of the row; those of different branches may be equal.
        """
        sliding = mask
        if self._window is not None:
            sliding = mask & (at > at[-mask.shape[2] :, None] - self._window)
        return {"full_attention": mask, "sliding_attention": sliding}

    def _fit(self, mask: Tensor | None) -> Tensor | None:
        """Reduce a mask to the keys (B, L) for flash attention, which is causal by itself."""
        return mask[:, 0, -1] if mask is not None and self.is_flash else mask

    def _sliding(self, mask: Tensor | None, at: Tensor) -> Tensor | None:
        """Restrict a mask to the window before each token; flash attention gets the window from the layer."""
        return mask if self.is_flash else self._within_window(mask, at)

    def _within_window(self, mask: Tensor | None, at: Tensor) -> Tensor | None:
        if self._window is None:
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


@contextlib.contextmanager
def step_attention(text: Any) -> Iterator[None]:
    """Set the attention of a language model to `attend_step`, for decode steps; prompts keep their own.

    transformers' flash attention gathers all keys and values of a step by index in every layer, and waits for the GPU
    twice: https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/modeling_flash_attention_utils.py.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
    """
    AttentionInterface.register(_STEPS, attend_step)
    with _attention(text, _STEPS):
        yield


def masked_attention(text: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context in which a language model takes masks of any form, which flash attention does not."""
    return _attention(text, "sdpa")


@contextlib.contextmanager
def watched_attention(text: Any, watch: Watch) -> Iterator[None]:
    """Call `watch` in each layer of a language model within the context, which takes masks of any form."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        watch(module.layer_idx, query, key, attention_mask, scaling)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attention_mask, scale=scaling, enable_gqa=True
        )
        return attended.transpose(1, 2), None

    AttentionInterface.register(_WATCHED, attend)
    with _attention(text, _WATCHED):
        yield


@contextlib.contextmanager
def _attention(text: Any, name: str) -> Iterator[None]:
    own, text.config._attn_implementation = text.config._attn_implementation, name
    try:
        yield
    finally:
        text.config._attn_implementation = own


def attend_step(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend from a single token of each row, as transformers' layers call an attention.

    Heads that share keys become rows of one product. transformers does so from 5.23 on, except under torch.compile;
    else it copies keys and values for each head:
    https://github.com/huggingface/transformers/blob/v5.24.0/src/transformers/integrations/sdpa_attention.py.

    Parameters
    ----------
    module : transformers.Qwen2_5_VLAttention
    query : Tensor (B, H, 1, d)
    key, value : Tensor (B, G, L, d)
    attention_mask : bool Tensor (B, 1, 1, L), or int32 Tensor (3, B + 1) of `slot_index`
    scaling : float
        Factor of the products.

    Returns
    -------
    tuple
        Attended values (B, 1, H, d), and None for the weights.
    """
    if attention_mask.dtype == torch.int32:
        return attend_slots(query, key, value, attention_mask, scaling), None
    n_rows, head_dim = len(query), query.shape[-1]
    groups = query.reshape(n_rows, -1, module.num_key_value_groups, head_dim)  # (B, G, H/G, d)
    attended = functional.scaled_dot_product_attention(groups, key, value, attention_mask, scale=scaling)
    return attended.reshape(n_rows, 1, -1, head_dim), None

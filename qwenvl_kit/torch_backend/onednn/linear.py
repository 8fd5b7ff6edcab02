"""Linear layers, gated networks and norms for float32 on the CPU, with fewer passes over memory.

oneDNN multiplies by prepacked weights: a handful of rows is about a quarter faster than with plain ones. It also adds
biases, gates and residuals to the product at once. The plain weights are freed, so memory does not grow. They may be in
another dtype before, such as the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

_N_ROWS = 4  # for which oneDNN chooses the layout; measured no slower from 2 to 2000 rows


def has_onednn() -> bool:
    """Return whether this torch can prepack weights."""
    return torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def can_prepack(model: Any, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether oneDNN is there and all weights of a model are plain `dtype` in CPU memory."""
    return (
        has_onednn()
        and all(p.device.type == "cpu" and p.dtype == dtype for p in model.parameters())
        and not any(hasattr(module, "_hf_hook") for module in model.modules())
        and all(type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation") for mlp in _mlps(model))
    )


class OneDNNLinear(nn.Module):
    """One product for one or several linear layers of the same input.

    Parameters
    ----------
    linears : sequence of torch.nn.Linear
        Their outputs are concatenated. The product is in float32.
    """

    prepacked: Tensor
    bias: Tensor | None

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = _joined([linear.weight.flatten(1) for linear in linears])  # (out, in)
        self.register_buffer("prepacked", torch.ops.mkldnn._reorder_linear_weight(weight, _N_ROWS), persistent=False)
        biases = [linear.bias for linear in linears]
        bias = None if biases[0] is None else _joined(biases)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return the product (…, out) of states (…, in)."""
        return self._apply_with("none", states)

    def silu(self, states: Tensor) -> Tensor:
        """Return SiLU of the product."""
        return self._apply_with("swish", states)

    def times(self, states: Tensor, factors: Tensor) -> Tensor:
        """Return the product times `factors` (…, out), element by element."""
        if states.requires_grad:
            return self._dense(states) * factors
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, factors, self.prepacked, self.bias, "mul")
        return out

    def plus(self, states: Tensor, others: Tensor) -> Tensor:
        """Return the product plus `others` (…, out)."""
        if states.requires_grad:
            return self._dense(states) + others
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, others, self.prepacked, self.bias, "add")
        return out

    def _apply_with(self, activation: str, states: Tensor) -> Tensor:
        if states.requires_grad:
            product = self._dense(states)
            return functional.silu(product) if activation == "swish" else product
        out: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.prepacked, self.bias, activation, [], "")
        return out

    def _dense(self, states: Tensor) -> Tensor:
        """Return the product with plain weights, which has a gradient."""
        return functional.linear(states, self.prepacked.to_dense(), self.bias)


class OneDNNMLP(nn.Module):
    """Gated network of a layer.

    Parameters
    ----------
    mlp : torch.nn.Module
        Has ``gate_proj``, ``up_proj`` and ``down_proj``, and SiLU between them.
    """

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate, self.up = OneDNNLinear([mlp.gate_proj]), OneDNNLinear([mlp.up_proj])
        self.down = OneDNNLinear([mlp.down_proj])

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        """Return the network's output for states (…, D), plus `residual` (…, D)."""
        return self.down.plus(self.up.times(states, self.gate.silu(states)), residual)


class OneDNNRMSNorm(nn.Module):
    """RMS norm in two passes over the states.

    Parameters
    ----------
    norm : torch.nn.Module
        Has ``weight`` and ``variance_epsilon``.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().float(), requires_grad=False)
        self._epsilon = norm.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:
        """Return states (…, D), each of mean square one, times the weights."""
        if states.requires_grad:
            plain: Tensor = states * (states.square().mean(dim=-1, keepdim=True) + self._epsilon).rsqrt() * self.weight
            return plain
        scale = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        scale = scale.square_().div_(states.shape[-1]).add_(self._epsilon).rsqrt_()
        normed: Tensor = (states * scale).mul_(self.weight)
        return normed


def interleave_rotary(linear: nn.Linear, head_dim: int) -> nn.Linear:
    """Return a query or key layer whose pairs of rotated coordinates are neighbours.

    Queries and keys in one order have the same products as in another.

    Parameters
    ----------
    linear : torch.nn.Linear
        Of any number of heads; unchanged.
    head_dim : int
        Coordinates of a head.
    """
    order = torch.arange(linear.out_features).view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
    return select_outputs(linear, order)


def select_outputs(linear: nn.Linear, outputs: Tensor) -> nn.Linear:
    """Return a linear layer with some outputs of another, given by their indices."""
    taken = nn.Linear(linear.in_features, len(outputs), bias=linear.bias is not None, device="meta")
    taken.weight = nn.Parameter(linear.weight.detach()[outputs], requires_grad=False)
    if linear.bias is not None:
        taken.bias = nn.Parameter(linear.bias.detach()[outputs], requires_grad=False)
    return taken


def rotary_as_complex(cos: Tensor, sin: Tensor) -> Tensor:
    """Return cosines and sines (…, d), which repeat after half, as complex numbers (…, d/2)."""
    half = cos.shape[-1] // 2
    return torch.complex(cos[..., :half], sin[..., :half])


def apply_rotary(states: Tensor, rotary: Tensor) -> Tensor:
    """Rotate neighbouring coordinates (…, d) by complex numbers (…, d/2): eq. 12 of Su et al. (arXiv:2104.09864)."""
    pairs = torch.view_as_complex(states.view(*states.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary).flatten(-2)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return float32 parts in one tensor, without a copy more than it takes."""
    return parts[0].detach().float() if len(parts) == 1 else torch.cat([part.detach().float() for part in parts])


def _mlps(model: Any) -> list[Any]:
    return [layer.mlp for layer in [*model.model.language_model.layers, *model.model.visual.blocks]]

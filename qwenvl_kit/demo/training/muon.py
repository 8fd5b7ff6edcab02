"""Optimise with Muon for the matrices inside the blocks and AdamW for all other parameters.

Source of the update and of the coefficients: https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Learning rates of one step."""

    muon: float
    adamw: float
    vision_scale: float


class Optimiser:
    """Muon and AdamW. Several processes share the work of the orthogonalisation."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float = 0.01) -> None:
        parameters = list(named)
        self._matrices = [(name, p) for name, p in parameters if _is_matrix(name, p)]
        rest = [(name, p) for name, p in parameters if not _is_matrix(name, p)]
        self._momenta = [torch.zeros_like(p) for _, p in self._matrices]
        self._weight_decay = weight_decay
        vision = [p for name, p in rest if "visual" in name]
        other = [p for name, p in rest if "visual" not in name]
        self._adamw = torch.optim.AdamW(
            [{"params": vision, "vision": True}, {"params": other, "vision": False}],
            betas=(0.9, 0.98),
            weight_decay=weight_decay,
            fused=True,
        )

    def step(self, rates: Rates) -> None:
        """Apply the gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = rates.adamw * (rates.vision_scale if group["vision"] else 1.0)
        self._adamw.step()
        updates = self._orthogonal_updates()
        for (name, parameter), update in zip(self._matrices, updates, strict=True):
            rate = rates.muon * (rates.vision_scale if "visual" in name else 1.0)
            with torch.no_grad():
                parameter.mul_(1 - rate * self._weight_decay)
                parameter.add_(update, alpha=-rate * max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5)

    def state_dict(self) -> dict[str, object]:
        """Return the state of the momenta and of AdamW."""
        return {"momenta": self._momenta, "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore the state that `state_dict` returned."""
        for momentum, saved in zip(self._momenta, state["momenta"], strict=True):  # type: ignore[call-overload]
            momentum.copy_(saved)
        self._adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]

    def _orthogonal_updates(self) -> list[Tensor]:
        """Return the update of every matrix; each process computes its share of them."""
        rank, n_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = []
        for index, ((_, parameter), momentum) in enumerate(zip(self._matrices, self._momenta, strict=True)):
            gradient = parameter.grad
            assert gradient is not None
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            mine = index % n_processes == rank
            nesterov = gradient.lerp(momentum, _MOMENTUM)
            updates.append(orthogonalise(nesterov) if mine else torch.zeros_like(parameter))
        return sum_over_processes(updates)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix near 1 by Newton-Schulz steps."""
    a, b, c = _COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    turned: Tensor = x.T if matrix.shape[0] > matrix.shape[1] else x
    return turned


def sum_over_processes(tensors: list[Tensor]) -> list[Tensor]:
    """Add tensors of the same shapes over all processes in one exchange."""
    if not dist.is_initialized():
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    inside_block = ".blocks." in name or ".layers." in name or name.endswith("merger.mlp.2.weight")
    return parameter.ndim == 2 and inside_block

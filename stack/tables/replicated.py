"""Data-parallel tables: whole on every process, their gradients summed in the backward pass and applied there.

TorchRec's own go through a DDP that wants a static graph, which a refused batch (forward without backward) is not, and
leave the update to an optimizer outside. These are updated like the fused ones, at the same moment, by the same rule.

Shape legend: R rows of a table, D its width, U distinct ids asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from stack.tables.config import TableSpec
from stack.tables.fused import FusedOptimizer
from stack.tables.placement import RowType, TableOptimizer

TORCH_TYPES = {RowType.fp32: torch.float32, RowType.fp16: torch.float16, RowType.bf16: torch.bfloat16}

STATE = "momentum1"
"""What FBGEMM calls the sum of squares, so that a checkpoint does not tell the one from the other."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One table: (R, D) and, for row-wise Adagrad (R,), for Adagrad (R, D), the sums of squared gradients."""

    weight_RD: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)


class Replicated:
    """All data-parallel tables of a model, on one device."""

    def __init__(
        self,
        specs: Mapping[str, TableSpec],
        *,
        device: torch.device,
        fused: FusedOptimizer,
    ) -> None:
        self.learning_rate = fused.learning_rate
        self._eps = fused.eps
        self._optimizer = fused.optimizer
        self.tables = {name: _allocate(spec, device, fused.optimizer) for name, spec in specs.items()}
        self.changed: Callable[[str, Tensor], None] | None = None
        """Told of every table's rows that an update moved, the same on all processes."""
        self._anchor = torch.zeros((), device=device, requires_grad=True)

    def look_up(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(U, D) in fp32 for distinct ids of every table. Every process must call this equally often."""
        names = list(self.tables)
        vectors = _LookUp.apply(self, self._anchor, *(ids[name] for name in names))  # type: ignore[no-untyped-call]
        return dict(zip(names, vectors, strict=True))

    def update(self, ids: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Averages the gradients over processes, as TorchRec does, and moves the rows."""
        summed = {
            name: torch.zeros(replica.weight_RD.shape, device=replica.weight_RD.device).index_add_(
                0, ids[name], gradients[name].float()
            )
            for name, replica in self.tables.items()
        }
        for name, gradient_RD in _averaged(summed).items():
            self._move(self.tables[name], gradient_RD)
            if self.changed is not None:
                self.changed(name, (gradient_RD != 0).any(1).nonzero().squeeze(1))

    def _move(self, replica: Replica, gradient_RD: Tensor) -> None:
        """Rows without a gradient stay as they are under each of these rules."""
        step_RD = gradient_RD
        if self._optimizer is TableOptimizer.rowwise_adagrad:
            sum_R = replica.state[STATE].add_(gradient_RD.square().mean(1))
            step_RD = gradient_RD / (sum_R.sqrt() + self._eps)[:, None]
        elif self._optimizer is TableOptimizer.adagrad:
            sum_RD = replica.state[STATE].add_(gradient_RD.square())
            step_RD = gradient_RD / (sum_RD.sqrt() + self._eps)
        replica.weight_RD.copy_(replica.weight_RD.float() - self.learning_rate * step_RD)


class _LookUp(torch.autograd.Function):
    """One node of the graph for all tables, so that every process comes by it once, whatever it asked for."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tables: Replicated, anchor: Tensor, *ids: Tensor) -> object:
        ctx.tables = tables  # type: ignore[attr-defined]
        ctx.save_for_backward(*ids)
        return tuple(
            replica.weight_RD.index_select(0, own).float()
            for replica, own in zip(tables.tables.values(), ids, strict=True)
        )

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> object:
        tables: Replicated = ctx.tables  # type: ignore[attr-defined]
        ids: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        names = list(tables.tables)
        tables.update(dict(zip(names, ids, strict=True)), dict(zip(names, gradients, strict=True)))
        return (None, None, *(None for _ in ids))


def _allocate(spec: TableSpec, device: torch.device, optimizer: TableOptimizer) -> Replica:
    shapes = {
        TableOptimizer.sgd: None,
        TableOptimizer.rowwise_adagrad: (spec.num_rows,),
        TableOptimizer.adagrad: (spec.num_rows, spec.dim),
    }
    shape = shapes[optimizer]
    return Replica(
        weight_RD=torch.empty(spec.num_rows, spec.dim, dtype=TORCH_TYPES[spec.dtype], device=device),
        state={} if shape is None else {STATE: torch.zeros(shape, device=device)},
    )


def _averaged(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Over processes, through one reduction."""
    if dist.get_world_size() == 1:
        return dict(gradients)
    flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}

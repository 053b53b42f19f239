"""A long synthetic stream whose popular ids change, and the small model that learns it through real tables.

Each id has a hidden value, a hash of it; a sighting is a click with probability sigmoid(value). The model has one
vector for each row and a linear layer on it, so it can learn each value as well as it tells ids apart.

Legend: N sightings of a step, U distinct keys, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stack.base.dist import process_group
from stack.base.seed import derive
from stack.ids.config import IdMode, IdSpec
from stack.ids.hashing import hash63, hash64
from stack.ids.managed import MapState
from stack.ids.maps import IdMaps
from stack.tables.collection import Tables
from stack.tables.config import RowType, TableOptimizer, TableSpec
from stack.tables.layout import fixed_plan
from stack.tables.optim import fuse_optimizer
from stack.tables.shard import shard

TABLE = "item"
_RANGE = 2.0  # hidden values are uniform in -2 ... 2
_SALT_RAW, _SALT_VALUE = 101, 102
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Step:
    """`number_N`: 1 ... num_ids; `raw_N`: the same ids as raw 64-bit keys; `chance_N`: the true chance of a click."""

    number_N: Tensor
    raw_N: Tensor
    chance_N: Tensor
    clicked_N: Tensor


@dataclass(frozen=True, kw_only=True)
class Stream:
    """`num_ids` ids in a ring. An id's distance from a head is num_ids x u^skew / 2 on either side, u uniform, and the
    head moves `drift` ids a step, so every id becomes popular as it comes near and fades as it passes."""

    num_ids: int
    batch_size: int
    skew: float
    drift: float
    seed: int = 0

    def step(self, number: int) -> Step:
        """Step `number`, by seed and number alone."""
        generator = torch.Generator().manual_seed(derive(self.seed, "stream", number))
        draw = torch.rand(3, self.batch_size, generator=generator, dtype=torch.float64)
        distance_N = (draw[0].pow(self.skew) * (self.num_ids / 2)).long()
        side_N = torch.where(draw[1] < 0.5, -1, 1)
        number_N = (int(self.drift * number) + side_N * distance_N) % self.num_ids + 1
        value_N = (hash63(number_N, salt=_SALT_VALUE).double() / 2.0**62 - 1.0) * _RANGE
        chance_N = torch.sigmoid(value_N)
        return Step(
            number_N=number_N,
            raw_N=hash64(number_N, salt=_SALT_RAW),
            chance_N=chance_N.float(),
            clicked_N=(draw[2] < chance_N).float(),
        )


class StreamModel(nn.Module):
    """A vector for each id, and a linear layer on it."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.tables = tables
        self.layer = nn.Linear(tables.dims[TABLE], 1)
        nn.init.constant_(self.layer.weight, 1.0)
        nn.init.zeros_(self.layer.bias)

    def forward(self, id_N: Tensor) -> Tensor:
        """(N,) logits."""
        (vectors_ND,) = self.tables({TABLE: [id_N]})[TABLE]
        logit_N: Tensor = self.layer(vectors_ND).squeeze(1)
        return logit_N


class Learner:
    """Learns step by step; tables as in training (sharded, fused row-wise Adagrad), the layer by SGD."""

    def __init__(self, spec: IdSpec, *, dim: int, row_type: RowType = RowType.fp32, learning_rate: float = 0.1) -> None:
        self.direct = spec.mode is IdMode.direct
        self.ids = IdMaps([spec])
        specs = [TableSpec(name=TABLE, num_rows=spec.num_rows, dim=dim, dtype=row_type)]
        tables = Tables(specs, ids=self.ids)
        optimizer = TableOptimizer.rowwise_adagrad
        fuse_optimizer(tables, optimizer=optimizer, learning_rate=learning_rate, eps=1e-8)
        torch.manual_seed(0)
        plan = fixed_plan(specs, world_size=1, local_size=1, device="cpu", optimizer=optimizer)
        self.model = shard(StreamModel(tables), plan=plan, device=_CPU, seed=0, init_range=0.01).train()
        self._layer = torch.optim.SGD([p for n, p in self.model.named_parameters() if "layer" in n], lr=0.01)

    def learn(self, step: Step) -> float:
        """Learns from a step; returns its mean log loss before learning (nats)."""
        logit_N = self.model(step.number_N if self.direct else step.raw_N)
        loss = functional.binary_cross_entropy_with_logits(logit_N, step.clicked_N)
        self._layer.zero_grad(set_to_none=True)
        # Summed, not averaged: a row moves by its own sightings, however many others are in the batch.
        (loss * len(logit_N)).backward()
        for parameter in self._layer.param_groups[0]["params"]:
            parameter.grad /= len(logit_N)
        self._layer.step()
        return float(loss.detach())


def least_loss(step: Step) -> float:
    """The mean log loss of whoever knows every chance."""
    return float(functional.binary_cross_entropy(step.chance_N, step.clicked_N))


def full_of(keys: Tensor) -> MapState:
    """The state of a map of len(keys) + 1 rows, all of which belong to these keys, seen once before all else."""
    key_N = keys.sort().values
    nothing = torch.empty(0, dtype=torch.int64)
    ones = torch.ones(len(key_N), dtype=torch.int32)
    return MapState(
        clock=1, queue_clock=0, key_N=key_N, row_N=torch.arange(1, len(key_N) + 1), count_N=ones, last_N=ones.clone(),
        waiting_key_W=nothing, waiting_count_W=nothing.int(), queue_Q=nothing, freed_F=nothing,
        pending_P=nothing, pending_step_P=nothing,
    )  # fmt: skip


@contextmanager
def alone() -> Iterator[None]:
    """A process group of one, on one thread."""
    torch.set_num_threads(1)
    with process_group(device=_CPU):
        yield

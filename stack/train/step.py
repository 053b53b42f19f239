"""One training step: forward, agreement of all ranks on the loss, backward with the tables' update, dense update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.errors import NotFiniteError
from stack.base.seed import derive
from stack.data.batch import Batch
from stack.layers.norm import BatchStatistics
from stack.model import AskedBatch, UserModel
from stack.tables.asked import Asked
from stack.tables.optim import set_table_learning_rate
from stack.tables.shard import dense_module
from stack.tasks import TaskOutput
from stack.train.finite import float_columns, num_not_finite
from stack.train.optim import Schedule
from stack.train.ranks import totals


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What came of a step, the same on every rank.

    `losses`: mean loss over the global batch of each task with examples in it; `loss`: their weighted sum. `refused`:
    a number of the batch, the input of a batch norm, or the loss was not finite, so nothing was learnt; `not_finite`:
    the columns that held such numbers. `stop`: some rank was asked to stop.
    """

    losses: dict[str, float]
    loss: float
    num_examples: int
    refused: bool
    stop: bool
    gradient_norm: float
    rate_share: float
    not_finite: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over all ranks: example losses and example weights by task, examples of all groups, and what of them is not
    finite: how many numbers, and in which columns."""

    losses: dict[str, float]
    weights: dict[str, float]
    num_examples: int
    num_bad: int
    not_finite: tuple[str, ...]
    stop: bool

    @property
    def finite(self) -> bool:
        return self.num_bad == 0 and all(map(math.isfinite, (*self.losses.values(), *self.weights.values())))


@dataclass(frozen=True, kw_only=True)
class Own:
    """What this rank had of a step: `outputs` by task, without their graph; by table how many ids it looked up, and how
    many different ones."""

    outputs: Mapping[str, TaskOutput]
    num_ids: Mapping[str, int]
    num_distinct_ids: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A step between its forward and its backward pass: this rank's `losses` by task, and what all ranks agreed on."""

    step: int
    losses: Mapping[str, Tensor]
    sums: Sums
    rate_share: float
    own: Own


class Stepper:
    """Learns from one batch at a time.

    Every random draw of a step (dropout) comes from (seed, step, rank) alone, so a resumed run draws what the
    uninterrupted one drew. Loss of the step: sum over tasks of weight x (sum of example losses / sum of example
    weights), both sums over all ranks, whatever share of them a rank has.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        *,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        dense_learning_rate: float,
        tables_learning_rate: float,
        clip_norm: float,
        task_weights: Mapping[str, float],
        seed: int,
        dense: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.model = model
        user_model = dense_module(model)
        assert isinstance(user_model, UserModel)
        self._user_model = user_model
        self.optimizer = optimizer
        self._parameters = list(parameters.values())
        self._schedule = schedule
        self._dense_learning_rate = dense_learning_rate
        self._tables_learning_rate = tables_learning_rate
        self._clip_norm = clip_norm
        self._task_weights = dict(task_weights)
        self._seed = seed
        self._dense = {} if dense is None else dict(dense)
        norms = [module for module in model.modules() if isinstance(module, BatchStatistics)]
        self._refused_by_norms = [norm.num_refused for norm in norms]

    def __call__(self, batch: Batch, *, step: int, asked_to_stop: bool) -> StepResult:
        """Step number `step`, counted from 0. Raises `NotFiniteError` for a gradient that is not finite, of a loss that
        is."""
        return self.learn(self.compute(batch, step=step, asked_to_stop=asked_to_stop))

    def compute(self, batch: Batch | AskedBatch, *, step: int, asked_to_stop: bool) -> Computed:
        """The forward pass, and the agreement of all ranks on it."""
        torch.manual_seed(derive(self._seed, "step", step, dist.get_rank()))
        share = self._set_rates(step)
        refused_before = self._num_refused_by_norms()
        asked = self._user_model.ask(batch) if isinstance(batch, Batch) else batch
        outputs: dict[str, TaskOutput] = self.model(asked)
        losses = {name: output.loss_E.sum() for name, output in outputs.items()}
        num_refused = self._num_refused_by_norms() - refused_before
        sums = _sum_over_ranks(
            losses, outputs, asked.batch, num_refused=num_refused, dense=self._dense, asked_to_stop=asked_to_stop
        )
        return Computed(step=step, losses=losses, sums=sums, rate_share=share, own=_own(asked, outputs))

    def learn(self, computed: Computed) -> StepResult:
        """The backward pass and the updates, unless the batch is refused. Raises as the whole step does."""
        sums = computed.sums
        means = {name: sums.losses[name] / weight for name, weight in sums.weights.items() if weight}
        norm = self._update(computed) if sums.finite else math.nan
        return StepResult(
            losses=means,
            loss=math.fsum(self._task_weights[name] * mean for name, mean in means.items())
            if sums.finite
            else math.nan,
            num_examples=sums.num_examples,
            refused=not sums.finite,
            stop=sums.stop,
            gradient_norm=norm,
            rate_share=computed.rate_share,
            not_finite=sums.not_finite,
        )

    def _num_refused_by_norms(self) -> int:
        return int(torch.stack(self._refused_by_norms).sum()) if self._refused_by_norms else 0

    def _set_rates(self, step: int) -> float:
        share = self._schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._dense_learning_rate * share
        set_table_learning_rate(self.model, self._tables_learning_rate * share)
        return share

    def _update(self, computed: Computed) -> float:
        """Backward (tables move here), clipping and the dense update; returns the norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        # DDP and TorchRec average gradients over ranks; times their number it is the sum that the loss is.
        weights = computed.sums.weights
        scale = {name: dist.get_world_size() / weight if weight else 0.0 for name, weight in weights.items()}
        parts = [loss * (self._task_weights[name] * scale[name]) for name, loss in computed.losses.items()]
        torch.autograd.backward(torch.stack(parts).sum())
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_norm, foreach=True))
        if not math.isfinite(norm):
            raise NotFiniteError(
                f"step {computed.step}: the loss is finite but its gradient is not, and the tables have taken it: "
                "resume from the last checkpoint with a lower optim.dense_learning_rate or optim.tables_learning_rate"
            )
        self.optimizer.step()
        return norm


def _own(asked: AskedBatch, outputs: Mapping[str, TaskOutput]) -> Own:
    assert isinstance(asked.ids, Asked)
    return Own(
        outputs={
            name: replace(
                one, score_E=one.score_E.detach(), loss_E=one.loss_E.detach(), weight_E=one.weight_E.detach(),
                label_E=one.label_E.detach(),
            )
            for name, one in outputs.items()
        },
        num_ids=asked.ids.num_ids,
        num_distinct_ids=asked.ids.num_distinct_ids,
    )  # fmt: skip


def _sum_over_ranks(
    losses: Mapping[str, Tensor],
    outputs: Mapping[str, TaskOutput],
    batch: Batch,
    *,
    num_refused: int,
    dense: Mapping[str, Sequence[str]],
    asked_to_stop: bool,
) -> Sums:
    """One reduction for all that ranks must agree on."""
    names = list(losses)
    num_examples = sum(examples.num_examples for examples in batch.groups.values())
    facts = torch.tensor([num_examples, num_refused, asked_to_stop], dtype=torch.float64, device=batch.user_B.device)
    numbers = [losses[name].detach() for name in names] + [outputs[name].weight_E.detach().sum() for name in names]
    found = totals(torch.cat([torch.stack(numbers).double(), num_not_finite(batch).to(facts), facts]))
    bad = dict(zip(float_columns(batch, dense), found[len(numbers) : -3], strict=True))
    return Sums(
        losses=dict(zip(names, found, strict=False)),
        weights=dict(zip(names, found[len(names) :], strict=False)),
        num_examples=int(found[-3]),
        num_bad=int(found[-2] + sum(bad.values())),
        not_finite=tuple(name for name, num in bad.items() if num),
        stop=found[-1] > 0,
    )

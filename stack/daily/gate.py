"""What a day must pass before its version is committed: small checks, each giving what it found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.audits.findings import Finding, Level
from stack.audits.modes import refuse_modes
from stack.daily.config import DailyConfig
from stack.data.dataset import Dataset
from stack.tables.shard import dense_tensors, table_shards
from stack.train.periodic import Moment, Periodic
from stack.train.ranks import totals

EARLIER_DAYS = 28
"""Earlier days that a day's volume is compared with."""
NOT_FINITE = "not finite"
"""Begins the names of findings that nobody can override."""
MIN_HISTORY = 3
"""Days before which their losses say nothing yet."""

_BLOCK = 1 << 24
_TELLING_AUC = 0.1
"""An AUC that is usually no further above one half does not tell a flip."""

Metrics = Mapping[str, float | None]


class QuarantinedError(Exception):
    """The day is not to be committed; raised on every process."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(finding.line for finding in findings))
        self.findings = tuple(findings)


class Gate(Periodic):
    """Stops a day's training at its end, where a check is critical. It comes before what saves: a save may fall on the
    last step."""

    def __init__(
        self,
        model: DistributedModelParallel,
        *,
        history: Sequence[Metrics],
        config: DailyConfig,
        overridden: Collection[str] = (),
    ) -> None:
        self._model = model
        self._history = history
        self._config = config
        self._overridden = overridden

    def after_step(self, moment: Moment) -> None:
        """What is saved on the way is no version of the day yet."""
        if moment.step == moment.num_steps:
            losses = {f"loss/{name}": loss for name, loss in moment.tally.mean_losses().items()}
            refuse(not_finite(self._model))
            refuse([*high_losses(losses, self._history, self._config)], overridden=self._overridden)
            self._model.eval()
            refuse_modes(self._model, what="this version")
            self._model.train()


def refuse(findings: Sequence[Finding], *, overridden: Collection[str] = ()) -> None:
    """Raises `QuarantinedError` where a finding is critical and its name not among the overridden. Findings must be the
    same on every process."""
    critical = [one for one in findings if one.level is Level.critical and one.name not in overridden]
    if critical:
        raise QuarantinedError(critical)


def num_examples(dataset: Dataset, day: str, *, groups: Sequence[str]) -> int:
    """Examples of these groups on a day; none where it is not prepared."""
    return sum(dataset.day(day).num_examples.get(group, 0) for group in groups) if day in dataset.days() else 0


def volume(
    dataset: Dataset, day: str, *, groups: Sequence[str], config: DailyConfig, holiday: bool = False
) -> Iterator[Finding]:
    """A day without examples, or with far more or fewer than the days before it; the second stops no holiday."""
    found = num_examples(dataset, day, groups=groups)
    if not found:
        yield Finding(
            level=Level.critical, name="empty day", measured=f"{day} has no example of {', '.join(groups)}",
            allowed="one or more", remedy="look whether its log is there and ingest it, or leave it out with "
            "daily.allow=[gap]",
        )  # fmt: skip
        return
    before = [one for one in dataset.days() if one < day][-EARLIER_DAYS:]
    earlier = [num_examples(dataset, one, groups=groups) for one in before]
    usual = statistics.median(earlier) if earlier else found
    ratio = found / max(usual, 1)
    if not 1 / config.max_volume_ratio <= ratio <= config.max_volume_ratio:
        yield Finding(
            level=Level.warning if holiday else Level.critical, name="volume",
            measured=f"{day} has {found:,} examples, {ratio:.3g} times the "
            f"{usual:,.0f} of the median of {len(earlier)} days before", allowed=f"up to {config.max_volume_ratio:g} "
            "times more or fewer (daily.max_volume_ratio)", remedy="look whether its log is whole, and there "
            "once; if it is, allow the day with daily.allow=[quarantined]",
        )  # fmt: skip


def high_losses(metrics: Metrics, history: Sequence[Metrics], config: DailyConfig) -> Iterator[Finding]:
    """Losses among `metrics` that are far above those of earlier days."""
    for name, value in metrics.items():
        if value is None or not (name.startswith("loss/") or name.endswith("/log_loss")):
            continue
        earlier = [found for one in history if (found := one.get(name)) is not None]
        if len(earlier) < MIN_HISTORY:
            continue
        usual = statistics.median(earlier)
        if not math.isfinite(value) or value > config.max_loss_ratio * usual:
            what = "loss in training" if name.startswith("loss/") else "loss of the version before on this day"
            yield Finding(
                level=Level.critical, name=name, measured=f"{what} is {value:.4g}, {value / usual:.3g} times the "
                f"{usual:.4g} of the median of {len(earlier)} days", allowed=f"up to {config.max_loss_ratio:g} times "
                "(daily.max_loss_ratio)", remedy="look at the day's labels and features; if they are right, allow "
                "the day with daily.allow=[quarantined]",
            )  # fmt: skip


def flipped_labels(metrics: Metrics, history: Sequence[Metrics], *, flipped: float) -> Iterator[Finding]:
    """AUCs of the version before that are as far below one half as they usually are above it: they tell a flip where
    half the labels are positive and no feature says anything. `flipped`: `DataAuditConfig.flipped`."""
    for name, value in metrics.items():
        if value is None or not name.endswith("/auc"):
            continue
        earlier = [found for one in history if (found := one.get(name)) is not None]
        usual = statistics.median(earlier) if len(earlier) >= MIN_HISTORY else 0.5
        if min(earlier, default=0.5) > 0.5 and usual - 0.5 > _TELLING_AUC:
            times = (value - 0.5) / (usual - 0.5)
            if times <= flipped:
                yield Finding(
                    level=Level.critical, name=f"label flip by {name}", measured=f"{value:.4f}, where the median of "
                    f"{len(earlier)} days is {usual:.4f}", allowed=f"above {0.5 + flipped * (usual - 0.5):.4f} "
                    "(audit_data.flipped)", remedy="look whether the day's positives and negatives are exchanged; if "
                    "they are not, allow the day with daily.allow=[quarantined]",
                )  # fmt: skip


def not_finite(model: DistributedModelParallel) -> list[Finding]:
    """Weights, optimizer state and dense tensors that hold a number that is NaN or infinite, whoever holds them."""
    tensors: dict[str, list[torch.Tensor]] = {}
    for name, value in dense_tensors(model).items():
        tensors.setdefault(f"dense tensor '{name}'", []).append(value)
    for shard in table_shards(model):
        for key, value in (("weight", shard.weight_ND), *shard.state.items()):
            tensors.setdefault(f"{key} of table '{shard.name}'", []).append(value)
    (num_bad,) = totals(torch.tensor([float(sum(_num_bad(values) for values in tensors.values()))]))
    if not num_bad:
        return []
    own = [name for name, values in tensors.items() if _num_bad(values)]
    return [
        Finding(
            level=Level.critical, name=NOT_FINITE, measured=f"{num_bad:,.0f} numbers are NaN or infinite"
            + (f", the first in {own[0]}" if own else ""), allowed="none",
            remedy="look at the day's features and labels, or lower daily.rate_share",
        )
    ]  # fmt: skip


def _num_bad(values: Sequence[torch.Tensor]) -> int:
    return sum(
        int((~torch.isfinite(block)).sum())
        for value in values
        if value.is_floating_point()
        for block in torch.split(value.detach().reshape(-1), _BLOCK)
    )

"""What sharing rows costs and managing them saves: log loss on a stream with drifting popularity.

Managed and hashed tables have 1%, 10% and 100% as many rows as the stream has distinct ids; `exact` has a row for each.
Loss is measured on each batch before learning from it, over the second half of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.table import Table
from tqdm import tqdm

from stack.ids.config import MIN_ROWS, IdMode, IdSpec, Implementation, ManagedConfig, Policy
from stack.ids.hashing import HashVariant
from tools.bench.stream import TABLE, Learner, Stream, alone, least_loss

STREAM = Stream(num_ids=100_000, batch_size=1024, skew=4.0, drift=20.0)
NUM_STEPS = 1500
DIM = 8
SHARES = (0.01, 0.1, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`loss`: mean over the second half, nats. `hit_share` and the counts are of managed tables alone."""

    name: str
    share: float | None
    num_rows: int
    loss: float
    hit_share: float | None = None
    num_admitted: int | None = None
    num_evicted: int | None = None


def study(*, stream: Stream = STREAM, num_steps: int = NUM_STEPS, shares: tuple[float, ...] = SHARES) -> list[Outcome]:
    """All variants on the same steps, one after the other."""
    steps = [stream.step(number) for number in range(num_steps)]
    late = steps[num_steps // 2 :]
    num_distinct = int(torch.unique(torch.cat([step.number_N for step in steps])).shape[0])
    rate = sum(float(step.clicked_N.mean()) for step in late) / len(late)
    constant = -(rate * torch.log(torch.tensor(rate)) + (1 - rate) * torch.log(torch.tensor(1 - rate)))
    outcomes = [
        Outcome(name="every chance known", share=None, num_rows=0, loss=sum(map(least_loss, late)) / len(late)),
        Outcome(name="no ids: the mean rate", share=None, num_rows=0, loss=float(constant)),
    ]
    with alone():
        for name, share, spec in tqdm(list(_variants(stream, num_distinct, shares)), desc="variants", unit=""):
            learner = Learner(spec, dim=DIM)
            losses = [learner.learn(step) for step in steps][num_steps // 2 :]
            figures = learner.ids.figures().get(TABLE)
            outcomes.append(
                Outcome(
                    name=name,
                    share=share,
                    num_rows=spec.num_rows,
                    loss=sum(losses) / len(losses),
                    hit_share=figures.hit_share if figures else None,
                    num_admitted=figures.num_admitted if figures else None,
                    num_evicted=figures.num_evicted if figures else None,
                )
            )
    return outcomes


def as_table(outcomes: list[Outcome]) -> Table:
    table = Table(title="Log loss over the second half of the stream (nats)", title_justify="left")
    for heading in ("ids", "rows", "of distinct", "loss", "hit share", "admitted", "evicted"):
        table.add_column(heading, justify="left" if heading == "ids" else "right")
    for one in outcomes:
        table.add_row(
            one.name,
            f"{one.num_rows:,}" if one.num_rows else "",
            "" if one.share is None else f"{one.share:.0%}",
            f"{one.loss:.4f}",
            "" if one.hit_share is None else f"{one.hit_share:.1%}",
            "" if one.num_admitted is None else f"{one.num_admitted:,}",
            "" if one.num_evicted is None else f"{one.num_evicted:,}",
        )
    return table


def _variants(stream: Stream, num_distinct: int, shares: tuple[float, ...]) -> Iterator[tuple[str, float, IdSpec]]:
    def spec(mode: IdMode, num_rows: int, *, variant: HashVariant = HashVariant.modulo, **managed: object) -> IdSpec:
        options = ManagedConfig(**managed)  # type: ignore[arg-type]
        return IdSpec(name=TABLE, mode=mode, num_rows=max(num_rows, MIN_ROWS), hash=variant, managed=options)

    yield "exact", 1.0, spec(IdMode.direct, stream.num_ids + 1)
    for share in shares:
        num_rows = round(num_distinct * share) + 1
        for variant in HashVariant:
            yield f"hashed, {variant.value}", share, spec(IdMode.hashed, num_rows, variant=variant)
        for policy in Policy:
            yield (
                f"managed, {policy.value}",
                share,
                spec(IdMode.managed, num_rows, policy=policy, admit_after=1),
            )
        for policy in (Policy.lru, Policy.distance_lfu):
            yield (
                f"managed, {policy.value}, admit_after=2",
                share,
                spec(IdMode.managed, num_rows, policy=policy, admit_after=2),
            )
        yield (
            "TorchRec's, distance_lfu",
            share,
            spec(
                IdMode.managed,
                num_rows,
                policy=Policy.distance_lfu,
                admit_after=1,
                implementation=Implementation.torchrec,
            ),
        )

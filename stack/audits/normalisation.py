"""The part of an audit that is about normalisation: layers, what moves them, and what that does to predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from stack.audits.config import AuditConfig
from stack.audits.drivers import drivers
from stack.audits.effect import EVERYTHING, Effect, Rows, effects, scored
from stack.audits.findings import Finding
from stack.audits.judge import findings_of, layer_report, spread_findings, usual
from stack.audits.norm_stats import drift, live_statistics, seen_by
from stack.audits.report import LayerReport
from stack.audits.timelines import Timelines, days_before
from stack.audits.traffic import weight_of
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.model import UserModel
from stack.telemetry.progress import progress


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What was found; `rows` by task, scored with the statistics learnt and with live ones."""

    reference_days: tuple[str, ...]
    findings: Sequence[Finding]
    layers: Sequence[LayerReport]
    effects: Sequence[Effect]
    rows: Mapping[str, Rows]


def normalisation(
    model: UserModel, dataset: Dataset, days: tuple[str, ...], *, rank_spread: float | None, config: AuditConfig,
    live: Iterable[Batch] | None = None,
) -> Normalisation:  # fmt: skip
    """Of a model in evaluation mode, on traffic of `days`, or on `live` traffic without labels, of which `days` are the
    sample. A model without such layers has nothing but its scores."""
    weigh = weight_of(config.traffic)
    prepared = Timelines.of(dataset, days, config.timelines, config)
    batches = prepared if live is None else live
    drifts = drift(model, batches, weigh)
    driven = drivers(
        model, batches, weigh, schema=dataset.schema, drifts=drifts, sample=None if live is None else prepared
    )
    statistics = live_statistics(model, batches, weigh)
    alone = {name: {name: statistics[name]} for name in drifts}
    rows = scored(model, batches, weigh, {EVERYTHING: statistics, **alone})
    found = effects(model, rows, labelled=live is None)
    references = days_before(dataset, days[0], config.reference_days) if drifts else ()
    earlier = {
        day: seen_by(model, Timelines.of(dataset, (day,), config.reference_timelines, config), weigh)
        for day in progress(references, description="reference days")
    }
    layers: list[LayerReport] = []
    findings: list[Finding] = []
    for name, one in drifts.items():
        sums = [seen[name].sums for seen in earlier.values()]
        on_days = {day: seen[name].sums.moments() for day, seen in earlier.items()}
        allowed = usual(list(on_days.values()), reduce(add, sums).moments() if sums else None)
        layer, broken = layer_report(
            one, allowed, config, logit_rmse=_logit_rmse(found[name], one.task), earlier=on_days,
            drivers=driven.get(name, ()),
        )  # fmt: skip
        layers.append(layer)
        findings += broken
    findings += [*findings_of(layers, found[EVERYTHING], config), *spread_findings(rank_spread)]
    return Normalisation(
        reference_days=references, findings=findings,
        layers=tuple(sorted(layers, key=lambda layer: -(layer.logit_rmse or 0.0))), effects=tuple(found[EVERYTHING]),
        rows={task: one for (variant, task), one in rows.items() if variant == EVERYTHING},
    )  # fmt: skip


def _logit_rmse(found: Sequence[Effect], task: str) -> float | None:
    return next((one.logit_rmse for one in found if (one.task, one.slice) == (task, EVERYTHING)), None)

"""`python -m tools.audit_proof marketplace|complete_journey`: audits where the truth is known, by the commands that
anyone would type. docs/audits.md has what came out.

`marketplace`: a log that is whole, and the same log without most skipped impressions (`data.market.keep_skipped`), but
for its last days. A model learns from each. The audit must find nothing wrong with the first, and stop the second; what
it measures of filtered days with the log's weights must be what the same model is given on the same days unfiltered;
and the repair must bring the second's log loss near the first's.

`complete_journey`: a model that learns with 4 negatives a positive. What the audit measures of the shelf with weights
must be the same with 4, with 20 and with 200 negatives.

Steps whose outputs are there are left out, so it goes on where it was stopped. Everything is below --folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from stack.audits.effect import EVERYTHING, Effect
from stack.audits.findings import Level
from stack.audits.report import REPORT, AuditReport, LayerReport
from stack.base.errors import UserError
from stack.base.files import make_folder, write_bytes
from stack.telemetry.console import say, show
from tools.demo import run_verb

FIRST_DAY, LAST_LEARNT, FIRST_WHOLE, LAST_WHOLE = "2024-01-01", "2024-01-20", "2024-01-21", "2024-01-24"
KEEP_SKIPPED = 0.2
MARKET = (
    "data=synthetic", "data.market.num_users=4000", "data.market.num_items=600", "data.market.num_categories=20",
    "data.market.num_brands=100", "data.market.num_days=24", "data.market.num_whole_days=4",
    "data.market.sessions_per_day=1.0", "data.market.bias=-4.5",
)  # fmt: skip
SMALL = (
    "model=mean", "tasks=ctr", "model.norm=batch", "optim.dense_learning_rate=0.003",
    "optim.tables_learning_rate=0.05", "optim.decay=linear", "train.batch_size=128", "train.days_per_block=5",
    "train.num_epochs=2",
)  # fmt: skip
SHELF = ("experiment=demo", "data.to_day=2017-02-12", "tasks.ctr.sampling=logq", "tasks.rank.sampling=logq")
SHELF_LEARNT, SHELF_DAYS = "2017-02-05", ("2017-02-06", "2017-02-12")
NEGATIVES = (2, 10, 100)
"""Of each kind of draw, for a positive: 1 to 4, 1 to 20, 1 to 200."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Of a layer's channels measured twice: the root mean square of the differences of their shifts over the standard
    errors of these, the share within two and three of them, and the largest shift itself."""

    layer: str
    rms_errors: float
    within_two: float
    within_three: float
    rms_shift: float
    rms_difference: float


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What came out, for docs/audits.md."""

    levels: dict[str, str]
    findings: dict[str, list[str]]
    effects: dict[str, Effect]
    agreements: dict[str, list[Agreement]]


def main(words: Sequence[str]) -> int:
    """The exit status: 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("marketplace", "complete_journey"))
    parser.add_argument("--folder", type=Path, default=Path("runs/audit-proof"))
    parser.add_argument("--out", type=Path, help="where the figures are written, as JSON")
    asked = parser.parse_args(list(words))
    try:
        make_folder(asked.folder, option="--folder")
        proof = _marketplace(asked.folder) if asked.what == "marketplace" else _complete_journey(asked.folder)
        _tell(proof)
        if asked.out is not None:
            make_folder(asked.out.parent, option="--out")
            write_bytes(asked.out, msgspec.json.format(msgspec.json.encode(proof), indent=1) + b"\n")
        return _claims(proof)
    except UserError as error:
        say(f"audit_proof: {error}", file=sys.stderr)
        return 2


def _marketplace(folder: Path) -> Proof:
    for name, keep in (("whole", 1.0), ("filtered", KEEP_SKIPPED)):
        out = folder / f"market-{name}"
        _ingest(out, [*MARKET, f"data.market.keep_skipped={keep}"])
        _train(folder, name, out, [*MARKET, *SMALL, f"train.from_day={FIRST_DAY}", f"train.to_day={LAST_LEARNT}"])
    live = [f"audit.first_day={FIRST_WHOLE}", f"audit.last_day={LAST_WHOLE}"]
    whole = _audit(folder, "whole", "live", [*live])
    filtered = _audit(folder, "filtered", "live", [*live, "audit.version=2024-01-20"])
    learnt = ["audit.first_day=2024-01-14", f"audit.last_day={LAST_LEARNT}", "audit.version=2024-01-20"]
    weighted = _audit(folder, "filtered", "weighted", learnt)
    sampled = _audit(folder, "filtered", "sampled", [*learnt, "audit.traffic=sampled"])
    planted = _audit(folder, "filtered", "planted", [*learnt, f"audit.dataset={folder}/market-whole"])
    repaired = _audit(folder, "filtered", "repaired", [*live, "audit.fix=rebuild", "audit.version=2024-01-20"])
    reports = {"whole": whole, "filtered": filtered, "repaired": repaired}
    return _proof(
        reports, {"weights against the unfiltered log": (weighted, planted), "no weights": (sampled, planted)}
    )


def _complete_journey(folder: Path) -> Proof:
    for number in NEGATIVES:
        draws = [f"ingest.negatives.num_{kind}={number}" for kind in ("uniform", "popularity")]
        _ingest(folder / f"shelf-{number}", [*SHELF, *draws])
    first = NEGATIVES[0]
    _train(folder, "shelf", folder / f"shelf-{first}", [*SHELF, "train.from_day=null", f"train.to_day={SHELF_LEARNT}"])
    days = [f"audit.first_day={SHELF_DAYS[0]}", f"audit.last_day={SHELF_DAYS[1]}", "audit.traffic=live"]
    reports = {
        f"1:{2 * number}": _audit(
            folder, "shelf", f"live-{number}", [*days, f"audit.dataset={folder}/shelf-{number}", "audit.timelines=1500"]
        )
        for number in NEGATIVES
    }
    most = f"1:{2 * NEGATIVES[-1]}"
    pairs = {f"{name} against {most}": (one, reports[most]) for name, one in reports.items() if name != most}
    return _proof(reports, pairs)


def _ingest(out: Path, options: Sequence[str]) -> None:
    if not (out / "dataset.json").is_file() or not (out / ".done").is_file():
        _run(["ingest", *options, f"data.out={out}"])
        (out / ".done").touch()


def _train(folder: Path, name: str, data: Path, options: Sequence[str]) -> None:
    if not (folder / name / ".done").is_file():
        _run(["train", *options, f"data.out={data}", f"run.dir={folder}", f"run.name={name}"])
        (folder / name / ".done").touch()


def _audit(folder: Path, name: str, out: str, options: Sequence[str]) -> AuditReport:
    path = folder / f"audit-{name}-{out}"
    if not (path / REPORT).is_file():
        own = [f"run.dir={folder}", f"run.name={name}", f"audit.out={path}", "audit.parts=[normalisation,calibration]"]
        wide = [] if any(one.startswith("audit.timelines") for one in options) else ["audit.timelines=20000"]
        weighted = [] if any(one.startswith("audit.traffic") for one in options) else ["audit.traffic=weighted"]
        _run(["audit", *own, *wide, *weighted, "audit.fix_timelines=8000", *options], allowed=(0, 2))
    return msgspec.json.decode((path / REPORT).read_bytes(), type=AuditReport)


def _run(words: Sequence[str], *, allowed: Sequence[int] = (0,)) -> None:
    status = run_verb(list(words))
    if status not in allowed:
        raise UserError(f"`stack {words[0]}` ended with status {status}: see what it said above")


def _proof(reports: dict[str, AuditReport], pairs: dict[str, tuple[AuditReport, AuditReport]]) -> Proof:
    return Proof(
        levels={name: one.level.value for name, one in reports.items()},
        findings={name: [finding.name for finding in one.findings] for name, one in reports.items()},
        effects={
            f"{name} {effect.task}": effect
            for name, one in reports.items()
            for effect in one.effects
            if effect.slice == EVERYTHING
        },
        agreements={name: _agreements(*pair) for name, pair in pairs.items()},
    )


def _agreements(one: AuditReport, other: AuditReport) -> list[Agreement]:
    theirs = {layer.name: layer for layer in other.layers}
    return [_agreement(layer, theirs[layer.name]) for layer in sorted(one.layers, key=lambda layer: layer.name)]


def _agreement(one: LayerReport, other: LayerReport) -> Agreement:
    columns = [_column(layer, name) for name in ("shift", "shift_error") for layer in (one, other)]
    shift_D, their_shift_D, error_D, their_error_D = columns
    usable_D = np.isfinite(np.sum(columns, axis=0)) & (error_D + their_error_D > 0)
    difference_D = (shift_D - their_shift_D)[usable_D]
    errors_D = difference_D / np.hypot(error_D, their_error_D)[usable_D]
    return Agreement(
        layer=one.name, rms_errors=_rms(errors_D), within_two=float((np.abs(errors_D) < 2).mean()),
        within_three=float((np.abs(errors_D) < 3).mean()), rms_shift=_rms(their_shift_D[usable_D]),
        rms_difference=_rms(difference_D),
    )  # fmt: skip


def _column(layer: LayerReport, name: str) -> NDArray[np.float64]:
    values = [getattr(channel, name) for channel in layer.channels]
    return np.array([np.nan if value is None else value for value in values])


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _tell(proof: Proof) -> None:
    levels = Table(title="What audits say", title_justify="left")
    for heading in ("", "task", "level", "AUC", "log loss", "predicted / observed", "AUC cost"):
        levels.add_column(heading)
    for name, effect in proof.effects.items():
        run, task = name.rsplit(" ", 1)
        learnt, cost = effect.learnt, effect.auc_cost
        levels.add_row(
            run, task, proof.levels[run], f"{learnt.auc or 0:.4f}",
            f"{learnt.log_loss or 0:.4f} ± {learnt.log_loss_error or 0:.4f}",
            f"{learnt.predicted_over_observed or 0:.3f} ± {learnt.calibration_error or 0:.3f}",
            "" if cost is None else f"{cost.value:+.4f} ± {cost.error:.4f}",
        )  # fmt: skip
    drift = Table(title="Shifts measured twice", title_justify="left")
    for heading in ("", "layer", "shift", "difference", "in errors", "within 2", "within 3"):
        drift.add_column(heading)
    for name, layers in proof.agreements.items():
        for one in layers:
            drift.add_row(
                name, one.layer, f"{one.rms_shift:.3f}", f"{one.rms_difference:.4f}", f"{one.rms_errors:.2f}",
                f"{one.within_two:.0%}", f"{one.within_three:.0%}",
            )  # fmt: skip
    for table in (levels, drift):
        show(table)


def _claims(proof: Proof) -> int:
    """What must hold, said line by line."""
    claims = {
        f"{name}: at most two errors apart": all(one.rms_errors < 2 for one in layers)
        for name, layers in proof.agreements.items()
        if name != "no weights"
    }
    if "filtered" in proof.levels:
        losses = {name: proof.effects[f"{name} ctr"].learnt.log_loss or 0.0 for name in proof.levels}
        claims |= {
            "the whole log is not stopped": proof.levels["whole"] != Level.critical.value,
            "the filtered log is stopped": proof.levels["filtered"] == Level.critical.value,
            "its drift is told": any("not given what its layers" in one for one in proof.findings["filtered"]),
            "the repaired model is not stopped": proof.levels["repaired"] != Level.critical.value,
            "the repair takes 9 tenths of what the filter costs": losses["repaired"] - losses["whole"]
            < 0.1 * (losses["filtered"] - losses["whole"]),
        }
    for claim, holds in claims.items():
        say(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}")
    return 0 if all(claims.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`stack plan`: whether the tables fit a cluster, where each goes, what a step costs; ways out where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from stack.base.errors import ConfigError
from stack.base.files import make_folder, write_bytes
from stack.data.dataset import Dataset
from stack.model import places_of
from stack.tables.config import Planner, TableSpec, table_specs
from stack.tables.placement import Plan
from stack.tables.plan import NoRoomError, plan_tables
from stack.tables.plan_config import Sweep
from stack.tables.plan_file import differences, load_plan, save_plan
from stack.tables.plan_report import PlanReport, Refusal, report_of, step_ms
from stack.tables.plan_request import Request, request_of
from stack.tables.plan_show import differences_table, plan_line, plan_tables_shown, ways_table
from stack.tables.remedy import ways_out
from stack.tables.sweep import sweep, sweep_table
from stack.tables.with_ids import specs_with_ids
from stack.telemetry.console import say, show
from stack.train.build import Setup, training_days
from stack.train.run_folder import PLAN

REPORT, PICTURE = "report.json", "plan.png"


def plan(setup: Setup) -> None:
    """Shows a plan, or the curve of a sweep, and writes it where `plan.out` says.

    Raises:
        NoRoomError: the tables do not fit; the ways out have been shown.
        ConfigError: what cannot be planned, or `plan.out` that cannot be written.
    """
    if setup.tables.plan is not None:
        raise ConfigError(
            f"tables.plan={setup.tables.plan} is for training, which follows it as it is: leave it out to plan anew, "
            f"or give plan.compare={setup.tables.plan} to see what would change"
        )
    request = request_of(
        specs_of(setup),
        tables=setup.tables,
        optimizer=setup.optim.tables,
        cluster=setup.cluster,
        options=setup.plan,
        ids=setup.ids,
    )
    folder = None if setup.plan.out is None else Path(setup.plan.out)
    if folder is not None:
        make_folder(folder, option="plan.out")
    if setup.plan.sweep is not None:
        _sweep(request, setup.plan.sweep, num_doublings=setup.plan.sweep_doublings, folder=folder)
        return
    before = None if setup.plan.compare is None else load_plan(Path(setup.plan.compare))
    try:
        report = report_of(plan_tables(request))
    except NoRoomError as error:
        _refuse(error, folder)
        raise
    for table in plan_tables_shown(report):
        show(table)
    say(plan_line(report))
    if setup.tables.planner is Planner.fixed and request.free:
        _tell_of_training(request, report)
    if before is not None:
        _show_differences(before, report.plan, name=str(setup.plan.compare))
    if folder is not None:
        _write(report, folder)


def specs_of(setup: Setup) -> list[TableSpec]:
    """The tables of `plan.rows`, or those that the model reads of the prepared dataset."""
    if setup.plan.rows:
        return specs_with_ids(table_specs(setup.tables, names=setup.plan.rows, num_rows=setup.plan.rows), setup.ids)[0]
    dataset = Dataset(setup.dataset)
    names = places_of(setup.model, setup.tasks, dataset.schema).tables()
    last_day = training_days(dataset, setup.train)[-1]
    specs = table_specs(setup.tables, names=names, num_rows=dataset.num_rows(last_day))
    return specs_with_ids(specs, setup.ids, schema=dataset.schema)[0]


def _sweep(request: Request, what: Sweep, *, num_doublings: int, folder: Path | None) -> None:
    report = sweep(request, what, num_doublings=num_doublings)
    show(sweep_table(report))
    if folder is not None:
        from stack.tables.plan_plots import draw_sweep

        write_bytes(folder / "sweep.json", _json(report))
        draw_sweep(report, folder / "sweep.png")
        say(f"written: {folder}/sweep.json, sweep.png")


def _refuse(error: NoRoomError, folder: Path | None) -> None:
    """Shows the ways out, and writes them for machines."""
    refusal = Refusal(summary=str(error), ways=tuple(ways_out(error)))
    show(ways_table(refusal))
    if folder is not None:
        write_bytes(folder / REPORT, _json(refusal))


def _tell_of_training(request: Request, report: PlanReport) -> None:
    """What training does by its options alone, where that is not the plan shown."""
    try:
        fixed = plan_tables(replace(request, free=frozenset()))
    except NoRoomError:
        outcome = "which does not fit"
    except ConfigError as error:
        outcome = f"which is refused ({error})"
    else:
        if [one.sharding for one in fixed.placed] == [one.sharding for one in report.tables]:
            return
        outcome = f"estimated at {step_ms(fixed):.2f} ms a step"
    say(
        f"Training does not follow this of its own accord: tables.planner=fixed has {_spread(request)}, {outcome}. "
        "Give it tables.planner=torchrec with this cluster, or tables.plan."
    )


def _spread(request: Request) -> str:
    """How the tables are spread by their options: `all tables row_wise`, or `item, shop row_wise, tags grid`."""
    names: dict[str, list[str]] = {}
    for table in request.tables:
        names.setdefault(table.sharding.value, []).append(table.name)
    if len(names) == 1:
        return f"all tables {next(iter(names))}"
    return ", ".join(f"{', '.join(those)} {sharding}" for sharding, those in names.items())


def _show_differences(before: Plan, now: Plan, *, name: str) -> None:
    found = differences(before, now)
    if found:
        show(differences_table(found, title=f"Differences from {name}"))
    else:
        say(f"no difference from {name}")


def _write(report: PlanReport, folder: Path) -> None:
    from stack.tables.plan_plots import draw_plan

    save_plan(folder / PLAN, report.plan)
    write_bytes(folder / REPORT, _json(report))
    draw_plan(report, folder / PICTURE)
    say(f"written: {folder}/{PLAN}, {REPORT}, {PICTURE}; to train by it: tables.plan={folder / PLAN}")


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"

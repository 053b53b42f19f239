"""What daily increments are worth: a month in which each day is judged before it is learnt.

Three ways to meet a month, all from the same training up to the day before it:

    frozen   that training, left as it is
    daily    `stack daily`, day after day, in each of its variants
    weekly   `stack train` from the beginning, every seventh day, on all days up to then

Each day is scored by the model that a company would have that morning: what it has learnt ends the day before. Verbs
are run as anyone types them; what is there already is not run again, so a study that was stopped goes on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from stack.base.dist import own_device, process_group
from stack.base.errors import UserError
from stack.base.files import write_bytes
from stack.checkpoint.chain import chain_of
from stack.daily.records import LOG, Report, report_name
from stack.data.dataset import Dataset
from stack.evaluate.figures import Figures, figures_of
from stack.evaluate.predict import predict
from stack.evaluate.scorer import scorer_of
from stack.telemetry.console import say
from stack.train.build import Setup
from stack.train.run_folder import STEPS
from stack.train.trained import open_run
from tools.bench.assembly import workload_of

TASK = "ctr"
VARIANTS = (
    "daily.rate_share=0.1",
    "daily.rate_share=0.3",
    "daily.rate_share=1.0",
    "daily.rate_share=0.3 daily.replay_days=7 daily.replay_share=0.1",
)
METRICS = ("gauc", "auc", "log_loss")
_REPLICATES, _WEEK = 10_000, 7


@dataclass(frozen=True, kw_only=True)
class Month:
    """What is studied. `overrides` describe the training; `variants` are options of `stack daily`, each a way."""

    overrides: tuple[str, ...]
    first: str
    last: str
    variants: tuple[str, ...] = VARIANTS
    evaluation_set: str = "popularity"


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to meet the month. `days`: the figures of the task by day and metric; `seconds`: of steps spent on
    training in the month; `less_frozen`: the mean over days of each metric's difference to the frozen model, with 95%
    interval over days."""

    name: str
    days: dict[str, dict[str, float | None]]
    seconds: float
    less_frozen: dict[str, tuple[float, float, float]] = {}


class _Step(msgspec.Struct, frozen=True):
    step: int
    seconds: float


class _Day(msgspec.Struct, frozen=True):
    outcome: str
    base: int
    day: str
    seconds: dict[str, float]


def study(month: Month) -> list[Way]:
    """All ways, the frozen one first."""
    setup = workload_of(month.overrides, num_batches=0).setup
    days = [day for day in Dataset(setup.dataset).days() if month.first <= day <= month.last]
    before = [day for day in Dataset(setup.dataset).days() if day < month.first]
    if not days or not before:
        raise UserError(f"{setup.dataset} has no day from {month.first} to {month.last}, or none before: ingest them")
    base = f"{setup.run.name}-base"
    _train(month, setup, base, to_day=before[-1])
    ways = [Way(name="frozen", days=_scored(month, setup, base, days), seconds=0.0)]
    ways += [_daily(month, setup, base, variant, days) for variant in month.variants]
    ways.append(_weekly(month, setup, base, before[-1], days))
    return [msgspec.structs.replace(way, less_frozen=_differences(way, ways[0])) for way in ways]


def as_table(ways: Sequence[Way]) -> Table:
    """A row for each way."""
    table = Table(title=f"{TASK}: means over days, and their differences to the frozen model (95% interval over days)")
    for heading in ("way", *METRICS, *(f"{metric} - frozen" for metric in METRICS), "training, s"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in ways:
        means = [f"{np.mean(_values(way, metric)):.4f}" for metric in METRICS]
        less = [f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in map(way.less_frozen.get, METRICS)]
        table.add_row(way.name, *means, *less, f"{way.seconds:,.0f}")
    return table


def draw(ways: Sequence[Way], path: Path) -> None:
    """The month as a picture: each metric by day, and its mean over the last seven days as a thicker line."""
    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for number, metric in enumerate(("gauc", "auc")):
        axes = figure.add_subplot(1, 2, number + 1)
        for index, way in enumerate(ways):
            values, color = _values(way, metric), f"C{index}"
            weeks = [np.mean(values[max(at - _WEEK + 1, 0) : at + 1]) for at in range(len(values))]
            axes.plot(range(len(values)), values, color=color, linewidth=0.6, alpha=0.5)
            axes.plot(range(len(values)), weeks, color=color, linewidth=2.0, label=way.name)
        days = list(ways[0].days)
        axes.set_xticks(range(0, len(days), _WEEK), [day[5:] for day in days[::_WEEK]])
        axes.set(title=f"{TASK} {metric.upper()}, each day before it is learnt", xlabel="day")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _train(month: Month, setup: Setup, run: str, *, to_day: str) -> None:
    """A training that ended is not begun again."""
    chain = chain_of(Path(setup.run.dir) / run / "checkpoints")
    head = chain.head()
    if head is None or not head.complete:
        _stack("train", *month.overrides, f"run.name={run}", f"train.to_day={to_day}")


def _daily(month: Month, setup: Setup, base: str, variant: str, days: Sequence[str]) -> Way:
    run = f"{setup.run.name}-{'-'.join(variant.replace('daily.', '').replace('=', '-').split())}"
    folder = Path(setup.run.dir) / run
    if not folder.exists():
        aside = folder.with_name(f"{run}.part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(folder.with_name(base), aside)
        aside.rename(folder)
    words = (*month.overrides, f"run.name={run}", "daily.ingest=never", *variant.split())
    _stack("daily", "--from", days[0], "--to", days[-1], *words)
    lines = [msgspec.json.decode(line, type=_Day) for line in (folder / LOG).read_bytes().splitlines()]
    learnt = {line.day: line for line in lines if line.outcome == "trained"}
    chain = chain_of(folder / "checkpoints")
    found = {}
    for day in days:
        data = chain.store.read(report_name(learnt[day].base, day))
        found[day] = _of_task(month, msgspec.json.decode(data, type=Report).figures)
    return Way(
        name=f"daily, {variant.replace('daily.', '')}",
        days=found,
        seconds=sum(line.seconds.get("train", 0.0) for line in learnt.values()),
    )


def _weekly(month: Month, setup: Setup, base: str, last_before: str, days: Sequence[str]) -> Way:
    found: dict[str, dict[str, float | None]] = {}
    seconds, to_day = 0.0, last_before
    for at in range(0, len(days), _WEEK):
        run = base if at == 0 else f"{setup.run.name}-to-{to_day}"
        _train(month, setup, run, to_day=to_day)
        found |= _scored(month, setup, run, days[at : at + _WEEK])
        if at:
            lines = (Path(setup.run.dir) / run / STEPS).read_bytes().splitlines()
            seconds += sum(msgspec.json.decode(line, type=_Step).seconds for line in lines)
        to_day = days[min(at + _WEEK, len(days)) - 1]
    return Way(name="weekly from the beginning", days=found, seconds=seconds)


def _scored(month: Month, setup: Setup, run: str, days: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """A run's figures on each of the days, kept beside it."""
    path = Path(setup.run.dir) / run / "days.json"
    known = msgspec.json.decode(path.read_bytes(), type=dict[str, Figures]) if path.is_file() else {}
    missing = [day for day in days if day not in known]
    if missing:
        say(f"scoring {len(missing)} days by {run}")
        known |= _figures(setup, run, missing)
        write_bytes(path, msgspec.json.encode(known))
    return {day: _of_task(month, known[day]) for day in days}


def _figures(setup: Setup, run: str, days: Sequence[str]) -> dict[str, Figures]:
    device = own_device()
    named = replace(setup, run=replace(setup.run, name=run))
    with process_group(device=device):
        trained = open_run(named, version=None, device=device)
        tasks = {name: trained.user_model.task(name).sampling for name in trained.user_model.tasks}
        scorer = scorer_of(trained.model, device=device)
        return {
            day: figures_of(predict(scorer, trained.dataset, days=[day], tasks=tasks, timelines_per_batch=256))
            for day in days
        }


def _of_task(month: Month, figures: Figures) -> dict[str, float | None]:
    sets = figures.get(TASK, {})
    if month.evaluation_set not in sets:
        raise UserError(f"no set {month.evaluation_set!r} of {TASK} on a day; there are: {', '.join(sets) or 'none'}")
    return {metric: sets[month.evaluation_set].get(metric) for metric in METRICS}


def _values(way: Way, metric: str) -> np.ndarray:
    return np.array([np.nan if (value := of_day[metric]) is None else value for of_day in way.days.values()])


def _differences(way: Way, frozen: Way) -> dict[str, tuple[float, float, float]]:
    """Days are drawn with replacement, the same for both."""
    drawn = np.random.default_rng(0).integers(len(frozen.days), size=(_REPLICATES, len(frozen.days)))
    found = {}
    for metric in METRICS:
        less = _values(way, metric) - _values(frozen, metric)
        low, high = np.quantile(less[drawn].mean(1), [0.025, 0.975])
        found[metric] = (float(less.mean()), float(low), float(high))
    return found


def _stack(*words: str) -> None:
    say(f"$ stack {' '.join(words)}")
    status = subprocess.run([sys.executable, "-m", "stack", *words], check=False).returncode
    if status:
        raise SystemExit(status)  # the verb has said why

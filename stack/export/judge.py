"""What a package is held against before it may exist: the trained model, on moments of a day it has not learnt.

Every format of graph with every type of row is compared; every type of row is judged by what it loses; the answers to
some requests are recorded. What is critical refuses the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stack.base.errors import PackageError
from stack.checkpoint.load import Checkpoint
from stack.data.batch import Batch
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.export.answers import Recorded, linked
from stack.export.catalogue import retriever_of
from stack.export.config import ExportConfig
from stack.export.engines import Array, Engine, open_engine
from stack.export.index import NUM_CHECK
from stack.export.moments import KeysOf, by_moment, candidates_of, users_of
from stack.export.package import USER_HALF, USER_VECTOR, Finding, GraphFormat, PackageManifest, Parity, scorers_of
from stack.export.parity import Answers, Differences, ModuleEngine, package_answers, trained_answers
from stack.export.quality import Judge, Quality
from stack.export.quantize import RowType, row_dtype
from stack.export.requests import Asker, is_servable
from stack.export.runner import Bags, Keys, Rows, Runner, Users, given
from stack.export.runs import MISSING
from stack.export.stores import open_stores
from stack.export.tables import ExportedTable, TrainedRows
from stack.export.user_half import vector_of
from stack.model import UserModel

CRITICAL, WARNING, OK = "critical", "warning", "ok"
NOTED_AUC_LOSS = 0.001
"""Above it a type of row is warned of."""
_TIMELINES_PER_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Judged:
    """`parity`: of the format and rows that are served by default; `parities` of all, by format and type of row.
    `queries`: (M, V) vectors that an index is asked with, of the day's users."""

    parity: Parity
    parities: dict[str, dict[str, Parity]]
    quality: Quality
    findings: tuple[Finding, ...]
    requests: list[Recorded]
    queries: NDArray[np.float32]

    def quality_line(self) -> str:
        """What the types of rows cost, for people."""
        told = []
        for name, rows in self.quality.rows.items():
            losses = [task.auc_loss for task in rows.tasks.values() if task.auc_loss is not None]
            told.append(f"{name} {rows.row_bytes / 1e6:,.1f} MB, AUC {-max(losses, default=0.0):+.5f}")
        return f"rows as they could be kept, and the most AUC a task loses on {self.quality.day}: {'; '.join(told)}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A package on its way, beside what it was made of."""

    folder: Path
    manifest: PackageManifest
    modules: Mapping[str, nn.Module]
    model: UserModel
    checkpoint: Checkpoint
    dataset: Dataset
    tables: Mapping[str, ExportedTable]
    config: ExportConfig

    @property
    def keys_of(self) -> KeysOf:
        return {name: table.keys_of for name, table in self.tables.items()}

    @cached_property
    def engines(self) -> dict[GraphFormat, Engine]:
        return {one: open_engine(self.folder, self.manifest, one) for one in self.manifest.formats}

    def trained_rows(self, row_type: RowType | None = None) -> dict[str, Rows]:
        """Rows out of the checkpoint, as `row_type` rounds them; None: each table as the package keeps it."""
        return {
            name: TrainedRows(self.tables[name], self.checkpoint, row_type=row_type or described.row_type)
            for name, described in self.manifest.tables.items()
        }

    def runner(self, engine: Engine, tables: Mapping[str, Rows]) -> Runner:
        return Runner(self.manifest, engine=engine, tables=tables)

    def answers(self, runner: Runner, batch: Batch) -> Answers:
        groups = {name: self.model.task(name).group for name in self.model.tasks}
        return package_answers(runner, self.manifest, batch, self.keys_of, groups)

    def batches(self, num_timelines: int) -> Iterator[Batch]:
        """Of the held-out day, at least so many timelines where it has them."""
        day = held_out_day(self.dataset, self.checkpoint)
        loader = Loader(
            self.dataset, days=[day], global_batch_size=min(num_timelines, _TIMELINES_PER_BATCH), num_prefetch=0
        )
        for batch in loader:
            if num_timelines <= 0:
                return
            yield batch
            num_timelines -= batch.num_timelines


def held_out_day(dataset: Dataset, checkpoint: Checkpoint) -> str:
    """The first day after those learnt; the last one learnt where there is none."""
    last = max(checkpoint.manifest.context.data_days)
    return next((day for day in dataset.days() if day > last), last)


def judge(trial: Trial) -> Judged:
    """Raises: `PackageError` where the package differs from the trained model, or a finding is critical."""
    parities = _parities(trial)
    served = parities[trial.manifest.formats[0].value]["served"]
    quality = _quality(trial)
    findings = tuple(_findings(trial, parities, quality))
    for finding in findings:
        if finding.level == CRITICAL:
            raise PackageError(
                f"export refused: {finding.name}: {finding.measured}, allowed {finding.allowed}; nothing was written"
            )
    return Judged(
        parity=served, parities=parities, quality=quality, findings=findings, requests=_recorded(trial),
        queries=_queries(trial),
    )  # fmt: skip


def _parities(trial: Trial) -> dict[str, dict[str, Parity]]:
    """By format and type of row; "served": with the files of the package. One pass of the trained model."""
    batches = list(trial.batches(trial.config.parity_timelines))
    exact = [trained_answers(trial.model, batch)[0] for batch in batches]
    modules = ModuleEngine(trial.modules)
    found: dict[str, dict[str, Parity]] = {one.value: {} for one in trial.manifest.formats}
    stored = open_stores(trial.folder, trial.manifest)
    variants = {row_type.value: trial.trained_rows(row_type) for row_type in RowType} | {"served": stored}
    rounded = trial.trained_rows()
    exactly = {RowType.fp32.value}
    if all(table.row_type is RowType.fp32 for table in trial.manifest.tables.values()):
        exactly.add("served")
    for name, tables in variants.items():
        if name in exactly:
            theirs = exact
        else:
            reference = trial.runner(modules, rounded if name == "served" else tables)
            theirs = [trial.answers(reference, batch) for batch in batches]
        for graph_format, engine in trial.engines.items():
            runner, differences = trial.runner(engine, tables), Differences()
            for batch, their in zip(batches, theirs, strict=True):
                differences.add(batch, trial.answers(runner, batch), their)
            what = f"{graph_format.value}, rows {name}"
            found[graph_format.value][name] = differences.result(trial.config.tolerance, what=what)
    return found


def _quality(trial: Trial) -> Quality:
    engine = trial.engines[trial.manifest.formats[0]]
    runners = {row_type: trial.runner(engine, trial.trained_rows(row_type)) for row_type in RowType}
    judges = {row_type: Judge(trial.model) for row_type in RowType}
    num_moments = 0
    for batch in trial.batches(trial.config.quality_timelines):
        _, labels = trained_answers(trial.model, batch)
        num_moments += batch.num_moments
        for row_type, runner in runners.items():
            answers = trial.answers(runner, batch)
            scored = {name: label_E for name, label_E in labels.items() if name in answers}
            judges[row_type].add(batch, answers, scored)
    return Quality(
        day=held_out_day(trial.dataset, trial.checkpoint),
        num_moments=num_moments,
        rows={
            row_type.value: one.result(judges[RowType.fp32], row_bytes=_row_bytes(trial, row_type))
            for row_type, one in judges.items()
        },
    )


def _row_bytes(trial: Trial, row_type: RowType) -> int:
    total = 0
    for table in trial.manifest.tables.values():
        dtype, num_elements = row_dtype(row_type, table.dim)
        total += table.num_rows * dtype.itemsize * num_elements
    return total


def _findings(trial: Trial, parities: Mapping[str, Mapping[str, Parity]], quality: Quality) -> Iterator[Finding]:
    worst = max(parity.worst for rows in parities.values() for parity in rows.values())
    yield Finding(
        name="parity of all formats and types of rows", level=OK, measured=f"{worst:.3g}",
        allowed=f"{trial.config.tolerance:.3g}",
    )  # fmt: skip
    yield Finding(
        name="normalisation computes as in evaluation", level=OK,
        measured="no graph changes a running statistic", allowed="none",
    )  # fmt: skip
    for name in sorted({table.row_type.value for table in trial.manifest.tables.values()}):
        losses = {task: one.auc_loss for task, one in quality.rows[name].tasks.items() if one.auc_loss is not None}
        if not losses:
            continue
        task = max(losses, key=lambda one: losses[one])
        loss = losses[task]
        level = CRITICAL if loss > trial.config.max_auc_loss else WARNING if loss > NOTED_AUC_LOSS else OK
        yield Finding(
            name=f"AUC of {task!r} lost by rows in {name}", level=level, measured=f"{loss:.5f}",
            allowed=f"export.max_auc_loss={trial.config.max_auc_loss:g}",
        )  # fmt: skip


def _recorded(trial: Trial) -> list[Recorded]:
    """Requests of all groups in turn, with the answers of the package's own rows and graphs, found without going
    through raw ids. Raises: `PackageError` where there is none: no server could be tried."""
    groups: list[str | None] = [group.name for group in trial.manifest.schema.groups] or [None]
    found: dict[str | None, list[Recorded]] = {group: [] for group in groups}
    most = trial.config.num_requests
    recorder = _Recorder(trial)
    for batch in trial.batches(trial.config.parity_timelines):
        user = recorder.users(batch)
        for group, requests in found.items():
            requests += islice(recorder.requests(batch, user, group), most - len(requests))
    in_turn = [one for several in zip_longest(*found.values()) for one in several if one is not None]
    if not in_turn:
        raise PackageError(
            "export refused: no moment of the held-out day is a request that a server would accept, and could be tried "
            f"with: raise export.max_events={trial.config.max_events} or "
            f"export.parity_timelines={trial.config.parity_timelines}; nothing was written"
        )
    return in_turn[:most]


class _Recorder:
    """Asks the package by its keys, and writes down what would have been asked by raw ids."""

    def __init__(self, trial: Trial) -> None:
        self._manifest = trial.manifest
        self._asker = Asker(trial.dataset, trial.manifest.schema)
        self._runner = trial.runner(
            trial.engines[trial.manifest.formats[0]], open_stores(trial.folder, trial.manifest)
        )  # fmt: skip
        self._keys_of = {
            name: (_nothing if name in self._asker.lost else of) for name, of in trial.keys_of.items()
        }  # fmt: skip

    def users(self, batch: Batch) -> dict[str, Array]:
        return self._runner.user_half(_asked(users_of(batch, self._manifest.schema, self._keys_of)))

    def requests(self, batch: Batch, user: Mapping[str, Array], group: str | None) -> Iterator[Recorded]:
        """Of the moments that have examples of `group`; None: of all, without candidates."""
        moments = (
            [(moment, np.empty(0, dtype=np.int64)) for moment in range(batch.num_moments)]
            if group is None
            else by_moment(batch.groups[group])
        )
        for moment, example_E in moments:
            if batch.moment_position_M[moment] > self._manifest.max_events:
                continue  # the request would be cut, and its answer another
            body = self._asker.request(batch, moment, self._manifest.max_events)
            if group is not None:
                body |= self._asker.candidates(batch, example_E, group)
            if is_servable(body):
                one = {output: value[moment : moment + 1] for output, value in user.items()}
                scores = {} if group is None else self._scores(batch, example_E, group, one)
                yield Recorded(body=body, vector=one[USER_VECTOR][0].tolist(), scores=scores)

    def _scores(
        self, batch: Batch, example_E: NDArray[np.int64], group: str, user: Mapping[str, Array]
    ) -> dict[str, list[float]]:
        features = self._manifest.schema.group(group).candidate
        candidates = candidates_of(batch.groups[group], features, example_E, self._keys_of)
        names = scorers_of(self._manifest, group)
        scores = self._runner.score(names, replace(candidates, ids=_without_missing(candidates.ids)), user)
        return {
            task.name: linked(scores[task.output], task.link).tolist()
            for task in self._manifest.tasks
            if task.graph in names
        }


def _queries(trial: Trial) -> NDArray[np.float32]:
    """Vectors of the day's users that an index is asked with; none where no task retrieves."""
    task = retriever_of(trial.model)
    if task is None:
        return np.zeros((0, 0), dtype=np.float32)
    output = vector_of(task)
    assert output in trial.manifest.graphs[USER_HALF].outputs
    runner = trial.runner(trial.engines[trial.manifest.formats[0]], trial.trained_rows())
    vectors: list[NDArray[np.float32]] = []
    for batch in trial.batches(trial.config.quality_timelines):
        vectors.append(runner.user_half(users_of(batch, trial.manifest.schema, trial.keys_of))[output])
        if sum(map(len, vectors)) >= NUM_CHECK:
            break
    return np.concatenate(vectors)


def _nothing(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.full(len(ids), MISSING)


def _asked(users: Users) -> Users:
    """As requests have them."""
    return replace(
        users, event=_without_missing(users.event), profile=_without_missing(users.profile),
        query=_without_missing(users.query),
    )  # fmt: skip


def _without_missing(keys: Mapping[str, Keys]) -> dict[str, Keys]:
    """A request cannot say that an id of a bag is missing: there the bag is without it."""
    found = dict(keys)
    for name, bags in keys.items():
        if isinstance(bags, Bags):
            given_N = given(bags.keys_N)
            owner_N = np.repeat(np.arange(len(bags.lengths_G)), bags.lengths_G)
            lengths_G = np.bincount(owner_N[given_N], minlength=len(bags.lengths_G))
            found[name] = Bags(keys_N=bags.keys_N[given_N], lengths_G=lengths_G)
    return found

"""`stack ingest`: a log becomes timelines by day.

Rows are checked once, before anything is written. Then chunk after chunk of days: the state at its start and the
chunk's rows give all its days. A dataset has one writer at a time; `ingest.json` marks one that has not ended, so
that the same command run again continues after the last finished chunk.
"""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow.compute as pc
from ibis.expr.types import Table

from stack.base.errors import DataError
from stack.base.files import remove_leftovers, sha256_of, write_bytes
from stack.data import coding, follow
from stack.data.badrows import Checked, check, refuse_above, sample_of, write_sample
from stack.data.canonical import Canonical, DataConfig
from stack.data.chunk import Chunk, ChunkBuilder, ChunkSettings
from stack.data.days import SECONDS_PER_DAY, day_name, day_number
from stack.data.engine import Engine, open_engine
from stack.data.fits import refuse_gap, refuse_other
from stack.data.ingest_config import IngestConfig
from stack.data.ingest_report import IngestReport
from stack.data.layout import FORMAT_VERSION, DatasetManifest, DayManifest, day_folder
from stack.data.raw_ids import schema_with_raw_ids
from stack.data.schema import Schema
from stack.data.sidecount import SideCounts, count_sides
from stack.data.sources import SOURCES
from stack.data.sources.files import unreadable_refused
from stack.data.state import State, StateStore, complete_days
from stack.data.timeline import EVENT_ORDER, MOMENT_ORDER, Cutter, Flat, order_of
from stack.data.vocabulary import Vocabularies
from stack.data.write import ChunkWriter, DayFacts
from stack.telemetry.progress import Progress

MARK = "ingest.json"


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """An ingest that has not ended: the days it was asked for, and the last day of its last finished chunk."""

    first: int
    last: int
    done: int | None


def ingest(data: DataConfig, config: IngestConfig, *, now: int | None = None) -> IngestReport:
    """Prepares the days of `data` into `data.out`, and returns the counts.

    `now` is the epoch second, in the log's local time, after which rows are from the future; by default the clock's,
    and a day more for the time zones.
    Raises: `DataError` for a log that cannot be used (too many bad rows, no row in the days asked for), a dataset made
    with other settings or by another ingest at this moment; `ConfigError` for options; what the source raises.
    """
    source = SOURCES[data.source]
    asked = (_day(data.from_day, "data.from_day"), _day(data.to_day, "data.to_day"))
    if asked[0] is not None and asked[1] is not None and asked[0] > asked[1]:
        raise DataError(f"data.from_day={data.from_day} is after data.to_day={data.to_day}: swap them")
    dataset = Path(data.out)
    report = IngestReport()
    clock = int(time.time()) + 86_400 if now is None else now
    with _only_writer(dataset), open_engine(
        name=config.engine,
        memory_limit_gib=config.memory_limit_gib,
        num_threads=config.threads,
        temp_folder=None if config.temp_folder is None else Path(config.temp_folder),
    ) as engine:  # fmt: skip
        with report.phase("read and check"), unreadable_refused():
            canonical = source.read(engine.backend, data)
            canonical = replace(canonical, schema=schema_with_raw_ids(canonical, config.raw_ids))
            checked = check(canonical, engine=engine, days=asked, now=clock, num_samples=config.num_bad_rows)
            refuse_above(checked, max_bad_share=config.max_bad_share)
            first, last = _range_of(checked, data)
            canonical = _once(canonical, engine=engine, last=last)
            sides = count_sides(canonical, engine=engine, first=first, last=last)
        run = _Run(
            canonical=canonical, checked=checked, sides=sides, engine=engine, dataset=dataset, config=config,
            report=report,
        )  # fmt: skip
        run.prepare(data.source, first, last)
        run.chunks(first, last)
    return report


class _Run:
    """The steps of one ingest, after its rows were checked."""

    def __init__(
        self,
        *,
        canonical: Canonical,
        checked: Checked,
        sides: SideCounts,
        engine: Engine,
        dataset: Path,
        config: IngestConfig,
        report: IngestReport,
    ) -> None:
        self._canonical = canonical
        self._schema: Schema = canonical.schema
        self._checked = checked
        self._sides = sides
        self._engine = engine
        self._dataset = dataset
        self._config = config
        self._report = report
        self._words = Vocabularies(engine=engine, dataset=dataset)
        self._states = StateStore(
            engine=engine,
            dataset=dataset,
            events=coding.event_schema(canonical),
            max_history=config.max_history,
            pool_days=config.negatives.pool_days,
            with_follow=follow.has_features(canonical.schema),
        )

    def prepare(self, source: str, first: int, last: int) -> None:
        """Writes or compares the dataset's manifest; refuses days that would leave a gap to those of the dataset."""
        if not self._config.allow_gap:
            refuse_gap(complete_days(self._dataset), first=first, last=last, dataset=self._dataset)
        manifest = DatasetManifest(
            format_version=FORMAT_VERSION,
            source=source,
            schema=self._schema,
            num_buckets=self._config.num_buckets,
            max_history=self._config.max_history,
            settings=_settings(self._config, self._schema),
        )
        path = self._dataset / "dataset.json"
        if path.exists():
            refuse_other(msgspec.json.decode(path.read_bytes(), type=DatasetManifest), manifest, self._dataset)
        else:
            write_bytes(path, msgspec.json.encode(manifest))
        write_sample(sample_of(self._checked, None), self._dataset / "bad_rows.parquet")
        self._report.num_source_rows = sum(self._checked.num_rows.values())
        self._report.num_side_rows = sum(self._sides.num_rows.values(), Counter())
        self._report.dropped = self._checked.total() + sum(self._sides.dropped.values(), Counter())

    def chunks(self, first: int, last: int) -> None:
        """Prepares all chunks of the days `first`..`last`, or those that an unfinished ingest of the same days left."""
        mark = self._dataset / MARK
        start = first
        if mark.exists():
            unfinished = msgspec.json.decode(mark.read_bytes(), type=Unfinished)
            if (unfinished.first, unfinished.last) == (first, last) and unfinished.done is not None:
                start = unfinished.done + 1
        else:
            write_bytes(mark, msgspec.json.encode(Unfinished(first=first, last=last, done=None)))
        builder = ChunkBuilder(
            canonical=self._canonical,
            valid=self._checked.valid,
            engine=self._engine,
            words=self._words,
            settings=ChunkSettings(
                negatives=self._config.negatives,
                price_edges=tuple(self._config.price_edges),
                num_buckets=self._config.num_buckets,
            ),
        )
        with Progress(total=last - start + 1, description="ingest", unit="days") as bar:
            while start <= last:
                end = min(start + self._config.chunk_days - 1, last)
                with self._engine.scope():
                    self._chunk(builder, start, end)
                write_bytes(mark, msgspec.json.encode(Unfinished(first=first, last=last, done=end)))
                bar.advance(end - start + 1, note=f"to {day_name(end)}")
                start = end + 1
        mark.unlink()

    def _chunk(self, builder: ChunkBuilder, first: int, last: int) -> None:
        phase = self._report.phase
        with phase("state"):
            state = self._states.load(first)
        with phase("code and sample"):
            chunk = builder.build(first=first, last=last, state=state.tables)
        days = self._days_of(chunk)
        if not days:
            return
        writer = ChunkWriter(dataset=self._dataset, schema=self._schema, days=days)
        for bucket in range(self._config.num_buckets):
            with phase("fetch"):
                flat = self._flat(chunk, state, bucket)
            with phase("timelines"):
                self._write_bucket(writer, flat, days, bucket)
        with phase("state"):
            offers = chunk.examples.get(follow.GROUP)
            self._states.write_full(
                writer.full_state(), state=state, events=chunk.events, offers=offers, last_day=days[-1]
            )
        with phase("commit"):
            self._commit(writer, days)

    def _write_bucket(self, writer: ChunkWriter, flat: Flat, days: list[int], bucket: int) -> None:
        cutter = Cutter(flat=flat, schema=self._schema, max_history=self._config.max_history)
        kept = flat.examples[follow.GROUP].select(list(follow.OFFERS)) if follow.has_features(self._schema) else None

        def write(day: int) -> None:
            events = flat.events.filter(pc.equal(flat.events["day"], day))
            offers = None if kept is None else kept.filter(pc.equal(kept["day"], day))
            writer.add(day=day, bucket=bucket, timelines=cutter.cut(day), events=events, offers=offers)

        with ThreadPoolExecutor(self._config.threads) as pool:
            for _ in pool.map(write, days):
                pass

    def _commit(self, writer: ChunkWriter, days: list[int]) -> None:
        existing = complete_days(self._dataset)
        before, later = [day for day in existing if day < days[0]], [day for day in existing if day > days[-1]]
        old = {day: self._content(day) for day in days if day in existing}
        parent = sha256_of(self._manifest(before[-1])) if before else None
        for manifest in writer.commit(facts={day: self._facts(day) for day in days}, parent=parent):
            self._report.add(manifest)
        changed = any(self._content(day) != old.get(day) for day in days)
        self._report.outdated = [day_name(day) for day in later] if changed else []
        self._states.drop_full(after=days[-1])
        self._states.keep_last(self._config.keep_states)

    def _manifest(self, day: int) -> Path:
        return day_folder(self._dataset, day_name(day)) / "manifest.json"

    def _content(self, day: int) -> tuple[DayManifest, list[str]]:
        """What later days build on: the day's manifest, whichever code wrote it, and the digests of its events."""
        manifest = msgspec.json.decode(self._manifest(day).read_bytes(), type=DayManifest)
        events = [sha256_of(file) for file in sorted(self._states.folder(day).glob("bucket-*.parquet"))]
        return msgspec.structs.replace(manifest, code_version="", parent=None), events

    def _facts(self, day: int) -> DayFacts:
        dropped = self._sides.dropped.get(day, Counter())
        return DayFacts(
            num_rows=self._words.num_rows(day),
            num_source_rows={"events": self._checked.num_rows.get(day, 0), **self._sides.num_rows.get(day, {})},
            dropped=dict(sorted((self._checked.dropped.get(day, Counter()) + dropped).items())),
            bad_rows=sample_of(self._checked, day),
        )

    def _days_of(self, chunk: Chunk) -> list[int]:
        days = chunk.events.select("day").union(chunk.moments.select("day"), distinct=True)
        return sorted(self._engine.fetch(days)["day"].to_pylist())

    def _flat(self, chunk: Chunk, state: State, bucket: int) -> Flat:
        def of(table: object, order: tuple[str, ...]) -> object:
            return self._engine.fetch(table.filter(table.bucket == bucket).order_by(*order))  # type: ignore[attr-defined]

        users = chunk.events.select("user").union(chunk.moments.select("user"), distinct=True)
        history = state.history.semi_join(users, "user")
        return Flat(
            events=of(history.union(chunk.events.select(*history.columns)), EVENT_ORDER),
            moments=of(chunk.moments, MOMENT_ORDER),
            profiles=of(chunk.profiles, ("user", "since")),
            examples={
                group.name: of(chunk.examples[group.name], order_of(group, chunk.examples[group.name].columns))
                for group in self._schema.groups
            },
        )


def _day(name: str | None, what: str) -> int | None:
    return None if name is None else day_number(name, what=what)


def _range_of(checked: Checked, data: DataConfig) -> tuple[int, int]:
    """First and last day to prepare. Raises `DataError` where there is no row to prepare."""
    bad = {day: sum(reasons.values()) for day, reasons in checked.dropped.items()}
    days = [day for day, count in checked.num_rows.items() if day is not None and count > bad.get(day, 0)]
    asked = (_day(data.from_day, "data.from_day"), _day(data.to_day, "data.to_day"))
    if not days and asked == (None, None):
        raise DataError(f"the log of data.source={data.source} (data.path={data.path}) has no usable row")
    if not days:
        what = f"from {data.from_day or 'its begin'} to {data.to_day or 'its end'}"
        raise DataError(
            f"the log of data.source={data.source} has no usable row {what}: choose other days with data.from_day and "
            f"data.to_day, or leave them out to take the whole log"
        )
    for name, day in zip(("data.from_day", "data.to_day"), asked, strict=True):
        if day is not None and day not in days:
            raise DataError(
                f"{name}={day_name(day)} is an empty day: of the days asked for, the log has rows "
                f"from {day_name(min(days))} to {day_name(max(days))}"
            )
    return min(days), max(days)


def _once(canonical: Canonical, *, engine: Engine, last: int) -> Canonical:
    """The source's tables computed once, not again for each chunk; `events` are those that were checked.

    Rows later than the day `last` are left out where that is known: of visits and follow by time, of pools by day.
    """
    end = (last + 1) * SECONDS_PER_DAY
    kept: dict[str, Table] = {}
    for name in ("items", "users", "visits", "pools", "impressions", "follow"):
        table = getattr(canonical, name)
        if table is None:
            continue
        if name in ("visits", "impressions", "follow"):
            table = table.filter(table.time.isnull() | (table.time < end))
        if name == "pools":
            table = table.filter(table.day <= last)
        kept[name] = engine.materialize(f"source_{name}", table)
    return replace(canonical, **kept)


def _settings(config: IngestConfig, schema: Schema) -> dict[str, str | int | float | bool | None]:
    """The options that shape the result; of ids without a vocabulary also how the log has them."""
    negatives = {f"negatives.{name}": value for name, value in vars(config.negatives).items()}
    raw_ids = " ".join(f"{raw.table}:{'text' if raw.text else 'int64'}" for raw in schema.raw_ids or ())
    edges = " ".join(map(str, config.price_edges))
    return {"price_edges": edges} | ({"raw_ids": raw_ids} if raw_ids else {}) | negatives


@contextmanager
def _only_writer(dataset: Path) -> Iterator[None]:
    """Holds the dataset's lock, and clears what a killed writer left. Raises `DataError` where another holds it."""
    try:
        dataset.mkdir(parents=True, exist_ok=True)
        lock = (dataset / ".lock").open("w")
    except OSError as error:
        raise DataError(
            f"data.out={dataset} cannot be written ({error.strerror}): choose another folder, or make it writable"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another ingest is writing {dataset}: wait for its end, or choose another data.out"
            ) from error
        for folder in (dataset, dataset / "days", dataset / "state"):
            remove_leftovers(folder)
        yield

"""What a server serves: versions, labels, row deltas, and every way to change them. One change after the other.

Whatever is loaded is checked here once (names, owners, signature, digests), then loaded, warmed and tried by every
worker; only when all have it do labels move. Where anything fails nothing has changed.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import msgspec

from stack.base.errors import DataError, PackageError
from stack.base.files import safe_join
from stack.base.threads import step_back
from stack.export.delta import DeltaManifest, follows, is_delta, merge, open_delta
from stack.export.package import PackageManifest, open_package
from stack.export.sealed import MANIFEST, refuse_name
from stack.export.sign import check, read_signature, refuse_writable_by_others
from stack.serve.config import ServeConfig
from stack.serve.control import Drop, Load, Message, Rows, Serve, Use
from stack.serve.crew import Member
from stack.telemetry.console import say
from stack.telemetry.metrics import ServerMetrics

T = TypeVar("T")
_ASIDE_NICE = 10


class LaidOver(msgspec.Struct, frozen=True, kw_only=True):
    """A delta on a version."""

    name: str
    folder: str
    manifest: DeltaManifest


@dataclass(kw_only=True)
class Version:
    """A package that is loaded."""

    number: int
    name: str
    folder: Path
    manifest: PackageManifest
    loaded: float
    deltas: list[LaidOver] = field(default_factory=list)

    @property
    def last_day(self) -> str:
        """The last day that its rows have learnt."""
        return self.deltas[-1].manifest.last_day if self.deltas else self.manifest.lineage.last_day

    def told(self) -> dict[str, object]:
        """For whoever asks."""
        return {
            "version": self.number,
            "package": self.name,
            "digest": self.manifest.digest,
            "run": self.manifest.lineage.run,
            "last_day": self.last_day,
            "deltas": [one.name for one in self.deltas],
            "loaded": datetime.fromtimestamp(self.loaded, UTC).isoformat(timespec="seconds"),
        }


class Fleet:
    """`order` has all workers do something (`stack.serve.crew.Crew.order`)."""

    def __init__(self, config: ServeConfig, *, root: Path, work: Path, metrics: ServerMetrics) -> None:
        self._config = config
        self._root = root
        self._work = work
        self._metrics = metrics
        self._changing = asyncio.Lock()
        self._number = 0
        self._merging: asyncio.Task[None] | None = None
        self.versions: dict[int, Version] = {}
        self.labels = Use(id=0, stable=0)
        self.before: list[int] = []
        """Versions that were stable, the latest last."""
        self.order: Callable[[Message], Awaitable[None]]

    async def first(self, name: str) -> None:
        """Checks the package that a server starts with; its workers are prepared with it."""
        version = await self._checked(name)
        self.versions[version.number] = version
        self.labels = Use(id=0, stable=version.number)
        self._show()

    async def prepare(self, member: Member) -> None:
        """Brings a new worker to where the others are, then lets it accept. A version that cannot be loaded any more
        is forgotten, unless it answers requests.

        Raises: `PackageError` where one that does cannot be loaded.
        """
        async with self._changing:
            for version in list(self.versions.values()):
                try:
                    await member.order(_load(version))
                except PackageError as error:
                    if version.number in (self.labels.stable, self.labels.canary):
                        raise
                    say(f"version {version.number} is dropped, it cannot be loaded again: {error}")
                    await self._drop(version.number)
            await member.order(self.labels)
            await member.order(Serve(id=0))

    async def load(self, name: str, *, canary_share: float | None = None) -> Version:
        """Loads a package as stable, or as canary with a share of requests. Raises: `PackageError`."""
        async with self._change("package"):
            version = await self._checked(name)
            try:
                await self.order(_load(version))
            except PackageError:
                await self.order(Drop(id=0, number=version.number))
                raise
            self.versions[version.number] = version
            if canary_share is None:
                await self._use(Use(id=0, stable=version.number))
            else:
                await self._use(
                    Use(id=0, stable=self.labels.stable, canary=version.number, share=canary_share)
                )  # fmt: skip
            await self._drop_old()
            return version

    async def apply(self, name: str, *, number: int | None = None) -> Version:
        """Lays a delta over a version (None: the stable one). Raises: `PackageError`."""
        async with self._change("rows"):
            version = self._loaded(self.labels.stable if number is None else number)
            folder = self._place(name, what="delta", way="export.delta_of=<the package that is served>")
            delta = await _aside(lambda: self._trusted_delta(folder))
            follows(delta, version.manifest, [one.manifest for one in version.deltas])
            try:
                await self.order(Rows(id=0, number=version.number, folder=str(folder), digest=delta.digest))
            except PackageError:
                await self.order(_load(version))
                raise
            version.deltas.append(LaidOver(name=name, folder=str(folder), manifest=delta))
            self._show()
        if len(version.deltas) > self._config.max_deltas and (self._merging is None or self._merging.done()):
            self._merging = asyncio.get_running_loop().create_task(self._merge(version))
        return version

    async def use(self, stable: int | None, canary: int | None, share: float) -> None:
        """Moves labels to versions that are loaded. Raises: `PackageError` where one is not."""
        async with self._changing:
            stable = self.labels.stable if stable is None else stable
            if canary is None and share:
                raise PackageError(f"canary_share {share:g} is of no version: give canary, its number, with it")
            for number in (stable, *(() if canary is None else (canary,))):
                self._loaded(number)
            await self._use(Use(id=0, stable=stable, canary=canary, share=share))

    async def rollback(self) -> Version:
        """Stable is what it was before; a canary is taken away. Raises: `PackageError` where there was none."""
        async with self._changing:
            earlier = [number for number in self.before if number in self.versions and number != self.labels.stable]
            if not earlier:
                raise PackageError("there is no earlier version to go back to: load a package by name")
            await self._use(Use(id=0, stable=earlier[-1]), remember=False)
            self.before = [number for number in self.before if number != earlier[-1]]
            return self.versions[earlier[-1]]

    async def drop(self, number: int) -> None:
        """Forgets a version. Raises: `PackageError` where a label stands for it."""
        async with self._changing:
            self._loaded(number)
            if number in (self.labels.stable, self.labels.canary):
                raise PackageError(f"version {number} answers requests: give its label to another version first")
            await self._drop(number)

    def told(self) -> dict[str, object]:
        """All versions and labels, for whoever asks."""
        return {
            "stable": self.labels.stable,
            "canary": self.labels.canary,
            "canary_share": self.labels.share,
            "versions": [version.told() for version in self.versions.values()],
        }

    async def _checked(self, name: str) -> Version:
        folder = self._place(name, what="package", way="run.name=<run>")
        manifest = await _aside(lambda: self._trusted_package(folder))
        self._number += 1
        return Version(number=self._number, name=name, folder=folder, manifest=manifest, loaded=time.time())

    def _place(self, name: str, *, what: str, way: str) -> Path:
        """Of a package or delta below the root, with links followed now, for good. `way`: the option of `stack export`
        that writes one. Raises: `PackageError` for names that could lead elsewhere."""
        refuse_name(name, what=what)
        try:
            folder = safe_join(self._root, name)
        except DataError as error:
            raise PackageError(str(error)) from error
        if not folder.is_dir():
            raise PackageError(f"no {what} at {folder}: write one with: stack export {way} export.out={folder}")
        return folder.resolve()

    def _trusted_package(self, folder: Path) -> PackageManifest:
        self._trust(folder)
        if is_delta(folder):
            raise PackageError(f"{folder} is a row delta, not a package: lay it over one with /admin/deltas")
        return open_package(folder)

    def _trusted_delta(self, folder: Path) -> DeltaManifest:
        self._trust(folder)
        return open_delta(folder)

    def _trust(self, folder: Path) -> None:
        """Raises: `PackageError` where others could write to it, or a signature is asked for and is not there."""
        refuse_writable_by_others(folder)
        if self._config.trusted_keys:
            keys = [Path(key) for key in self._config.trusted_keys]
            check((folder / MANIFEST).read_bytes(), read_signature(folder), keys)

    def _loaded(self, number: int) -> Version:
        if number not in self.versions:
            known = ", ".join(map(str, sorted(self.versions)))
            raise PackageError(f"version {number} is not loaded: loaded are {known}")
        return self.versions[number]

    async def _use(self, labels: Use, *, remember: bool = True) -> None:
        await self.order(labels)
        if remember and labels.stable != self.labels.stable:
            self.before.append(self.labels.stable)
        self.labels = labels
        self._show()

    async def _drop_old(self) -> None:
        """Keeps the newest, those with a label, and the one to roll back to."""
        kept = {self.labels.stable, self.labels.canary, *self.before[-1:]}
        for number in sorted(self.versions):
            if len(self.versions) <= self._config.keep_versions:
                return
            if number not in kept:
                await self._drop(number)

    async def _drop(self, number: int) -> None:
        await self.order(Drop(id=0, number=number))
        self._forget(self.versions.pop(number).deltas)
        self.before = [one for one in self.before if one != number]

    def _forget(self, deltas: Iterable[LaidOver]) -> None:
        """Removes those that were merged here; whoever has one open keeps it."""
        for one in deltas:
            if Path(one.folder).parent == self._work:
                shutil.rmtree(one.folder, ignore_errors=True)

    async def _merge(self, version: Version) -> None:
        """Makes one delta of those on a version, beside requests, and exchanges them. Where that fails a line says so,
        and they stay as they are."""
        deltas = list(version.deltas)
        folder = self._work / f"merged-{version.number}-{deltas[-1].manifest.digest[:12]}"
        checked = [(Path(one.folder), one.manifest) for one in deltas]
        unused: Iterable[LaidOver] = ()
        try:
            manifest = await _aside(lambda: merge(checked, version.manifest, folder))
            merged = LaidOver(name=folder.name, folder=str(folder), manifest=manifest)
            unused = [merged]
            async with self._changing:
                if self.versions.get(version.number) is not version or version.deltas[: len(deltas)] != deltas:
                    return
                await self.order(_load(version, deltas=[merged, *version.deltas[len(deltas) :]]))
                version.deltas[: len(deltas)] = [merged]
                unused = deltas
            say(f"version {version.number}: {len(deltas)} deltas are one now")
        except (PackageError, OSError) as error:
            say(f"version {version.number}: its {len(deltas)} deltas could not be merged: {error}")
        finally:
            self._forget(unused)

    @asynccontextmanager
    async def _change(self, kind: str) -> AsyncIterator[None]:
        start = time.perf_counter()
        async with self._changing:
            try:
                yield
            except PackageError as error:
                self._metrics.swaps.labels(kind, "rejected").inc()
                say(f"refused: {error}")
                raise
            self._metrics.swaps.labels(kind, "accepted").inc()
            self._metrics.swap_seconds.labels(kind).observe(time.perf_counter() - start)

    def _show(self) -> None:
        """Labels as metrics."""
        for label, number in (("stable", self.labels.stable), ("canary", self.labels.canary)):
            version = None if number is None else self.versions.get(number)
            self._metrics.version.labels(label).set(0 if version is None else version.number)
            if version is None:
                for gauge in (self._metrics.data_seconds, self._metrics.loaded_seconds):
                    gauge.remove(label)
            else:
                end = datetime.fromisoformat(version.last_day).replace(tzinfo=UTC) + timedelta(days=1)
                self._metrics.data_seconds.labels(label).set(end.timestamp())
                self._metrics.loaded_seconds.labels(label).set(version.loaded)
        self._metrics.share.set(self.labels.share)


def _load(version: Version, *, deltas: Sequence[LaidOver] | None = None) -> Load:
    """With its deltas, or with others in their place."""
    return Load(
        id=0, number=version.number, folder=str(version.folder), digest=version.manifest.digest,
        deltas=[(one.folder, one.manifest.digest) for one in (version.deltas if deltas is None else deltas)],
    )  # fmt: skip


async def _aside(work: Callable[[], T]) -> T:
    """In a thread of low priority: reading and hashing a package must not take the processor from requests. A stop does
    not wait for it."""
    done: Future[T] = Future()

    def run() -> None:
        step_back(_ASIDE_NICE)
        if done.set_running_or_notify_cancel():
            try:
                done.set_result(work())
            except BaseException as error:  # whatever it is, whoever waits gets it
                done.set_exception(error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await asyncio.wrap_future(done)

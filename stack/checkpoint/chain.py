"""The versions of a run: which there are, what each builds on, and the runs of which a version's tables are made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stack.base.errors import CheckpointError
from stack.checkpoint.manifest import (
    MANIFEST,
    BaseManifest,
    FileEntry,
    Link,
    TableEntry,
    VersionManifest,
    base_name,
    data_folder,
    decode_manifest,
    manifest_name,
)
from stack.checkpoint.store import Store, open_store

_NUMBERED = re.compile(r"\w+/(\d{8})\.json")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A table's run in one version, or in its compaction. `files`: those of the version, relative to `folder`."""

    version: int
    folder: str
    entry: TableEntry
    files: Mapping[str, FileEntry]


class Chain:
    """The versions in a store. Reads what is there at each call: another process may be writing.

    Every method raises `CheckpointError` naming a manifest that is missing, damaged, or not the one that was meant.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def numbers(self) -> tuple[int, ...]:
        """Of all versions, also of those whose files were pruned, ascending."""
        return self._numbered("manifests")

    def compacted(self) -> tuple[int, ...]:
        """Versions that have a compaction, ascending."""
        return self._numbered("bases")

    def pruned(self) -> tuple[int, ...]:
        """Versions whose files were deleted, ascending."""
        return self._numbered("pruned")

    def manifest(self, number: int) -> VersionManifest:
        """The manifest of a version."""
        name = manifest_name(number)
        try:
            data = self.store.read(name)
        except FileNotFoundError as error:
            known = self.numbers()
            has = f"versions {known[0]} to {known[-1]}" if known else "no version"
            raise CheckpointError(f"{self.store.url} has no version {number}; it has {has}") from error
        found = decode_manifest(data, VersionManifest, name=f"{self.store.url}/{name}")
        if found.version != number:
            raise CheckpointError(f"{self.store.url}/{name} is damaged: it holds version {found.version}")
        return found

    def linked(self, link: Link) -> VersionManifest:
        """The manifest that a link names: of this version, with this digest."""
        found = self.manifest(link.version)
        if found.digest != link.digest:
            raise CheckpointError(
                f"{self.store.url}/{manifest_name(link.version)} is damaged: its digest is {found.digest[:12]}, "
                f"what builds on it says {link.digest[:12]}"
            )
        return found

    def base(self, version: VersionManifest) -> BaseManifest | None:
        """The compaction of a version, if there is one."""
        name = base_name(version.version)
        try:
            data = self.store.read(name)
        except FileNotFoundError:
            return None
        found = decode_manifest(data, BaseManifest, name=f"{self.store.url}/{name}")
        if found.of != version.link:
            raise CheckpointError(f"{self.store.url}/{name} is damaged: it is the compaction of another version")
        return found

    def newest_number(self) -> int:
        """0 where there is no version."""
        return max(self.numbers(), default=0)

    def head(self) -> VersionManifest | None:
        """The newest version; None where there is none."""
        numbers = self.numbers()
        return self.manifest(numbers[-1]) if numbers else None

    def newest_readable(self) -> VersionManifest | None:
        """The newest version whose manifest is not damaged; None where there is none."""
        for number in reversed(self.numbers()):
            try:
                return self.manifest(number)
            except CheckpointError:
                continue
        return None

    def line(self, version: VersionManifest) -> Iterator[VersionManifest]:
        """A version, its parent, that one's parent and so on to the first."""
        while True:
            yield version
            if version.parent is None:
                return
            version = self.linked(version.parent)

    def layers(self, version: VersionManifest) -> dict[str, list[Layer]]:
        """By table of a version, its runs from the oldest (whole) to the newest."""
        found: dict[str, list[Layer]] = {table: [] for table in version.tables}
        open_tables = set(found)
        for below in self.line(version):
            base = self.base(below)
            self._refuse_pruned(below, version, base)
            for table in sorted(open_tables):
                entries = _runs(below, table) if base is None else base.tables.get(table, ())
                if not entries:
                    raise CheckpointError(
                        f"{self.store.url}: version {version.version} builds on rows of table '{table}' in version "
                        f"{below.version}, which has none"
                    )
                held = base or below
                found[table] += [
                    Layer(version=below.version, folder=data_folder(held.data), entry=entry, files=held.files)
                    for entry in reversed(entries)
                ]
                if entries[0].whole:
                    open_tables.discard(table)
            if not open_tables:
                break
        else:
            raise CheckpointError(
                f"{self.store.url}: version {version.version} has no base for {', '.join(sorted(open_tables))}"
            )
        return {table: layers[::-1] for table, layers in found.items()}

    def find(self, asked: str | None) -> VersionManifest:
        """A version by its number (`12`) or by the last day it was trained on (`2017-11-05`: the newest such that is
        complete); None is the newest.

        Raises: `CheckpointError` where there is no such version; it says which there are.
        """
        head = self.head()
        if head is None:
            raise CheckpointError(f"{self.store.url} has no version yet: run `stack train` first")
        if asked is None:
            return head
        if asked.isdecimal():
            return self.manifest(int(asked))
        known = self.days(head)
        if asked not in known:
            days = sorted(known)
            has = f"{days[0]} to {days[-1]}" if days else "no finished training"
            raise CheckpointError(f"{self.store.url} has no version of day {asked!r}; it has {has}, or give a number")
        return known[asked]

    def finished(self, asked: str | None) -> VersionManifest:
        """As `find`, but of a run that goes on by days the newest is the last finished one: a save on the way to a day
        has passed no check."""
        found = self.find(asked)
        if asked is None and found.lineage.day is not None:
            return next(one for one in self.line(found) if one.complete)
        return found

    def has_files(self, version: VersionManifest) -> bool:
        """Whether the version's files are still there: the first that pruning deletes is."""
        try:
            self.store.size(f"{data_folder(version.data)}/{MANIFEST}")
        except FileNotFoundError:
            return False
        return True

    def days(self, head: VersionManifest) -> dict[str, VersionManifest]:
        """The complete versions that `head` builds on, and itself, by the last day each was trained on."""
        found: dict[str, VersionManifest] = {}
        for version in self.line(head):
            if version.complete:
                found.setdefault(version.context.data_days[-1], version)
        return found

    def _refuse_pruned(self, below: VersionManifest, version: VersionManifest, base: BaseManifest | None) -> None:
        """What was marked before somebody built on it keeps its files (`stack.checkpoint.retain`)."""
        if below.version not in self.pruned():
            return
        if below is version or (base is None and not self.has_files(below)):
            builds = "" if below is version else f"version {version.version} builds on "
            raise CheckpointError(
                f"{self.store.url}: {builds}version {below.version}, whose files were pruned: "
                "`stack checkpoint list` shows which versions can be restored"
            )

    def _numbered(self, folder: str) -> tuple[int, ...]:
        matches = (_NUMBERED.fullmatch(name) for name in self.store.list(folder))
        return tuple(sorted(int(match[1]) for match in matches if match))


def _runs(version: VersionManifest, table: str) -> tuple[TableEntry, ...]:
    return (version.tables[table],) if table in version.tables else ()


def chain_of(where: Path | str, *, for_writing: bool = False) -> Chain:
    """The chain in a folder, or at an address that fsspec knows."""
    return Chain(open_store(where, for_writing=for_writing))

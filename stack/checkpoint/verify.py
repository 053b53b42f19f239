"""Looks at everything in a chain: which files are missing, changed or too many, and which versions that breaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from stack.base.errors import CheckpointError
from stack.base.files import ASIDE
from stack.checkpoint.chain import Chain
from stack.checkpoint.deep import deep_findings
from stack.checkpoint.leases import held
from stack.checkpoint.load import check_file, open_version
from stack.checkpoint.manifest import (
    MANIFEST,
    BaseManifest,
    FileEntry,
    VersionManifest,
    base_name,
    data_folder,
    decode_manifest,
    manifest_name,
    pruned_name,
)
from stack.checkpoint.read_all import Seen, read_all

_KNOWN = re.compile(r"(manifests|bases|pruned)/\d{8}\.json|(leases|quarantine|reports)/[^/]+\.json")


class Kind(Enum):
    """`damage`: what was there is not, or is not what it was. `stray`: what nobody wrote. `leftover`: what a killed
    process left, and `stack checkpoint prune` removes."""

    damage = "damage"
    stray = "stray"
    leftover = "leftover"


class Standing(Enum):
    good = "good"
    damaged = "damaged"
    pruned = "pruned"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`breaks`: the versions that cannot be restored because of it."""

    kind: Kind
    name: str
    what: str
    breaks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """`last_good`: the newest version that can be restored, as it and all that it builds on are what was written."""

    findings: tuple[Finding, ...]
    versions: Mapping[int, Standing]
    last_good: int | None
    num_files: int
    num_bytes: int

    @property
    def damaged(self) -> bool:
        """Whether anything is wrong; what killed processes left is not."""
        return any(finding.kind is not Kind.leftover for finding in self.findings)


def verify(chain: Chain, *, deep: bool = False, progress: Callable[[int], None] = lambda num_bytes: None) -> Report:
    """Reads every file; changes nothing. `deep` also reads what the numbers say: keys in order and none twice, every
    row there, no number that is not finite. `progress` is told of bytes.
    """
    while True:
        before = (chain.pruned(), chain.compacted())
        report = _verify(chain, deep=deep, progress=progress)
        if not report.damaged or before == (chain.pruned(), chain.compacted()):
            return report  # else what is missing may have been pruned meanwhile


def _verify(chain: Chain, *, deep: bool, progress: Callable[[int], None]) -> Report:
    seen = read_all(chain)
    names = set(chain.store.list())
    problems = dict(seen.damage)
    files = _files(seen, names)
    for name, entry in files.items():
        try:
            check_file(chain.store, name, entry)
        except CheckpointError as error:
            problems[name] = str(error).removeprefix(f"{chain.store.url}/{name} ").removeprefix("is damaged: ")
        progress(entry.num_bytes)
    gone = _vanished_folders(seen, names)
    problems = {name: what for name, what in problems.items() if not name.startswith(tuple(gone))} | gone
    if deep:
        for one, parent in _sound(seen, problems, names):
            for name, what in deep_findings(chain.store, one, parent):
                problems.setdefault(name, what)
    needs = {number: _needs(seen, number, names) for number in seen.numbers if number not in seen.pruned}
    for number, needed in needs.items():
        for below in seen.pruned:
            if pruned_name(below) in needed:
                what = f"marks version {below}, on which version {number} builds and for which no compaction stands"
                problems.setdefault(pruned_name(below), what)
    findings = [Finding(kind=Kind.damage, name=name, what=what) for name, what in problems.items()]
    broken = {number for number, needed in needs.items() if any(_hits(name, needed) for name in problems)}
    standings = {
        number: Standing.pruned if number in seen.pruned else (Standing.damaged if number in broken else Standing.good)
        for number in seen.numbers
    }
    breaking = [
        replace(one, breaks=tuple(number for number, needed in needs.items() if _hits(one.name, needed)))
        for one in findings
    ]
    return Report(
        findings=(*breaking, *_unknown(chain, seen, names, files)),
        versions=standings,
        last_good=max((number for number, one in standings.items() if one is Standing.good), default=None),
        num_files=len(files),
        num_bytes=sum(entry.num_bytes for entry in files.values()),
    )


def last_good(chain: Chain, before: int) -> VersionManifest | None:
    """The newest version before `before` that can be restored, of those that it builds on; where its own manifest is
    damaged and says nothing, of all before it. Reads every file of each that it tries."""
    number = _below(chain, before)
    while number is not None:
        try:
            found = chain.manifest(number)
            open_version(chain, found).verify()
        except CheckpointError:  # damaged, or pruned
            number = _below(chain, number)
            continue
        return found
    return None


def _below(chain: Chain, number: int) -> int | None:
    try:
        parent = chain.manifest(number).parent
    except CheckpointError:
        return max((one for one in chain.numbers() if one < number), default=None)
    return None if parent is None else parent.version


def _hits(name: str, needed: set[str]) -> bool:
    """A name that ends in '/' is a folder."""
    return name in needed or (name.endswith("/") and any(one.startswith(name) for one in needed))


def _holders(seen: Seen) -> list[tuple[VersionManifest | BaseManifest, str, bool]]:
    """All that have files: the manifest, its name, whether its files may be gone."""
    versions = [(one, manifest_name(number), number in seen.pruned) for number, one in seen.versions.items()]
    return [*versions, *((one, base_name(number), False) for number, one in seen.bases.items())]


def _files(seen: Seen, names: set[str]) -> dict[str, FileEntry]:
    """Every file that should be there, the manifests staged in data folders too."""
    files: dict[str, FileEntry] = {}
    for one, name, may_be_gone in _holders(seen):
        folder = data_folder(one.data)
        if not may_be_gone or f"{folder}/{MANIFEST}" in names:
            files |= {f"{folder}/{file}": entry for file, entry in one.files.items()}
            files[f"{folder}/{MANIFEST}"] = seen.entries[name]
    return files


def _vanished_folders(seen: Seen, names: set[str]) -> dict[str, str]:
    """Folders of which nothing is left, though their version was not pruned; by name with a '/'."""
    folders = {"/".join(name.split("/")[:2]) for name in names}
    return {
        f"{data_folder(one.data)}/": f"is gone, but {name} was not marked as pruned"
        for one, name, may_be_gone in _holders(seen)
        if not may_be_gone and data_folder(one.data) not in folders
    }


def _sound(
    seen: Seen, problems: Mapping[str, str], names: set[str]
) -> Iterator[tuple[VersionManifest | BaseManifest, VersionManifest | None]]:
    """What has all its files, and the parents of versions."""
    for one, _, _ in _holders(seen):
        files = {f"{data_folder(one.data)}/{file}" for file in (*one.files, MANIFEST)}
        if files <= names and not files & problems.keys():
            parent = one.parent if isinstance(one, VersionManifest) else None
            yield one, None if parent is None else seen.versions.get(parent.version)


def _needs(seen: Seen, number: int, names: set[str]) -> set[str]:
    """All that restoring a version reads, manifests and all; as `Chain.layers` walks. Where it ends at a version that
    has no files any more, that one's mark."""
    needed, own = {manifest_name(number)}, seen.versions.get(number)
    if own is None:
        return needed
    needed |= {f"{data_folder(own.data)}/{file}" for file in own.files}
    open_tables = set(own.tables)
    below: VersionManifest | None = own
    while open_tables and below is not None:
        needed.add(manifest_name(below.version))
        if below.version in seen.compacted:
            needed.add(base_name(below.version))
            base = seen.bases.get(below.version)
            return needed | ({f"{data_folder(base.data)}/{file}" for file in base.files} if base else set())
        if below.version in seen.pruned and f"{data_folder(below.data)}/{MANIFEST}" not in names:
            return needed | {pruned_name(below.version)}
        for table in sorted(open_tables & below.tables.keys()):
            entry = below.tables[table]
            parts = {part.file for part in entry.parts}
            mine = {file for file in below.files if file in parts or file.startswith(f"ids/{table}/")}
            needed |= {f"{data_folder(below.data)}/{file}" for file in mine}
            open_tables -= {table} if entry.whole else set()
        if open_tables and below.parent is not None:
            needed.add(manifest_name(below.parent.version))
        below = None if below.parent is None else seen.versions.get(below.parent.version)
    return needed


def _unknown(chain: Chain, seen: Seen, names: set[str], files: Mapping[str, FileEntry]) -> Iterator[Finding]:
    """What no manifest names: of folders that nobody has, one finding each."""
    versions = [chain.manifest(number) for number in chain.numbers() if number > len(seen.numbers)]  # came meanwhile
    owned = {one.data for one, _, _ in _holders(seen)}
    alive = {one.data for one in versions} | {lease.data for lease in held(chain.store)}
    pruned = {seen.versions[number].data for number in seen.pruned if number in seen.versions}
    doubt = "; one of the damaged manifests may name it" if len(seen.versions) < len(seen.numbers) else ""
    folders = set()
    for name in sorted(names - files.keys()):
        top, _, rest = name.partition("/")
        folder = rest.partition("/")[0]
        if top.startswith(ASIDE):
            folders.add((top, "was set aside by a sweep or a trial that was killed"))
        elif top == "data" and folder in pruned and f"data/{folder}/{MANIFEST}" not in names:
            folders.add((f"data/{folder}", "is left of a pruned version"))
        elif top == "data" and folder not in owned and folder != rest:
            what = f"is in no manifest{_staged(chain, folder)}{doubt}"
            folders |= set() if folder in alive else {(f"data/{folder}", what)}
        elif not _KNOWN.fullmatch(name):
            yield Finding(kind=Kind.stray, name=name, what="is in no manifest")
    yield from (Finding(kind=Kind.leftover, name=name, what=what) for name, what in sorted(folders))


def _staged(chain: Chain, folder: str) -> str:
    """What a folder would be, had it been published; or is, if its manifest was deleted."""
    name = f"{data_folder(folder)}/{MANIFEST}"
    try:
        data = chain.store.read(name)
        if b'"of":' in data:
            return f"; it holds a compaction of version {decode_manifest(data, BaseManifest, name=name).of.version}"
        return f"; it holds a version {decode_manifest(data, VersionManifest, name=name).version}"
    except (FileNotFoundError, CheckpointError):
        return ""

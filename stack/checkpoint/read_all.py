"""All manifests of a chain, and what is wrong with them: for those who must look at chains that are damaged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypeVar

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain
from stack.checkpoint.manifest import (
    BaseManifest,
    FileEntry,
    Link,
    VersionManifest,
    base_name,
    decode_manifest,
    manifest_name,
    pruned_name,
)

M = TypeVar("M", VersionManifest, BaseManifest)


@dataclass(kw_only=True)
class Seen:
    """`numbers`: of versions from 1 to the newest, those whose manifest is missing or damaged too. `entries`: by name,
    size and digest of the manifest files. `damage`: by name, what is wrong."""

    numbers: tuple[int, ...]
    compacted: tuple[int, ...]
    pruned: frozenset[int]
    versions: dict[int, VersionManifest] = field(default_factory=dict)
    bases: dict[int, BaseManifest] = field(default_factory=dict)
    entries: dict[str, FileEntry] = field(default_factory=dict)
    damage: dict[str, str] = field(default_factory=dict)

    def wrong(self, name: str, what: str) -> None:
        self.damage.setdefault(name, what)


def read_all(chain: Chain) -> Seen:
    """Reads manifests, compactions and marks, and how they refer to each other."""
    pruned, compacted = chain.pruned(), chain.compacted()
    newest = max((*chain.numbers(), *pruned, *compacted), default=0)
    seen = Seen(numbers=tuple(range(1, newest + 1)), compacted=compacted, pruned=frozenset(pruned))
    for number in seen.numbers:
        found = _read(chain, seen, manifest_name(number), VersionManifest, number)
        if found is not None:
            seen.versions[number] = found
    for number in compacted:
        base = _read(chain, seen, base_name(number), BaseManifest, number)
        if base is not None:
            seen.bases[number] = base
            _check_link(seen, base.of, by=base_name(number), wanted=number)
    for number in pruned:
        entry = seen.entries.get(manifest_name(number))
        if entry is not None and _entry(chain.store.read(pruned_name(number))) != entry:
            seen.wrong(pruned_name(number), f"is not the same as {manifest_name(number)}")
    for number, version in seen.versions.items():
        # A writer passes over manifests that it finds damaged.
        before = 0 if version.previous is None else version.previous.version
        if before >= number or any(one in seen.versions for one in range(before + 1, number)):
            seen.wrong(manifest_name(number), "does not name the version counted before it")
        for link in (version.previous, version.parent):
            if link is not None:
                _check_link(seen, link, by=manifest_name(number), wanted=None)
        if version.parent is not None and version.parent.version >= number:
            seen.wrong(manifest_name(number), f"builds on version {version.parent.version}, which came later")
    return seen


def _read(chain: Chain, seen: Seen, name: str, kind: type[M], number: int) -> M | None:
    try:
        data = chain.store.read(name)
    except FileNotFoundError:
        seen.wrong(name, "is missing")
        return None
    seen.entries[name] = _entry(data)
    try:
        found = decode_manifest(data, kind, name=name)
    except CheckpointError as error:
        seen.wrong(name, str(error).removeprefix(f"{name} ").removeprefix("is damaged: "))
        return None
    held = found.version if isinstance(found, VersionManifest) else found.of.version
    if held != number:
        seen.wrong(name, f"holds version {held}")
        return None
    return found


def _entry(data: bytes) -> FileEntry:
    return FileEntry(num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _check_link(seen: Seen, link: Link, *, by: str, wanted: int | None) -> None:
    """What a manifest says of another; where they disagree, the one that was named is not what it was."""
    if wanted is not None and link.version != wanted:
        seen.wrong(by, f"names version {link.version} where version {wanted} should be")
        return
    named = seen.versions.get(link.version)
    if named is not None and named.digest != link.digest:
        seen.wrong(manifest_name(link.version), f"is not the version that {by} was built on")

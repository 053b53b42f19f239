"""What retention needs to know of each version, kept in memory: manifests of large tables are long and never change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stack.checkpoint.chain import Chain
from stack.checkpoint.manifest import BaseManifest, base_name, decode_manifest


@dataclass(frozen=True, kw_only=True)
class Node:
    """A version. `whole`: those of its tables that build on nothing."""

    version: int
    parent: int | None
    complete: bool
    data: str
    num_bytes: int
    tables: frozenset[str]
    whole: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """Where the files of a compaction are."""

    data: str
    num_bytes: int


class Nodes:
    """The versions of a chain as of each call; each manifest is read once."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._known: dict[int, Node] = {}

    def all(self) -> dict[int, Node]:
        """By number, ascending. Raises: `CheckpointError` where a manifest is damaged."""
        for number in self._chain.numbers():
            if number not in self._known:
                self._known[number] = self._read(number)
        return dict(self._known)

    def compactions(self) -> dict[int, Compaction]:
        """By the version; read anew, because one may go and another come. Raises: `CheckpointError`."""
        store, found = self._chain.store, {}
        for number in self._chain.compacted():
            try:
                data = store.read(base_name(number))
            except FileNotFoundError:  # gone meanwhile
                continue
            base = decode_manifest(data, BaseManifest, name=f"{store.url}/{base_name(number)}")
            size = sum(file.num_bytes for file in base.files.values())
            found[number] = Compaction(data=base.data, num_bytes=size)
        return found

    def _read(self, number: int) -> Node:
        manifest = self._chain.manifest(number)
        return Node(
            version=number,
            parent=None if manifest.parent is None else manifest.parent.version,
            complete=manifest.complete,
            data=manifest.data,
            num_bytes=manifest.num_bytes,
            tables=frozenset(manifest.tables),
            whole=frozenset(name for name, table in manifest.tables.items() if table.whole),
        )


def ancestors(known: Mapping[int, Node], version: int) -> Iterator[Node]:
    """A version, its parent, and so on to the first."""
    node = known[version]
    while True:
        yield node
        if node.parent is None:
            return
        node = known[node.parent]

"""From a version that is committed to its rows being served: `stack export export.delta_of=...` as a process of its
own, then the order to a running server.

The version is made: of a copy of a run's chain, so many rows of its tables are moved a little and saved on top of the
version that the package is of. A user's vector is asked for before and after: it must be another one then, and the same
from every worker.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import Checkpoint, open_version
from stack.checkpoint.manifest import Lineage, VersionManifest
from stack.checkpoint.save import ChainWriter, Facts
from stack.checkpoint.snapshot import State
from stack.export.delta import DeltaManifest
from stack.export.package import read_manifest
from stack.export.sealed import read_sealed
from stack.serve.client import Running, ask, running_server
from tools.bench.bodies import Body, recorded_bodies, sized, user_of
from tools.bench.harness import Figure
from tools.bench.serving import GROUP

NUM_ROWS = 100_000
_NUM_WORKERS = 2
_NUM_ASKED = 16
"""Times that a vector is asked for, each over a connection of its own: so that every worker answers some."""
_MOST_SHARE = 0.999
"""Of a table: a table of which all rows changed would be saved whole."""


def measure(run: Path, package: Path, *, num_rounds: int, num_rows: int = NUM_ROWS) -> list[Figure]:
    """Raises `AssertionError` where the delta does not hold what was saved, or a worker serves the rows of before."""
    found: dict[str, list[float]] = {}
    for _ in range(num_rounds):
        with _copied(run, package) as (own_run, own_package):
            for name, value in _once(own_run, own_package, num_rows).items():
                found.setdefault(name, []).append(value)
    return [
        Figure(name=name, unit="" if name.endswith("rows") else "s", values=tuple(values))
        for name, values in found.items()
    ]  # fmt: skip


@contextmanager
def _copied(run: Path, package: Path) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=".bench-") as name:
        own = Path(name) / run.name
        shutil.copytree(run, own, ignore=shutil.ignore_patterns("package*", "curves", "plots"))
        shutil.copytree(package, own / "packages" / "base")
        yield own, own / "packages" / "base"


def _once(run: Path, package: Path, num_rows: int) -> dict[str, float]:
    chain = chain_of(run / "checkpoints", for_writing=True)
    base = chain.manifest(read_manifest(package).lineage.version)
    user = user_of(sized(recorded_bodies(package, GROUP)[0]))
    with running_server(package, options=[f"serve.workers={_NUM_WORKERS}"]) as server:
        before = _vectors(server, user)
        moved = _save_moved(chain, base, num_rows)
        committed = time.monotonic()
        delta = package.parent / "next.delta"
        subprocess.run(
            [
                sys.executable, "-m", "stack", "export", f"run.name={run.name}", f"run.dir={run.parent}",
                f"export.delta_of={package}", f"export.out={delta}",
            ],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        exported = time.monotonic()
        told = server.order("/admin/deltas", {"delta": delta.name})
        served = time.monotonic()
        after = _vectors(server, user)
    assert len(before) == len(after) == 1, "workers answer with different vectors"
    assert before != after, "the vector of a user is the one of before: newer rows are not served"
    assert told["versions"][0]["deltas"] == [delta.name], told
    written = sum(table.num_rows for table in read_sealed(delta, DeltaManifest).tables.values())
    assert written >= 0.95 * moved, (written, moved)  # but for rows that no id has
    return {
        "a committed version to its rows being served: rows": float(written),
        "a committed version to its rows being served": served - committed,
        "of that, exporting the delta": exported - committed,
        "of that, checking, loading and trying it": served - exported,
    }


def _vectors(server: Running, user: Body) -> set[tuple[float, ...]]:
    """Those that a user is answered with."""
    return {tuple(ask(server.address, "/v1/users:embed", user)["vector"]) for _ in range(_NUM_ASKED)}


def _save_moved(chain: Chain, base: VersionManifest, num_rows: int) -> int:
    """Saves a version on top of `base` in which so many rows, or nearly all there are, are others; says how many."""
    checkpoint = open_version(chain, base)
    shards = [checkpoint.table_rows(name, 0, table.num_rows) for name, table in base.tables.items()]
    changed: dict[str, Tensor] = {}
    for shard in sorted(shards, key=lambda one: -one.num_rows):
        row_K = torch.randperm(shard.num_rows)[: min(num_rows, int(_MOST_SHARE * shard.num_rows))].sort().values
        shard.weight_ND[row_K] += 0.001
        changed[shard.name] = row_K
        num_rows -= len(row_K)
    raw = {name: _Raw(checkpoint, name) for name in base.tables if _tells_raw(checkpoint, name)}
    state = State(
        tables=tuple(sorted(base.tables)), shards=shards, dense=checkpoint.dense(), optimizer=checkpoint.optimizer(),
        loop=checkpoint.loop(), changed=changed, raw=raw,
    )  # fmt: skip
    options = CheckpointConfig(asynchronous=False, whole_share=1.0, max_deltas=1000)
    writer = ChainWriter(chain, options=options, parent=base)
    lineage = Lineage(verb="bench", day=base.lineage.day)
    writer.save(state, Facts(step=base.step + 1, complete=True, context=base.context, lineage=lineage))
    writer.wait()
    return sum(len(row_K) for row_K in changed.values())


def _tells_raw(checkpoint: Checkpoint, table: str) -> bool:
    layer = checkpoint.layers[table][0]
    return "raw" in checkpoint.readers[table].file(layer, layer.entry.parts[0].file).shapes


class _Raw:
    """The keys of a table's ids, by row."""

    def __init__(self, checkpoint: Checkpoint, table: str) -> None:
        self._key_R = checkpoint.raw_keys(table)

    def __call__(self, row_K: Tensor) -> Tensor:
        return self._key_R[row_K]

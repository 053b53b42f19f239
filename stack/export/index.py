"""The retrieval index of a package: item vectors laid out so that the best by inner product with a user are found fast.

    index.faiss    faiss: all vectors (exact), or those and a graph over them (HNSW)
    keys.npy       int64, position in the index -> key of the item
    index.json     IndexReport: what it is, how much of the exact answer it finds, sizes and digests; written last

Up to `exact_up_to` items every score is computed. Above, a graph of near items is walked (HNSW, Malkov and Yashunin
2018). What is near is a choice where norms differ: the inner product itself (Morozov and Babenko 2018, ip-NSW), or the
distance of vectors with one more coordinate, sqrt(M^2 - |x|^2), which gives all of them the norm M and is 0 for users,
so that scores stay what they are (Bachrach et al. 2014). Neither is better everywhere. Recall at 100 with 256 in sight:

    items                                                            inner product    one more coordinate
    45,387 products, trained towers, norms 2 to 13                   0.74             0.999
    30,000 of rank 12 and a direction that all users share           0.54             1.000
    30,000 in 300 groups, log-normal norms                           0.94             0.64
    30,000 normal, log-normal norms, users unlike items              0.98             0.10

So both are built and the one that finds more is kept, unless norms are equal: then they are the same.

Legend: N items, B users, Q check queries, K items found, V width of the vectors.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from stack.base.errors import PackageError, UserError
from stack.base.files import sha256_of

INDEX, KEYS, REPORT = "index.faiss", "keys.npy", "index.json"
MAX_FOUND = 1000
"""Most items that one search gives."""
NUM_CHECK = 1000
"""Users with whose vectors the recall of a graph is measured."""
NUM_NEIGHBOURS = 32
"""Links of an item in the graph, twice as many on its lowest level; faiss calls it M."""
NO_KEY = 0
"""Where the graph led to fewer items than were asked for; the score there is -inf. As of any table: unknown."""
_ROUNDING = 1e-5
"""By which share of the best score sums in another order may differ, and of the largest norm those of equal vectors."""
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class IndexKind(enum.Enum):
    """How an index finds."""

    EXACT = "exact"
    HNSW = "hnsw"


class IndexReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """About an index. `ef_search`: items kept in sight while the graph is walked, 0 where it is exact. `augmented`:
    vectors in the file have the coordinate that makes their norms equal.

    `recall_at_*`: share of the exact best 10 and 100 that are found, a mean over `num_queries`; 1 of an exact index,
    None of a graph that was given no queries. `num_bytes` and `sha256`: of both files together, and of each by name.
    """

    kind: IndexKind
    num_items: int
    dim: int
    ef_search: int
    augmented: bool
    num_queries: int
    recall_at_10: float | None
    recall_at_100: float | None
    build_seconds: float
    num_bytes: int
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class _Built:
    """An index in memory and how much it finds."""

    index: faiss.Index
    augmented: bool = False
    recall_at_10: float | None = 1.0
    recall_at_100: float | None = 1.0


def build_index(
    folder: Path,
    *,
    vectors: Iterable[tuple[Ints, Floats]],
    num_items: int,
    dim: int,
    exact_up_to: int = 100_000,
    num_check: int = NUM_CHECK,
    queries: Floats | None = None,
    ef_construction: int = 200,
    ef_search: int = 256,
    num_threads: int = 0,
) -> IndexReport:
    """Writes the index of the items in `vectors`, parts of (keys_N, vector_NV), into `folder` and reports on it.

    `queries`: user vectors (Q, V), of which the first `num_check` are asked; without them nothing tells which graph is
    better, and the one with the further coordinate is taken. `num_threads`: 0 takes all cores; with more than one, a
    graph differs a little from build to build. Memory: up to four times the vectors, twice where the index is exact.

    Raises: `PackageError` for no items, a number that is not finite or a key given twice; `ValueError` where the parts
    are not `num_items` vectors of width `dim`.
    """
    start = time.monotonic()
    key_N, vector_NV = _gather(vectors, num_items, dim)
    asked_QV = None if queries is None or not len(queries) else _as_vectors(queries[:num_check], dim)
    exact = num_items <= exact_up_to
    with _threads(num_threads or os.cpu_count() or 1):
        built = _exact(vector_NV) if exact else _better_graph(vector_NV, asked_QV, ef_construction, ef_search)
    seconds = time.monotonic() - start
    folder.mkdir(parents=True, exist_ok=True)
    faiss.write_index(built.index, str(folder / INDEX))
    np.save(folder / KEYS, key_N, allow_pickle=False)
    report = IndexReport(
        kind=IndexKind.EXACT if exact else IndexKind.HNSW,
        num_items=num_items,
        dim=dim,
        ef_search=0 if exact else ef_search,
        augmented=built.augmented,
        num_queries=0 if asked_QV is None else len(asked_QV),
        recall_at_10=built.recall_at_10,
        recall_at_100=built.recall_at_100,
        build_seconds=seconds,
        num_bytes=sum((folder / name).stat().st_size for name in (INDEX, KEYS)),
        sha256={name: sha256_of(folder / name) for name in (INDEX, KEYS)},
    )
    (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    return report


class Index:
    """An index on disk, safe to ask from several threads. Vectors are memory-mapped; the links of a graph are read."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        """`verify` compares digests; without, only sizes: for who has just opened the whole package.

        Raises: `PackageError` where a file is missing or damaged, or the files do not belong together.
        """
        self.report = _read_report(folder / REPORT)
        _check_files(folder, self.report, verify=verify)
        self._key_N = _read_keys(folder / KEYS)
        self._index = _read_index(folder / INDEX)
        found = (self._index.ntotal, self._index.d, len(self._key_N))
        width = self.dim + self.report.augmented
        if found != (self.num_items, width, self.num_items):
            raise PackageError(
                f"{folder} holds an index of {found[0]} vectors of width {found[1]} and {found[2]} keys, its {REPORT} "
                f"names {self.num_items} of width {width}: export the package again"
            )

    @property
    def num_items(self) -> int:
        return self.report.num_items

    @property
    def dim(self) -> int:
        return self.report.dim

    def search(self, vectors_BV: Floats, k: int) -> tuple[Ints, Floats]:
        """(B, K) keys and inner products, best first, K = min(k, num_items), in one thread.

        Raises: `UserError` for a `k` outside 1 to `MAX_FOUND`, or vectors of another width.
        """
        if not 1 <= k <= MAX_FOUND:
            raise UserError(f"{k} items are asked for: an index gives 1 to {MAX_FOUND}")
        asked_BV = _as_vectors(vectors_BV, self.dim)
        with _threads(1):
            score_BK, place_BK = _search(self._index, asked_BV, min(k, self.num_items))
        return np.where(place_BK < 0, NO_KEY, self._key_N[place_BK]), score_BK


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """faiss with this many threads. OpenMP keeps the number for each calling thread, so once for all is not enough."""
    before: int = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _as_vectors(vectors: Floats, dim: int) -> Floats:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise UserError(f"vectors have the shape {vectors.shape}: the index takes (any number, {dim})")
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _gather(vectors: Iterable[tuple[Ints, Floats]], num_items: int, dim: int) -> tuple[Ints, Floats]:
    """All parts in one piece, in their order."""
    if not num_items:
        raise PackageError("there is no item to retrieve, and an index needs 1 or more: train on a log that has items")
    key_N, vector_NV = np.empty(num_items, dtype=np.int64), np.empty((num_items, dim), dtype=np.float32)
    end = 0
    for part_key_N, part_NV in vectors:
        start, end = end, end + len(part_key_N)
        if end > num_items or part_NV.shape != (len(part_key_N), dim):
            raise ValueError(f"vectors of shape {part_NV.shape} behind {start} others, of {num_items} of width {dim}")
        key_N[start:end], vector_NV[start:end] = part_key_N, part_NV
    if end != num_items:
        raise ValueError(f"{end} vectors were given for an index of {num_items}")
    if not np.isfinite(vector_NV).all():
        raise PackageError("vectors of items hold NaN or infinity: export a checkpoint from before training diverged")
    if len(np.unique(key_N)) != num_items:
        raise PackageError("an item is in the index more than once: give each key one vector")
    return key_N, vector_NV


def _search(index: faiss.Index, asked_BV: Floats, k: int) -> tuple[Floats, Ints]:
    """(B, K) scores and positions; -inf and -1 where the graph led to fewer."""
    missing = index.d - asked_BV.shape[1]
    score_BK, place_BK = index.search(np.pad(asked_BV, ((0, 0), (0, missing))) if missing else asked_BV, k)
    return np.where(place_BK < 0, np.float32(-np.inf), score_BK), place_BK


def _exact(vector_NV: Floats) -> _Built:
    index = faiss.IndexFlatIP(vector_NV.shape[1])
    index.add(vector_NV)
    return _Built(index=index)


def _better_graph(vector_NV: Floats, asked_QV: Floats | None, ef_construction: int, ef_search: int) -> _Built:
    """The graph with the better recall at 100; where norms are equal or nothing is asked, only one is built."""
    norm_N = np.linalg.norm(vector_NV, axis=1)
    if float(norm_N.max() - norm_N.min()) <= _ROUNDING * float(norm_N.max()):
        graphs = {False: _graph(vector_NV, ef_construction, ef_search)}
    else:
        graphs = {True: _graph(_with_equal_norms(vector_NV, norm_N), ef_construction, ef_search)}
        if asked_QV is not None:
            graphs[False] = _graph(vector_NV, ef_construction, ef_search)
    if asked_QV is None:
        return next(
            _Built(index=graph, augmented=augmented, recall_at_10=None, recall_at_100=None)
            for augmented, graph in graphs.items()
        )
    exact_QK, _ = faiss.knn(asked_QV, vector_NV, min(100, len(vector_NV)), metric=faiss.METRIC_INNER_PRODUCT)
    built = [_measured(graph, augmented, asked_QV, exact_QK) for augmented, graph in graphs.items()]
    return max(built, key=lambda one: one.recall_at_100 or 0.0)


def _with_equal_norms(vector_NV: Floats, norm_N: Floats) -> Floats:
    more_N = np.sqrt(np.maximum(norm_N.max() ** 2 - norm_N**2, 0))
    return np.column_stack([vector_NV, more_N]).astype(np.float32)


def _graph(vector_NV: Floats, ef_construction: int, ef_search: int) -> faiss.IndexHNSWFlat:
    index = faiss.IndexHNSWFlat(vector_NV.shape[1], NUM_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = ef_construction
    index.hnsw.efSearch = ef_search
    index.add(vector_NV)
    return index


def _measured(index: faiss.Index, augmented: bool, asked_QV: Floats, exact_QK: Floats) -> _Built:
    """The index with its recall at 10 and at 100 (or at all items where there are fewer). `exact_QK`: the best scores
    there are."""
    found_QK, _ = _search(index, asked_QV, exact_QK.shape[1])
    at_10, at_100 = (recall(found_QK, exact_QK, k) for k in (10, 100))
    return _Built(index=index, augmented=augmented, recall_at_10=at_10, recall_at_100=at_100)


def recall(found_QK: Floats, exact_QK: Floats, k: int) -> float:
    """Share of the first `k` found whose score reaches the k-th best: of items with equal scores either will do."""
    k = min(k, exact_QK.shape[1])
    enough_Q1 = exact_QK[:, k - 1 : k] - _ROUNDING * np.abs(exact_QK[:, :1])
    return float((found_QK[:, :k] >= enough_Q1).mean())


def _read_report(file: Path) -> IndexReport:
    try:
        return msgspec.json.decode(file.read_bytes(), type=IndexReport)
    except (OSError, msgspec.DecodeError) as error:
        raise PackageError(f"{file} is not the report of an index ({error}): export the package again") from error


def _check_files(folder: Path, report: IndexReport, *, verify: bool) -> None:
    files = [folder / INDEX, folder / KEYS]
    if missing := [file for file in files if not file.is_file()]:
        raise PackageError(f"{missing[0]} is missing: export the package again")
    num_bytes = sum(file.stat().st_size for file in files)
    if num_bytes != report.num_bytes:
        raise PackageError(
            f"{folder / INDEX} and {KEYS} have {num_bytes} bytes, {REPORT} names {report.num_bytes}: they are damaged, "
            "export the package again"
        )
    for file in files if verify else ():
        if sha256_of(file) != report.sha256.get(file.name):
            raise PackageError(f"{file} is damaged, it differs from its digest: export the package again")


def _read_keys(file: Path) -> Ints:
    try:
        key_N: Ints = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PackageError(f"{file} is damaged ({error}): export the package again") from error
    if key_N.dtype != np.int64 or key_N.ndim != 1:
        raise PackageError(
            f"{file} holds {key_N.dtype} of shape {key_N.shape}, not a list of int64: export the package again"
        )
    return key_N


def _read_index(file: Path) -> faiss.Index:
    """`IO_FLAG_MMAP_IFC` maps vectors; the older `IO_FLAG_MMAP` reads them into memory all the same (faiss 1.15)."""
    try:
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise PackageError(f"{file} is damaged, faiss cannot read it: export the package again") from error

"""The retrieval index: exact is brute force, a graph finds nearly as much, what is written is what is read."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import faiss
import msgspec
import numpy as np
import pytest

from stack.base.errors import PackageError, UserError
from stack.export.index import INDEX, KEYS, REPORT, Index, IndexKind, IndexReport, build_index, recall

DIM = 24
Part = tuple[np.ndarray, np.ndarray]


def _items(num_items: int, seed: int = 0) -> Part:
    """Keys in no order, some negative; vectors in groups, with norms that spread by a factor of ten."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((40, DIM))[rng.integers(0, 40, num_items)]
    vector_NV = (centre + 0.5 * rng.standard_normal((num_items, DIM))) * np.exp(0.5 * rng.standard_normal(num_items))[
        :, None
    ]
    key_N = rng.permutation(num_items) * 7919 - 2**40
    return key_N.astype(np.int64), vector_NV.astype(np.float32)


def _queries(count: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, DIM)) + 0.5).astype(np.float32)


def _parts(items: Part, size: int) -> Iterator[Part]:
    for first in range(0, len(items[0]), size):
        yield items[0][first : first + size], items[1][first : first + size]


def _build(folder: Path, items: Part, *, queries: np.ndarray | None = None, exact_up_to: int = 10**6) -> IndexReport:
    return build_index(
        folder, vectors=_parts(items, 300), num_items=len(items[0]), dim=DIM, queries=queries,
        exact_up_to=exact_up_to, num_threads=1,
    )  # fmt: skip


def _best(items: Part, queries_BV: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and scores of the best, by sorting all scores in float64."""
    score_BN = queries_BV.astype(np.float64) @ items[1].T.astype(np.float64)
    order_BK = np.argsort(-score_BN, axis=1, kind="stable")[:, :k]
    return items[0][order_BK], np.take_along_axis(score_BN, order_BK, axis=1)


@pytest.mark.parametrize("num_queries", [1, 7, 50], ids=lambda n: f"{n} queries")
def test_an_exact_index_gives_the_keys_and_scores_of_brute_force(num_queries: int, tmp_path: Path) -> None:
    items, queries = _items(1000), _queries(num_queries)
    report = _build(tmp_path, items, queries=queries)
    assert (report.kind, report.ef_search, report.recall_at_10, report.recall_at_100) == (IndexKind.EXACT, 0, 1.0, 1.0)
    keys_BK, scores_BK = Index(tmp_path).search(queries, 20)
    expected_keys_BK, expected_BK = _best(items, queries, 20)
    np.testing.assert_array_equal(keys_BK, expected_keys_BK)
    np.testing.assert_allclose(scores_BK, expected_BK, rtol=1e-4, atol=1e-4)
    assert (keys_BK.dtype, scores_BK.dtype) == (np.int64, np.float32)


def test_items_with_equal_vectors_are_all_found_and_count_for_each_other(tmp_path: Path) -> None:
    """Items that were never seen share the default row: a hundred equal vectors, here the best ones of all."""
    keys, vectors = _items(400)
    query = np.ones((1, DIM), dtype=np.float32)
    vectors[100:200] = 10.0
    report = _build(tmp_path, (keys, vectors), queries=query)
    keys_BK, scores_BK = Index(tmp_path).search(query, 100)
    assert set(keys_BK[0]) == set(keys[100:200])
    assert set(scores_BK[0]) == {240.0}
    assert report.recall_at_10 == 1.0
    exact = np.array([[3.0, 2.0, 2.0, 2.0]], dtype=np.float32)
    assert recall(np.array([[3.0, 2.0]], dtype=np.float32), exact, 2) == 1.0
    assert recall(np.array([[2.0, 1.9]], dtype=np.float32), exact, 2) == 0.5
    assert recall(np.array([[3.0, -np.inf]], dtype=np.float32), exact, 2) == 0.5


def test_a_graph_finds_nearly_all_of_the_best_with_their_exact_scores(tmp_path: Path) -> None:
    items, queries = _items(5000), _queries(200)
    report = _build(tmp_path, items, queries=queries, exact_up_to=4999)
    assert (report.kind, report.num_queries) == (IndexKind.HNSW, 200)
    keys_BK, scores_BK = Index(tmp_path).search(queries, 100)
    expected_keys_BK, _ = _best(items, queries, 100)
    for k, reported in ((10, report.recall_at_10), (100, report.recall_at_100)):
        found = np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(keys_BK, expected_keys_BK, strict=True)])
        assert found >= 0.95
        assert reported == pytest.approx(found, abs=1e-3)
    place = {key: place for place, key in enumerate(items[0].tolist())}
    for query, keys, scores in zip(queries, keys_BK, scores_BK, strict=True):
        own = items[1][[place[key] for key in keys.tolist()]] @ query
        np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-4)
        assert (np.diff(scores) <= 0).all()


def test_the_report_tells_a_graph_that_finds_little(tmp_path: Path) -> None:
    items, queries = _items(5000), _queries(100)
    report = build_index(
        tmp_path, vectors=[items], num_items=5000, dim=DIM, exact_up_to=0, queries=queries, ef_construction=4,
        ef_search=1, num_check=30, num_threads=1,
    )  # fmt: skip
    assert report.num_queries == 30
    assert report.recall_at_10 is not None
    assert report.recall_at_10 < 0.95


def test_a_graph_without_queries_has_no_recall_and_its_effort_is_kept_in_the_file(tmp_path: Path) -> None:
    report = _build(tmp_path, _items(500), exact_up_to=100)
    assert (report.recall_at_10, report.recall_at_100, report.num_queries) == (None, None, 0)
    assert faiss.read_index(str(tmp_path / INDEX)).hnsw.efSearch == report.ef_search == 256


@pytest.mark.parametrize("exact_up_to", [100, 1000], ids=["graph", "exact"])
def test_what_is_opened_is_what_was_reported_and_answers_the_same_each_time(exact_up_to: int, tmp_path: Path) -> None:
    report = _build(tmp_path, _items(500), queries=_queries(5), exact_up_to=exact_up_to)
    first, second = Index(tmp_path), Index(tmp_path, verify=False)
    assert first.report == second.report == report
    assert (first.num_items, first.dim) == (500, DIM)
    assert report.num_bytes == sum((tmp_path / name).stat().st_size for name in (INDEX, KEYS))
    for one, other in zip(first.search(_queries(9), 50), second.search(_queries(9), 50), strict=True):
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([INDEX, KEYS, REPORT])


def test_a_small_index_gives_all_it_has_and_k_is_bounded(tmp_path: Path) -> None:
    _build(tmp_path, _items(3))
    index = Index(tmp_path)
    assert index.search(_queries(2), 1000)[0].shape == (2, 3)
    assert index.search(_queries(0), 5)[0].shape == (0, 3)
    for k in (0, -1, 1001):
        with pytest.raises(UserError, match=rf"^{k} items are asked for: an index gives 1 to 1000$"):
            index.search(_queries(1), k)
    with pytest.raises(UserError, match=r"^vectors have the shape \(2, 23\): the index takes \(any number, 24\)$"):
        index.search(_queries(2)[:, 1:], 5)


def test_a_search_uses_one_thread_and_leaves_the_callers_number_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a thread of a pool, which has a number of its own."""
    _build(tmp_path, _items(50))
    index, seen = Index(tmp_path), []
    before, found = faiss.omp_get_max_threads(), index.search(_queries(2), 5)

    class Spy:
        d = DIM

        def search(self, asked_BV: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            seen.append(faiss.omp_get_max_threads())
            return np.ones((len(asked_BV), k), dtype=np.float32), np.zeros((len(asked_BV), k), dtype=np.int64)

    monkeypatch.setattr(index, "_index", Spy())
    thread = threading.Thread(target=index.search, args=(_queries(2), 5))
    thread.start()
    thread.join()
    assert index.search(_queries(2), 5)[0].shape == found[0].shape
    assert seen == [1, 1]
    assert faiss.omp_get_max_threads() == before


def _of_low_rank(num_items: int) -> tuple[Part, np.ndarray]:
    """Items and users as a trained model has them: few directions, and one that all users share (popularity)."""
    rng = np.random.default_rng(2)
    basis, shared = rng.standard_normal((6, DIM)) / 2, rng.standard_normal(DIM)
    vector_NV = rng.standard_normal((num_items, 6)) @ basis + rng.exponential(1, (num_items, 1)) * shared
    queries = rng.standard_normal((200, 6)) @ basis + shared
    return (np.arange(num_items), vector_NV.astype(np.float32)), queries.astype(np.float32)


def test_of_both_graphs_the_one_that_finds_more_is_kept_and_scores_stay_inner_products(tmp_path: Path) -> None:
    (keys, vectors), queries = _of_low_rank(5000)
    unlike = np.random.default_rng(3).standard_normal((200, DIM)).astype(np.float32)
    equal = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for name, part, asked, augmented in (
        ("low rank", vectors, queries, True), ("unlike", _items(5000)[1], unlike, False),
        ("equal norms", equal, queries, False), ("nothing asked", vectors, None, True),
    ):  # fmt: skip
        report = _build(tmp_path / name, (keys, part), queries=asked, exact_up_to=100)
        assert report.augmented == augmented, name
        assert asked is None or (report.recall_at_100 or 0) > 0.95, name
        found_BK, scores_BK = Index(tmp_path / name).search(queries[:20], 10)
        own_BK = np.einsum("bv,bkv->bk", queries[:20], part[found_BK])
        np.testing.assert_allclose(scores_BK, own_BK, rtol=1e-4, atol=1e-4, err_msg=name)


def _flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    _build(folder, _items(500), exact_up_to=100)
    return folder


def _refused(folder: Path, match: str, *, verify: bool = True) -> None:
    with pytest.raises(PackageError, match=match) as caught:
        Index(folder, verify=verify)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_damage_is_refused_in_one_line_that_names_the_file(graph: Path, tmp_path: Path) -> None:
    for case, name in enumerate((INDEX, KEYS)):
        size = (graph / name).stat().st_size
        for place in (0, 30, size // 2, size - 1):
            folder = shutil.copytree(graph, tmp_path / f"{case}-{place}")
            _flip(folder / name, place)
            _refused(folder, rf"{name} is damaged, it differs from its digest: export the package again$")
        cut = shutil.copytree(graph, tmp_path / f"{case}-cut")
        (cut / name).write_bytes((graph / name).read_bytes()[: size // 2])
        _refused(cut, "they are damaged, export the package again$", verify=False)
        (cut / name).unlink()
        _refused(cut, rf"{name} is missing: export the package again$", verify=False)


def test_files_that_faiss_and_numpy_cannot_read_are_refused_also_without_digests(graph: Path, tmp_path: Path) -> None:
    for name, match in ((INDEX, "is damaged, faiss cannot read it"), (KEYS, "is damaged")):
        folder = shutil.copytree(graph, tmp_path / name)
        _flip(folder / name, 0)
        _refused(folder, match, verify=False)


def test_files_that_do_not_belong_together_are_refused(graph: Path, tmp_path: Path) -> None:
    report = msgspec.json.decode((graph / REPORT).read_bytes(), type=IndexReport)
    for change in ({"num_items": 501}, {"dim": DIM + 1}):
        other = msgspec.structs.replace(report, **change)
        folder = shutil.copytree(graph, tmp_path / str(change))
        (folder / REPORT).write_bytes(msgspec.json.encode(other))
        _refused(folder, "holds an index of 500 vectors of width 25 and 500 keys")
    (folder / REPORT).write_bytes(b'{"kind": "exact", "more": 1}')
    _refused(folder, r"index\.json is not the report of an index")
    (folder / REPORT).unlink()
    _refused(folder, r"index\.json is not the report of an index")


def test_what_cannot_be_an_index_is_not_built(tmp_path: Path) -> None:
    keys, vectors = _items(10)
    cases = [
        ((keys[:0], vectors[:0]), 0, PackageError, "there is no item to retrieve"),
        ((keys, np.where(np.arange(DIM) == 3, np.nan, vectors)), 10, PackageError, "hold NaN or infinity"),
        ((np.zeros(10, dtype=np.int64), vectors), 10, PackageError, "an item is in the index more than once"),
        ((keys, vectors), 11, ValueError, "10 vectors were given for an index of 11"),
        ((keys, vectors), 9, ValueError, "behind 0 others, of 9 of width 24"),
        ((keys, vectors[:, :5]), 10, ValueError, r"vectors of shape \(10, 5\)"),
    ]
    for part, num_items, error, match in cases:
        with pytest.raises(error, match=match):
            build_index(tmp_path / "new", vectors=[part], num_items=num_items, dim=DIM)
    assert not (tmp_path / "new").exists()

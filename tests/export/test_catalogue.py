"""The index of a package: the items of the last days, by their raw ids, with the vectors that the task scores with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from stack.base.errors import PackageError
from stack.data.batch import Jagged
from stack.data.dataset import Dataset
from stack.data.keys import UNKNOWN_KEY, hash_texts
from stack.data.loader import Loader
from stack.export.catalogue import retriever_of, write_index
from stack.export.export import Trained
from stack.export.index import Index
from stack.export.package import INDEX, TEXTS, USER_HALF, Retrieval, open_package
from stack.export.runner import Rows
from stack.export.runs import MISSING
from stack.export.tables import TrainedIds, TrainedRows, exported_tables
from stack.export.user_half import vector_of
from stack.ids.hashing import HashedRows, HashVariant
from stack.serve.predictor import Predictor
from stack.tasks import NextItemTask
from tests.export.trained import ctr_alone, trained_run
from tests.export.worlds import with_vocabularies
from tests.prepared import FIRST_ITEM, NUM_ROWS, write_prepared

Expected = Callable[..., dict[int, np.ndarray]]


@pytest.fixture(scope="module")
def expected(small: Trained) -> Expected:
    """Vectors by row of the items of some days of the small run; each day is worked out once."""
    of_day = cache(lambda day: vectors_of(small, day))
    return lambda *days: {row: vector for day in days for row, vector in of_day(day).items()}


def vectors_of(trained: Trained, day: str) -> dict[int, np.ndarray]:
    """By row of an item, its vector: of the first example seen, one at a time."""
    head = trained.model.task("next_item")
    assert isinstance(head, NextItemTask)
    features = trained.model.places.candidate["impression"]
    weight = {
        feature.table: trained.checkpoint.table_rows(feature.table, 0, NUM_ROWS[feature.table]).weight_ND
        for feature in features
    }
    found: dict[int, np.ndarray] = {}
    for batch in Loader(trained.dataset, days=[day], global_batch_size=256, shuffle=False, num_prefetch=0):
        examples = batch.groups["impression"]
        items = examples.ids["item"]
        assert not isinstance(items, Jagged)
        for example, item in enumerate(items.tolist()):
            if item in found or item == 0:
                continue
            columns = []
            for feature in features:
                ids = examples.ids[feature.name]
                if isinstance(ids, Jagged):
                    first = int(ids.lengths[:example].sum())
                    mine = ids.values_N[first : first + int(ids.lengths[example])]
                    columns.append(weight[feature.table][mine].mean(0))
                else:
                    columns.append(weight[feature.table][ids[example]])
            with torch.no_grad():
                found[item] = head.item_half(torch.cat(columns)[None])[0].numpy()
    return found


def write(trained: Trained, folder: Path, days: list[str], queries: np.ndarray | None = None) -> Retrieval:
    model, dataset = trained.model, trained.dataset
    tables = exported_tables(
        model.places.tables(), schema=dataset.schema, dataset=dataset, checkpoint=trained.checkpoint, ids=trained.ids
    )
    rows: dict[str, Rows] = {
        name: TrainedRows(tables[name], trained.checkpoint) for name in model.places.tables()
    }  # fmt: skip
    return write_index(
        folder, model, task="next_item", dataset=dataset, days=days, tables=rows,
        keys_of={name: table.keys_of for name, table in tables.items()},
        queries=np.zeros((0, 8), dtype=np.float32) if queries is None else queries, exact_up_to=100_000,
    )  # fmt: skip


def of_index(folder: Path) -> dict[int, np.ndarray]:
    """Vectors by key, each rebuilt from its inner products with the axes."""
    index = Index(folder / INDEX)
    keys, scores = index.search(np.eye(8, dtype=np.float32), index.num_items)
    found: dict[int, np.ndarray] = {int(key): np.zeros(8, dtype=np.float32) for key in keys[0]}
    for axis in range(8):
        for key, score in zip(keys[axis].tolist(), scores[axis], strict=True):
            found[key][axis] = score
    return found


def test_every_item_seen_has_the_vector_of_its_looked_up_features(
    expected: Expected, small: Trained, tmp_path: Path
) -> None:
    """Features of an item that differ from one example to the next are those of the last day it was seen on."""
    days = list(small.dataset.days())
    wanted = expected(*days)
    assert len(wanted) > 150
    described = write(small, tmp_path, days)
    found = of_index(tmp_path)
    keys = {int(hash_texts([f"item-{row}"])[0]): row for row in wanted}
    assert set(found) == set(keys)
    assert described.num_items == len(found)
    for key, row in keys.items():
        np.testing.assert_allclose(found[key], wanted[row], rtol=0, atol=1e-5)


def test_only_items_of_the_days_asked_for_are_in_the_index(expected: Expected, small: Trained, tmp_path: Path) -> None:
    first, second = small.dataset.days()
    seen = {day: set(expected(day)) for day in (first, second)}
    assert seen[second] - seen[first]
    assert write(small, tmp_path, [second]).num_items == len(seen[second])
    assert set(of_index(tmp_path)) == {int(hash_texts([f"item-{row}"])[0]) for row in seen[second]}


def test_the_texts_of_items_lie_in_the_order_of_their_keys(small: Trained, tmp_path: Path) -> None:
    write(small, tmp_path, list(small.dataset.days()))
    keys, texts = np.load(tmp_path / INDEX / "keys.npy"), np.load(tmp_path / INDEX / TEXTS)
    assert texts.dtype.kind == "S"
    assert keys.tolist() == hash_texts([text.decode() for text in texts.tolist()]).tolist()


def test_a_package_of_a_task_that_retrieves_has_an_index_of_the_days_learnt(
    expected: Expected, small: Trained, small_package: Path
) -> None:
    manifest = open_package(small_package)
    retrieval = manifest.retrieval
    assert retrieval is not None
    assert retriever_of(small.model) == retrieval.task == "next_item"
    assert retrieval.output == vector_of("next_item") == "next_item_vector"
    assert retrieval.output in manifest.graphs[USER_HALF].outputs
    assert (retrieval.table, retrieval.dim, retrieval.kind) == ("item", 8, "exact")
    assert (retrieval.recall_at_10, retrieval.recall_at_100) == (1.0, 1.0)
    assert retrieval.num_items == len(expected(small.dataset.days()[0]))


def test_the_best_items_are_those_whose_scores_are_highest(small: Trained, small_package: Path) -> None:
    predictor = Predictor(small_package, open_package(small_package))
    (first, *_) = predictor.recorded()
    assert len(first.vector) == predictor.manifest.vector_dim
    vector_V = np.random.default_rng(0).standard_normal(8).astype(np.float32)
    user = predictor.stored(np.concatenate([np.zeros(predictor.manifest.vector_dim, dtype=np.float32), vector_V]))
    items, scores = predictor.retrieve(user, 7)
    of = {key: float(vector @ vector_V) for key, vector in of_index(small_package).items()}
    best = sorted(of, key=lambda key: -of[key])[:7]
    assert [int(hash_texts([str(item)])[0]) for item in items] == best
    np.testing.assert_allclose(scores, [of[key] for key in best], rtol=1e-5, atol=1e-5)


def test_items_that_share_rows_by_a_hash_are_told_apart_by_their_raw_ids(
    expected: Expected, small: Trained, tmp_path: Path
) -> None:
    """The rows of a package do not tell them apart; the index must."""
    ids = TrainedIds(of_keys={"item": lambda row_N: np.where(row_N == 0, 0, 1 + row_N % 7)})
    write(replace(small, ids=ids), tmp_path, list(small.dataset.days()))
    assert set(of_index(tmp_path)) == {int(hash_texts([f"item-{row}"])[0]) for row in expected(*small.dataset.days())}


def test_whole_numbers_without_a_vocabulary_are_their_own_keys(small: Trained, tmp_path: Path) -> None:
    dataset = Dataset(write_prepared(tmp_path / "raw", num_days=1, num_users=9, raw_ids=True))
    hashed = {"item": HashedRows(num_rows=200, variant=HashVariant.double), "brand": HashedRows(num_rows=20)}
    raw = replace(
        small, dataset=dataset, ids=TrainedIds(of_keys={name: one.rows for name, one in hashed.items()}, raw=hashed)
    )
    write(raw, tmp_path, list(dataset.days()))
    keys = set(of_index(tmp_path))
    assert not (tmp_path / INDEX / TEXTS).exists()
    assert keys
    assert keys <= set(range(FIRST_ITEM + 1, FIRST_ITEM + NUM_ROWS["item"]))
    assert not keys & {UNKNOWN_KEY, MISSING}


@pytest.mark.parametrize("text", ["x" * 257, "a\0b"])
def test_an_item_whose_id_cannot_be_kept_is_refused(
    text: str, expected: Expected, small: Trained, tmp_path: Path
) -> None:
    names = [f"item-{row}" for row in range(1, 200)]
    names[next(iter(expected(*small.dataset.days()))) - 1] = text
    dataset = with_vocabularies(small.dataset.path, tmp_path / "data", {"item": names})
    with pytest.raises(PackageError, match="an id of 'item' is longer than 256 bytes or holds NUL: shorten ids before"):
        write(replace(small, dataset=dataset), tmp_path, list(dataset.days()))


def test_a_model_without_a_retrieving_task_has_no_index(dataset: Dataset, tmp_path: Path) -> None:
    assert retriever_of(trained_run(tmp_path, dataset, tasks=ctr_alone()).model) is None

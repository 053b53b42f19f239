"""The items that a package can retrieve: those seen as candidates on the last days, with the vectors of a task that
scores by inner product (`stack.tasks.next_item`) and the features they had on the last day they were seen.

Legend: E examples, N new items, V width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stack.base.errors import PackageError
from stack.data.batch import Examples
from stack.data.dataset import Dataset
from stack.data.keys import UNKNOWN_KEY
from stack.data.loader import Loader
from stack.data.schema import PADDING_ROW, Feature
from stack.export.index import IndexReport, build_index
from stack.export.lookup import MAX_TEXT_BYTES
from stack.export.moments import KeysOf, candidates_of, taken
from stack.export.package import INDEX, TEXTS, Retrieval
from stack.export.requests import Asker
from stack.export.runner import Bags, Rows
from stack.export.runs import MISSING
from stack.export.user_half import vector_of
from stack.model import UserModel
from stack.tasks import NextItemTask

KeysOfIds = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Items:
    """Distinct items: keys of their raw ids, vectors, and raw ids where those are texts."""

    key_N: NDArray[np.int64]
    vector_NV: NDArray[np.float32]
    texts: list[str]


def retriever_of(model: UserModel) -> str | None:
    """The task whose score is an inner product; None where the model has none."""
    return next((name for name in model.tasks if isinstance(model.task(name), NextItemTask)), None)


def write_index(
    folder: Path,
    model: UserModel,
    *,
    task: str,
    dataset: Dataset,
    days: Sequence[str],
    tables: Mapping[str, Rows],
    keys_of: KeysOf,
    queries: NDArray[np.float32],
    exact_up_to: int,
) -> Retrieval:
    """Writes the index of all candidates of `days` into `folder` / index. `queries`: (M, V) vectors of users, with
    which its recall is measured. Raises: `PackageError` where there is no candidate, or an id is too long."""
    items = _items(model, task, dataset, days, tables, keys_of)
    report = build_index(
        folder / INDEX, vectors=[(items.key_N, items.vector_NV)], num_items=len(items.key_N),
        dim=items.vector_NV.shape[1], exact_up_to=exact_up_to, queries=queries,
    )  # fmt: skip
    table = _item(model, task).table
    if items.texts:
        _write_texts(folder / INDEX / TEXTS, items.texts, table)
    return _described(report, task, table)


def _items(
    model: UserModel, task: str, dataset: Dataset, days: Sequence[str], tables: Mapping[str, Rows], keys_of: KeysOf
) -> Items:
    group = model.task(task).group
    item = _item(model, task)
    asker = Asker(dataset, dataset.schema)
    if item.table in asker.lost:
        raise PackageError(f"the texts of {item.table!r} are not kept (ingest.raw_ids), so items cannot be retrieved")
    keys_of_items = _keys_of_items(dataset, item.table)
    newest_first = days[::-1]
    loader = Loader(dataset, days=newest_first, global_batch_size=256, shuffle=False, groups=[group], num_prefetch=0)
    seen: set[int] = set()
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    texts: list[str] = []
    for batch in loader:
        examples = batch.groups[group]
        key_N, example_N = _new(examples, item, keys_of_items, seen)
        if not len(key_N):
            continue
        seen.update(key_N.tolist())
        parts.append((key_N, _vectors(model, task, examples, example_N, tables, keys_of)))
        row_N = taken(examples.ids[item.name], example_N)
        assert not isinstance(row_N, tuple)
        texts += [raw for raw in asker.raw_ids(item.table, row_N.tolist()) if isinstance(raw, str)]
    if not parts:
        raise PackageError(f"no candidate of {group!r} from {days[0]} to {days[-1]}: raise export.index_days")
    key_N, vector_NV = (np.concatenate(one) for one in zip(*parts, strict=True))
    return Items(key_N=key_N, vector_NV=vector_NV, texts=texts)


def _keys_of_items(dataset: Dataset, table: str) -> KeysOfIds:
    """The 64-bit keys of raw ids, which tell items apart also where a hash has them share rows."""
    if dataset.schema.without_vocabulary(table) is not None:
        return lambda ids: np.where(ids == UNKNOWN_KEY, MISSING, ids)
    raw_key_R = dataset.keys(table)
    return lambda ids: np.where(ids == PADDING_ROW, MISSING, raw_key_R[ids])


def _new(
    examples: Examples, item: Feature, keys_of_items: KeysOfIds, seen: Set[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items not seen before, and an example of each."""
    ids = taken(examples.ids[item.name], np.arange(examples.num_examples))
    assert not isinstance(ids, tuple), "an item is one id"
    key_E = keys_of_items(ids)
    key_N, example_N = np.unique(key_E, return_index=True)
    new_N = np.array([key not in seen and key != MISSING for key in key_N.tolist()], dtype=bool)
    return key_N[new_N], example_N[new_N]


def _vectors(
    model: UserModel, task: str, examples: Examples, example_N: NDArray[np.int64], tables: Mapping[str, Rows],
    keys_of: KeysOf,
) -> NDArray[np.float32]:  # fmt: skip
    head = model.task(task)
    assert isinstance(head, NextItemTask)
    features = model.places.candidate[head.group]
    candidates = candidates_of(examples, features, example_N, keys_of)
    columns = []
    for feature in features:
        keys, table = candidates.ids[feature.name], tables[feature.table]
        found = table.means(keys.keys_N, keys.lengths_G) if isinstance(keys, Bags) else table.find(keys)
        columns.append(found[0])
    device = next(head.parameters()).device
    with torch.no_grad():
        vector_NV = head.item_half(torch.from_numpy(np.concatenate(columns, axis=1)).to(device))
    return np.asarray(vector_NV.float().cpu().numpy())


def _item(model: UserModel, task: str) -> Feature:
    """The first feature of a candidate is the item's own id."""
    return model.places.candidate[model.task(task).group][0]


def _write_texts(file: Path, texts: Sequence[str], table: str) -> None:
    encoded = [text.encode() for text in texts]
    width = max(map(len, encoded))
    if width > MAX_TEXT_BYTES or any(b"\0" in text for text in encoded):
        raise PackageError(f"an id of {table!r} is longer than {MAX_TEXT_BYTES} bytes or holds NUL: shorten ids before")
    np.save(file, np.array(encoded, dtype=f"S{width}"), allow_pickle=False)


def _described(report: IndexReport, task: str, table: str) -> Retrieval:
    return Retrieval(
        task=task, output=vector_of(task), table=table, dim=report.dim, num_items=report.num_items,
        kind=report.kind.value, recall_at_10=report.recall_at_10, recall_at_100=report.recall_at_100,
    )  # fmt: skip

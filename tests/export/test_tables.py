"""Which trained rows the keys of a package find, against the training maps and dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from stack.base.errors import PackageError
from stack.checkpoint.load import Checkpoint
from stack.data.dataset import Dataset
from stack.data.keys import hash_texts
from stack.data.schema import Feature
from stack.export.lookup import lookups, write_list
from stack.export.package import IDS, IdKind
from stack.export.quantize import RowType, decode, encode
from stack.export.run_writer import write_run
from stack.export.runs import MISSING, RowStore, Run
from stack.export.tables import ExportedTable, TrainedIds, TrainedRows, exported_tables, trained_ids
from stack.ids.config import IdMode, IdSpec, ManagedConfig
from stack.ids.hashing import HashVariant
from stack.ids.maps import IdMaps
from tests.export.toy import MANIFEST_OF_TOY
from tests.export.worlds import keyed, saved, with_vocabularies
from tests.prepared import FIRST_ITEM, SCHEMA, write_prepared

NUM_IDS = 60
DIM = 6
TEXTS = [f"item {number}" for number in range(1, NUM_IDS + 1)]
ROWS = {IdMode.direct: 41, IdMode.hashed: 17, IdMode.managed: 25}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared", num_days=1, num_users=4)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("raw") / "prepared", num_days=1, num_users=4, raw_ids=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table `item` as it was trained. `asked`: what prepared data may hold of it, all ids it knows and some that it
    does not; `raw_of`: the raw id of each as a request has it; `expected`: the sum of its trained rows, or None."""

    table: ExportedTable
    checkpoint: Checkpoint
    asked: np.ndarray
    raw_of: list[str | int | None]
    expected: list[np.ndarray | None]
    default: np.ndarray


MODES = {
    "direct": (IdMode.direct, HashVariant.modulo, True),
    "managed": (IdMode.managed, HashVariant.modulo, True),
    "modulo": (IdMode.hashed, HashVariant.modulo, True),
    "double": (IdMode.hashed, HashVariant.double, True),
    "quotient_remainder": (IdMode.hashed, HashVariant.quotient_remainder, True),
    "managed, raw": (IdMode.managed, HashVariant.modulo, False),
    "modulo, raw": (IdMode.hashed, HashVariant.modulo, False),
    "double, raw": (IdMode.hashed, HashVariant.double, False),
    "quotient_remainder, raw": (IdMode.hashed, HashVariant.quotient_remainder, False),
}
KINDS = {
    "direct": IdKind.key, "managed": IdKind.key, "modulo": IdKind.list, "double": IdKind.key,
    "quotient_remainder": IdKind.key, "managed, raw": IdKind.key, "modulo, raw": IdKind.hash,
    "double, raw": IdKind.hash, "quotient_remainder, raw": IdKind.hash,
}  # fmt: skip
SUMMED = [name for name in MODES if "double" in name or "quotient" in name]


@pytest.fixture(scope="module")
def case(prepared: Path, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def of(name: str) -> Case:
        if name not in made:
            made[name] = _case(name, prepared, raw, tmp_path_factory.mktemp("case"))
        return made[name]

    return of


def _case(name: str, prepared: Path, raw: Path, folder: Path) -> Case:
    mode, variant, has_vocabulary = MODES[name]
    spec = IdSpec(
        name="item", mode=mode, num_rows=ROWS[mode], hash=variant, managed=ManagedConfig(admit_after=1)
    )  # fmt: skip
    maps = IdMaps([spec])
    if has_vocabulary:
        dataset = with_vocabularies(prepared, folder / "data", {"item": TEXTS})
        learnt = np.arange(1, ROWS[mode] if mode is IdMode.direct else NUM_IDS + 1)
        asked = np.concatenate([[0], np.arange(1, NUM_IDS + 1)])
        raw_of: list[str | int | None] = [None, *TEXTS]
    else:
        dataset = Dataset(raw)
        learnt = FIRST_ITEM + np.arange(1, NUM_IDS + 1) * (-1) ** np.arange(NUM_IDS)
        asked = np.concatenate([[0], learnt, [77]])
        raw_of = [None, *learnt.tolist(), 77]
    maps("item", torch.from_numpy(np.unique(learnt)))
    maps.eval()
    checkpoint, weight = saved(folder / "checkpoints", {"item": (ROWS[mode], DIM)})
    ids = trained_ids(None if mode is IdMode.direct else maps, dataset.schema)
    (table,) = exported_tables(
        ("item",), schema=replace(dataset.schema, property=()), dataset=dataset, checkpoint=checkpoint, ids=ids
    ).values()  # fmt: skip
    distinct = np.unique(asked)
    rows = dict(zip(distinct.tolist(), maps("item", torch.from_numpy(distinct)).tolist(), strict=True))
    expected: list[np.ndarray | None] = []
    for one in asked.tolist():
        mine = rows[one] if isinstance(rows[one], list) else [rows[one]]
        expected.append(sum(weight["item"][row] for row in mine) if any(mine) else None)
    num_summed = len(mine)
    return Case(
        table=table, checkpoint=checkpoint, asked=asked, raw_of=raw_of, expected=expected,
        default=num_summed * weight["item"][0],
    )  # fmt: skip


def assert_as_trained(case: Case, vector_ND: np.ndarray, known_N: np.ndarray) -> None:
    for one, vector, known, expected in zip(case.asked, vector_ND, known_N, case.expected, strict=True):
        assert known == (expected is not None), one
        np.testing.assert_array_equal(vector, case.default if expected is None else expected, err_msg=str(one))


@pytest.mark.parametrize("name", MODES)
def test_the_keys_of_prepared_ids_find_their_trained_rows_and_others_the_row_of_unknown_ids(
    name: str, case: Callable[[str], Case]
) -> None:
    one = case(name)
    assert one.table.ids.kind is KINDS[name]
    assert any(expected is None for expected in one.expected[1:]) == (name in ("direct", "managed", "managed, raw"))
    rows = TrainedRows(one.table, one.checkpoint)
    keys = one.table.keys_of(one.asked)
    assert keys.shape == ((len(one.asked), 2) if KINDS[name] is IdKind.hash and name in SUMMED else (len(one.asked),))
    assert_as_trained(one, *rows.find(keys))
    np.testing.assert_array_equal(rows.default_D, one.default)
    assert np.all(keys[0] == MISSING), "what stands for no id"


@pytest.mark.parametrize("name", MODES)
def test_raw_ids_find_in_the_written_files_what_prepared_ids_find_in_the_checkpoint(
    name: str, case: Callable[[str], Case], tmp_path: Path
) -> None:
    one = case(name)
    exact = TrainedRows(one.table, one.checkpoint)
    if one.table.ids.kind is IdKind.list:
        write_list(tmp_path / IDS / "item", one.table.key_N, one.table.row_NK[:, 0])
    (lookup,) = lookups(tmp_path, replace(MANIFEST_OF_TOY, ids={"item": one.table.ids})).values()
    keys = lookup.keys(one.raw_of)
    for row_type in RowType:
        place = tmp_path / row_type.value
        write_run(place, row_type=row_type, dim=DIM, num_rows=exact.num_stored, parts=exact.parts())
        store = RowStore(exact.default_D, [Run(place, row_type=row_type, dim=DIM)])
        found_ND, known_N = store.find(keys)
        if row_type is RowType.fp32:
            assert_as_trained(one, found_ND, known_N)
        rounded = TrainedRows(one.table, one.checkpoint, row_type=row_type)
        theirs_ND, theirs_N = rounded.find(one.table.keys_of(one.asked))
        np.testing.assert_array_equal(found_ND, theirs_ND)
        np.testing.assert_array_equal(known_N, theirs_N)
        lengths_G = np.array([0, 3, 0, len(keys) - 3])
        np.testing.assert_array_equal(
            store.means(keys, lengths_G)[0], rounded.means(one.table.keys_of(one.asked), lengths_G)[0]
        )


def test_a_sum_of_two_rows_is_rounded_once_where_it_is_stored_and_the_rows_where_they_are(
    case: Callable[[str], Case],
) -> None:
    def rounded(vector_ND: np.ndarray) -> np.ndarray:
        return decode(encode(vector_ND, RowType.int4), RowType.int4, DIM)

    stored, shared = case("double"), case("double, raw")
    weight_RD = stored.checkpoint.table_rows("item", 0, ROWS[IdMode.hashed]).weight_ND.numpy()
    rows_NK = np.array(list(keyed(stored.table).values()))
    mine = TrainedRows(stored.table, stored.checkpoint, row_type=RowType.int4).find(stored.table.key_N)[0]
    np.testing.assert_array_equal(mine, rounded(weight_RD[rows_NK].sum(1)))
    keys_NK = shared.table.keys_of(shared.asked[1:])
    weight_RD = shared.checkpoint.table_rows("item", 0, ROWS[IdMode.hashed]).weight_ND.numpy()
    theirs = TrainedRows(shared.table, shared.checkpoint, row_type=RowType.int4).find(keys_NK)[0]
    np.testing.assert_array_equal(theirs, rounded(weight_RD)[keys_NK].sum(1))
    assert np.abs(theirs - rounded(weight_RD[keys_NK].sum(1))).max() > 0.01, "the order can be told"


@pytest.mark.parametrize("name", MODES)
def test_nobody_finds_nothing(name: str, case: Callable[[str], Case]) -> None:
    one = case(name)
    rows = TrainedRows(one.table, one.checkpoint)
    keys = one.table.keys_of(np.empty(0, dtype=np.int64))
    vector_ND, known_N = rows.find(keys)
    assert vector_ND.shape == (0, DIM)
    assert known_N.shape == (0,)
    np.testing.assert_array_equal(rows.means(keys, np.array([0, 0]))[0], np.zeros((2, DIM)))


def test_ids_newer_than_the_checkpoint_are_left_out_and_get_the_row_of_unknown_ids(case: Callable[[str], Case]) -> None:
    one = case("direct")
    assert one.table.ids.num_ids == len(one.table.key_N) == ROWS[IdMode.direct] - 1
    newer = one.table.keys_of(np.arange(ROWS[IdMode.direct], NUM_IDS + 1))
    assert newer.tolist() == hash_texts(TEXTS[ROWS[IdMode.direct] - 1 :]).tolist()
    vector_ND, known_N = TrainedRows(one.table, one.checkpoint).find(newer)
    assert not known_N.any()
    assert (vector_ND == one.default).all()


def test_a_keyed_table_is_its_dictionary_in_order_of_keys(case: Callable[[str], Case]) -> None:
    direct = case("direct").table
    assert keyed(direct) == {int(hash_texts([TEXTS[row - 1]])[0]): [row] for row in range(1, ROWS[IdMode.direct])}
    for name in MODES:
        assert (np.diff(case(name).table.key_N) > 0).all(), name
    assert case("modulo").table.ids.num_ids == NUM_IDS, "a hash knows all of a vocabulary"
    assert case("managed").table.ids.num_ids == ROWS[IdMode.managed] - 1, "only who has a row"


def test_a_property_lists_every_id_of_its_vocabulary_also_newer_ones(prepared: Path, tmp_path: Path) -> None:
    dataset = Dataset(prepared)
    checkpoint, _ = saved(tmp_path, {"item": (4, 2)})
    found = exported_tables((), schema=SCHEMA, dataset=dataset, checkpoint=checkpoint, ids=TrainedIds())
    assert set(found) == {"scenario", "type"}
    assert found["type"].ids.kind is IdKind.list
    assert keyed(found["type"]) == {int(hash_texts([f"type-{row}"])[0]): [row] for row in (1, 2, 3)}
    assert found["type"].keys_of(np.array([0, 2])).tolist() == [MISSING, 2]


def test_an_empty_vocabulary_makes_an_empty_table(prepared: Path, tmp_path: Path) -> None:
    dataset = with_vocabularies(prepared, tmp_path / "data", {"item": []})
    checkpoint, weight = saved(tmp_path / "checkpoints", {"item": (4, 2)})
    (table,) = exported_tables(
        ("item",), schema=replace(SCHEMA, property=()), dataset=dataset, checkpoint=checkpoint, ids=TrainedIds()
    ).values()
    rows = TrainedRows(table, checkpoint)
    assert rows.num_stored == 0
    vector_ND, known_N = rows.find(np.array([5, MISSING]))
    assert not known_N.any()
    np.testing.assert_array_equal(vector_ND, weight["item"][[0, 0]])


REFUSED: dict[str, tuple[list[str] | list[int], str]] = {
    "twice": (["a", "b", "a"], r"two ids of the vocabulary 'item' have one 64-bit key: .*\(ingest.raw_ids=\[item\]\)"),
    "least": ([3, -(2**63), 4], r"table 'item' has the id -9223372036854775808, which stands for a missing id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ids_that_a_package_cannot_tell_apart_are_refused(name: str, prepared: Path, tmp_path: Path) -> None:
    ids, text = REFUSED[name]
    dataset = with_vocabularies(prepared, tmp_path / "data", {"item": ids})
    checkpoint, _ = saved(tmp_path / "checkpoints", {"item": (4, 2)})
    with pytest.raises(PackageError, match=text):
        exported_tables(("item",), schema=SCHEMA, dataset=dataset, checkpoint=checkpoint, ids=TrainedIds())


def test_the_least_id_of_a_map_without_a_vocabulary_is_refused(raw: Path, tmp_path: Path) -> None:
    spec = IdSpec(
        name="item", mode=IdMode.managed, num_rows=4, hash=HashVariant.modulo, managed=ManagedConfig(admit_after=1)
    )  # fmt: skip
    maps = IdMaps([spec])
    maps("item", torch.tensor([-(2**63), 4]))
    checkpoint, _ = saved(tmp_path, {"item": (4, 2)})
    with pytest.raises(PackageError, match="table 'item' has the id -9223372036854775808"):
        exported_tables(
            ("item",), schema=replace(Dataset(raw).schema, property=()), dataset=Dataset(raw), checkpoint=checkpoint,
            ids=trained_ids(maps, Dataset(raw).schema),
        )  # fmt: skip


def test_a_property_that_shares_a_hashed_vocabulary_is_refused(prepared: Path, tmp_path: Path) -> None:
    dataset = Dataset(prepared)
    checkpoint, _ = saved(tmp_path, {"item": (4, 2)})
    ids = TrainedIds(of_keys={"item": lambda keys: keys})
    schema = replace(SCHEMA, property=(Feature(name="bought", table="item"),))
    with pytest.raises(PackageError, match=r"share the vocabulary 'item', .* train with ids.modes.item=direct"):
        exported_tables(("item",), schema=schema, dataset=dataset, checkpoint=checkpoint, ids=ids)


def test_the_table_of_a_manifest_says_how_it_is_searched(case: Callable[[str], Case]) -> None:
    keyed_by_id = {name: case(name).table.keyed for name in MODES}
    assert keyed_by_id == {name: KINDS[name] is IdKind.key for name in MODES}
    assert {case(name).table.ids.rows_per_id for name in ("double, raw", "quotient_remainder, raw")} == {2}
    assert {case(name).table.ids.rows_per_id for name in ("double", "modulo, raw", "managed")} == {1}

"""Row deltas: laid over a package they are the newer version, for every key; what cannot follow is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from stack.base.errors import PackageError
from stack.checkpoint.chain import Chain
from stack.checkpoint.compact import compact
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import VersionManifest, data_folder
from stack.export.delta import (
    DeltaManifest,
    DeltaTable,
    beginning,
    follows,
    is_delta,
    merge,
    open_delta,
    write_delta,
)
from stack.export.package import DEFAULT, ROWS, IdKind, Ids, PackageManifest, Table, read_manifest
from stack.export.quantize import RowType, decode, encode
from stack.export.run_writer import write_run
from stack.export.runs import MISSING, RowStore
from stack.export.sealed import MANIFEST, describe_files, write_sealed
from stack.export.sign import Algorithm, check, make_keys, read_signature
from stack.export.stores import open_stores, with_deltas
from stack.export.tables import ExportedTable, TrainedRows
from stack.ids.hashing import HashVariant
from tests.checkpoint.chains import DELTAS, Toy
from tests.export.toy import MANIFEST_OF_TOY
from tests.export.worlds import Shop, chain_in, raw_key

WHOLE = changed(DELTAS, whole_share=0.01)
"""Writes no delta."""
UNKNOWN = [12_345, -1, MISSING]
IDS = {
    "item": Ids(kind=IdKind.key, text=True), "user": Ids(kind=IdKind.key, text=True),
    "brand": Ids(kind=IdKind.key, text=False),
    "shop": Ids(kind=IdKind.hash, text=False, num_rows=7, hash=HashVariant.double),
}  # fmt: skip


def write_package(
    folder: Path, shop: Shop, version: VersionManifest, *, row_type: RowType = RowType.fp32
) -> PackageManifest:
    """What export makes of a version's rows, out of the toy itself."""
    tables = {}
    for name, vectors in shop.vectors().items():
        keys, dim, keyed = np.array(sorted(vectors)), shop.weight[name].shape[1], name != "shop"
        rows_ND = np.array([vectors[key] for key in keys.tolist()], dtype=np.float32).reshape(-1, dim)
        if not keyed:
            keys, rows_ND = None, shop.weight[name].numpy()
        write_run(folder / ROWS / name, row_type=row_type, dim=dim, num_rows=len(rows_ND), parts=[(keys, rows_ND)])
        np.save(folder / ROWS / name / DEFAULT, default_of(shop, name))
        tables[name] = Table(num_rows=len(rows_ND), dim=dim, row_type=row_type, keyed=keyed)
    lineage = replace(MANIFEST_OF_TOY.lineage, version=version.version, checkpoint_digest=version.digest)
    manifest = replace(MANIFEST_OF_TOY, tables=tables, ids=IDS, lineage=lineage, files=describe_files(folder))
    return write_sealed(folder, manifest)


def default_of(shop: Shop, table: str) -> np.ndarray:
    return np.asarray(IDS[table].rows_per_id * shop.weight[table][0].numpy())


def assert_says(stores: dict[str, RowStore], shop: Shop, keys: dict[str, set[int]], row_type: RowType) -> None:
    """For every key: touched, untouched, new, gone and unknown."""
    for name, vectors in shop.vectors().items():
        asked = sorted({*vectors, *keys[name], *(UNKNOWN if name != "shop" else [-1, MISSING, 7])})
        found_ND, known_N = stores[name].find(np.array(asked))
        for key, found, known in zip(asked, found_ND, known_N, strict=True):
            expected = vectors.get(key)
            assert known == (expected is not None), (name, key)
            if expected is not None:
                expected = decode(encode(expected[None], row_type), row_type, len(expected))[0]
            np.testing.assert_array_equal(found, default_of(shop, name) if expected is None else expected)


def checked(*folders: Path) -> list[tuple[Path, DeltaManifest]]:
    return [(one, open_delta(one)) for one in folders]


def keys_of(*shops: Shop) -> dict[str, set[int]]:
    return {name: {key for shop in shops for key in shop.vectors()[name]} for name in IDS}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A package of version 1, what was saved after it, and what each version says."""

    chain: Chain
    package: Path
    folder: Path
    said: dict[int, Shop]
    versions: dict[int, VersionManifest]

    @property
    def manifest(self) -> PackageManifest:
        return read_manifest(self.package)

    def delta(self, begin: Path, to: int, name: str) -> Path:
        package = None if begin == self.package else self.package
        write_delta(self.chain, self.versions[to], beginning(begin, package), self.folder / name)
        return self.folder / name

    def stores(self, *deltas: Path) -> dict[str, RowStore]:
        return with_deltas(open_stores(self.package, self.manifest), self.manifest, deltas)


def line_of(folder: Path, *, seed: int, row_type: RowType = RowType.fp32) -> Line:
    """Version 2 touches, admits, evicts and grows; version 3 does so again in other blocks, by several processes, and a
    key that was gone comes back or stays away."""
    chain, shop = chain_in(folder), Shop(seed=seed)
    for _ in range(3):
        shop.train()
    versions = {1: shop.save(chain)}
    said = {1: shop.copy()}
    write_package(folder / "package", shop, versions[1], row_type=row_type)
    shop.train()
    shop.evict("user", 2)
    shop.grow("item", 2)
    shop.touch("item", [0, 3])
    versions[2] = shop.save(chain, day="2017-11-02", complete=seed % 2 == 0)
    said[2] = shop.copy()
    shop.train(rows=2)
    shop.evict("brand", 1)
    shop.grow("item", 1)
    versions[3] = shop.save(chain, world_size=2, blocks={"item": (1, 3)}, day="2017-11-03")
    said[3] = shop.copy()
    return Line(chain=chain, package=folder / "package", folder=folder, said=said, versions=versions)  # type: ignore[arg-type]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return line_of(tmp_path, seed=1)


@pytest.mark.parametrize("row_type", RowType)
@pytest.mark.parametrize("seed", [1, 2])
def test_deltas_over_a_package_are_the_newer_version_for_every_key(
    seed: int, row_type: RowType, tmp_path: Path
) -> None:
    line = line_of(tmp_path, seed=seed, row_type=row_type)
    asked = keys_of(*line.said.values())
    assert_says(line.stores(), line.said[1], asked, row_type)
    second = line.delta(line.package, 2, "second")
    assert_says(line.stores(second), line.said[2], asked, row_type)
    third = line.delta(second, 3, "third")
    assert_says(line.stores(second, third), line.said[3], asked, row_type)
    both = line.delta(line.package, 3, "both")
    assert_says(line.stores(both), line.said[3], asked, row_type)
    merged = merge(checked(second, third), line.manifest, tmp_path / "merged")
    assert open_delta(tmp_path / "merged") == merged
    assert_says(line.stores(tmp_path / "merged"), line.said[3], asked, row_type)
    whole = open_delta(both)
    assert replace(merged, name="", created="", tables={}, files={}, digest="") == replace(
        whole, name="", created="", tables={}, files={}, digest=""
    )
    assert {name: one.num_rows for name, one in merged.tables.items()} == {
        name: one.num_rows for name, one in whole.tables.items()
    }


def test_a_delta_equals_the_trained_rows_of_the_newer_checkpoint(line: Line) -> None:
    stores = line.stores(line.delta(line.package, 3, "delta"))
    checkpoint, now = open_version(line.chain, line.versions[3]), line.said[3]
    held = {
        "item": {raw_key(row): row for row in range(1, len(now.weight["item"]))},
        "user": {raw_key(key): row for key, (row, _, _) in now.keys["user"].items()},
        "brand": {key: row for key, (row, _, _) in now.keys["brand"].items()},
    }
    for name, rows in held.items():
        table = ExportedTable(
            name=name, ids=IDS[name], keys_of=lambda keys: keys, key_N=np.array(sorted(rows)),
            row_NK=np.array([[rows[key]] for key in sorted(rows)]),
        )  # fmt: skip
        keys = np.array(sorted({*keys_of(*line.said.values())[name], *UNKNOWN}))
        mine, theirs = stores[name].find(keys), TrainedRows(table, checkpoint).find(keys)
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_a_delta_holds_what_changed_and_nothing_else(tmp_path: Path) -> None:
    chain, shop = chain_in(tmp_path), Shop(seed=4)
    shop.train()
    first = shop.save(chain)
    manifest = write_package(tmp_path / "package", shop, first)
    shop.step += 1
    shop.touch("item", [2, 5])
    gone = shop.evict("user", 1)
    second = shop.save(chain, day="2017-11-02")
    found = write_delta(chain, second, beginning(tmp_path / "package"), tmp_path / "delta")
    nothing = DeltaTable(num_rows=0, num_gone=0)
    assert found.tables == {
        "item": DeltaTable(num_rows=2, num_gone=0), "user": DeltaTable(num_rows=0, num_gone=1), "brand": nothing,
    }, "nothing is said of a table that nothing was written of, not even its row of unknown ids"  # fmt: skip
    assert open_delta(tmp_path / "delta") == found
    assert (found.package, found.from_version, found.to_version) == (manifest.digest, 1, 2)
    assert (found.from_digest, found.to_digest, found.last_day) == (first.digest, second.digest, "2017-11-02")
    rows = tmp_path / "delta" / ROWS
    assert np.load(rows / "item" / "keys.npy").tolist() == sorted([raw_key(2), raw_key(5)])
    assert np.load(rows / "user" / "gone.npy").tolist() == [raw_key(gone[0])]
    assert is_delta(tmp_path / "delta")
    assert not is_delta(tmp_path / "package")
    assert not is_delta(tmp_path)


@pytest.mark.parametrize("how", ["saved whole", "compacted"])
def test_ids_that_lost_their_rows_under_a_whole_run_are_gone_all_the_same(how: str, tmp_path: Path) -> None:
    """A run that is whole has no list of who is gone."""
    chain, shop = chain_in(tmp_path), Shop(seed=5)
    for _ in range(3):
        shop.train()
    manifest = write_package(tmp_path / "package", shop, shop.save(chain))
    first = shop.copy()
    shop.train()
    gone = shop.evict("user", 3)
    head = shop.save(chain, day="2017-11-02", options=WHOLE if how == "saved whole" else DELTAS)
    if how == "compacted":
        assert compact(chain, head) is not None
    assert head.whole == (how == "saved whole")
    found = write_delta(chain, head, beginning(tmp_path / "package"), tmp_path / "delta")
    assert found.tables["user"].num_gone >= len(gone) == 3
    stores = with_deltas(open_stores(tmp_path / "package", manifest), manifest, [tmp_path / "delta"])
    assert_says(stores, shop, keys_of(first, shop), RowType.fp32)  # type: ignore[arg-type]


def test_a_whole_run_whose_beginning_was_pruned_cannot_be_followed(tmp_path: Path) -> None:
    chain, shop = chain_in(tmp_path), Shop(seed=5)
    shop.train()
    first = shop.save(chain)
    write_package(tmp_path / "package", shop, first)
    shop.train()
    head = shop.save(chain, options=WHOLE)
    shutil.rmtree(tmp_path / "checkpoints" / data_folder(first.data))
    (tmp_path / "checkpoints" / "pruned").mkdir()
    shutil.copy(
        tmp_path / "checkpoints" / "manifests" / "00000001.json", tmp_path / "checkpoints" / "pruned" / "00000001.json"
    )
    text = r"table 'user' was written whole, .* version 1, which is served \(.* pruned: .*\): export a package instead"
    with pytest.raises(PackageError, match=text):
        write_delta(chain, head, beginning(tmp_path / "package"), tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_only_the_delta_that_follows_is_laid_over(line: Line) -> None:
    second, third = line.delta(line.package, 2, "second"), line.delta(line.folder / "second", 3, "third")
    package, of = line.manifest, {2: open_delta(second), 3: open_delta(third)}
    follows(of[2], package, [])
    follows(of[3], package, [of[2]])
    with pytest.raises(
        PackageError, match="delta 'third' begins at version 2, and what is below it is version 1: apply"
    ):
        follows(of[3], package, [])
    with pytest.raises(
        PackageError, match="delta 'second' begins at version 1, and what is below it is version 3: appl"
    ):
        follows(of[2], package, [of[2], of[3]])
    with pytest.raises(
        PackageError, match="'second' begins at version 1, and what is below it is version 1: apply the"
    ):
        follows(replace(of[2], from_digest="0" * 64), package, [])
    other = replace(of[2], package="f" * 64)
    text = f"delta 'second' is of package ffffffffffff, not of {package.digest[:12]}: export one with export.delta_of="
    with pytest.raises(PackageError, match=text):
        follows(other, package, [])


def test_deltas_merge_in_their_order_alone(line: Line) -> None:
    second, third = line.delta(line.package, 2, "second"), line.delta(line.folder / "second", 3, "third")
    with pytest.raises(
        PackageError, match="delta 'second' begins at version 1, and what is below it is version 3: appl"
    ):
        merge(checked(third, second), line.manifest, line.folder / "merged")
    other = replace(line.manifest, digest="e" * 64)
    with pytest.raises(PackageError, match=rf"delta 'second' is of package {line.manifest.digest[:12]}, not of eeeeee"):
        merge(checked(second, third), other, line.folder / "merged")
    assert not (line.folder / "merged").exists()


def _other_package(line: Line) -> Callable[[], object]:
    second = line.delta(line.package, 2, "second")
    write_package(line.folder / "other", line.said[2], line.versions[2])
    return lambda: beginning(second, line.folder / "other")


def _nothing_new(line: Line) -> Callable[[], object]:
    return lambda: line.delta(line.package, 1, "delta")


def _older(line: Line) -> Callable[[], object]:
    write_package(line.folder / "newer", line.said[3], line.versions[3])
    return lambda: write_delta(line.chain, line.versions[2], beginning(line.folder / "newer"), line.folder / "delta")


def _fork(line: Line) -> Callable[[], object]:
    second, other = line.delta(line.package, 2, "second"), line.said[1].copy()
    other.parent = line.versions[1]
    other.train()
    branch = other.save(line.chain)
    return lambda: write_delta(line.chain, branch, beginning(second, line.package), line.folder / "delta")


def _twice(line: Line) -> Callable[[], object]:
    line.delta(line.package, 2, "delta")
    return lambda: line.delta(line.package, 2, "delta")


def _name(line: Line) -> Callable[[], object]:
    return lambda: line.delta(line.package, 2, "my delta")


def _too_large(line: Line) -> Callable[[], object]:
    shop = line.said[3].copy()
    shop.weight["item"][2] = 1e6
    shop.changed["item"].add(2)
    shop.step += 1
    head = shop.save(line.chain)
    manifest = line.manifest
    tables = {name: replace(table, row_type=RowType.fp16) for name, table in manifest.tables.items()}
    write_sealed(line.package, replace(manifest, tables=tables))
    return lambda: write_delta(line.chain, head, beginning(line.package), line.folder / "delta")


REFUSALS: dict[str, tuple[Callable[[Line], Callable[[], object]], str]] = {
    "other package": (_other_package, r"delta .*/second is not of package .*/other"),
    "nothing new": (_nothing_new, "version 1 is what is served already: there is nothing to put in a delta"),
    "older": (_older, "version 2 of .*checkpoints does not build on version 3, which is served: export a package of"),
    "other line": (_fork, "version 4 of .*checkpoints does not build on version 2, which is served: export a package"),
    "exists": (_twice, "/delta exists: deltas are not changed; choose another export.out"),
    "name": (_name, "delta 'my delta' cannot be a package's name: it must match"),
    "too large": (_too_large, r"table 'item' cannot be kept as fp16: row \d+ has a number beyond 65,504"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_follow_is_refused_and_nothing_is_written(name: str, line: Line) -> None:
    prepare, text = REFUSALS[name]
    act = prepare(line)
    before = sorted(path.name for path in line.folder.iterdir())
    with pytest.raises(PackageError, match=text):
        act()
    assert sorted(path.name for path in line.folder.iterdir()) == before


def test_rows_that_do_not_tell_whose_they_are_cannot_be_followed(tmp_path: Path) -> None:
    """Sums of two rows, of ids of a vocabulary: two hashes lead to a row, and none away from it."""
    chain, toy = chain_in(tmp_path), Toy(tables={"item": (5, 2)})
    first = toy.save(chain)
    package = replace(
        MANIFEST_OF_TOY, tables={"item": Table(num_rows=4, dim=2, row_type=RowType.fp32, keyed=True)},
        lineage=replace(MANIFEST_OF_TOY.lineage, version=1, checkpoint_digest=first.digest),
    )  # fmt: skip
    (tmp_path / "package").mkdir()
    write_sealed(tmp_path / "package", package)
    toy.train()
    head = toy.save(chain)
    with pytest.raises(PackageError, match="the runs of table 'item' do not tell whose rows they hold .* cannot be"):
        write_delta(chain, head, beginning(tmp_path / "package"), tmp_path / "delta")


def test_every_flipped_bit_and_missing_file_of_a_delta_is_found(line: Line) -> None:
    delta = line.delta(line.package, 3, "delta")
    rng = np.random.default_rng(0)
    for file in sorted(path for path in delta.rglob("*") if path.is_file()):
        data, name = file.read_bytes(), file.relative_to(delta).as_posix()
        for place in sorted({*range(6), *range(len(data) - 6, len(data)), *rng.integers(0, len(data), 12).tolist()}):
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(rng.integers(0, 8))
            file.write_bytes(flipped)
            with pytest.raises(PackageError, match=r"manifest.json" if name == MANIFEST else f"'{name}' is damaged"):
                open_delta(delta)
        file.unlink()
        with pytest.raises(PackageError, match="no package at" if name == MANIFEST else f"'{name}' is missing"):
            open_delta(delta)
        file.write_bytes(data)
    (delta / ROWS / "more.npy").write_bytes(b"")
    with pytest.raises(PackageError, match="'rows/more.npy' is not listed in manifest.json"):
        open_delta(delta)
    (delta / ROWS / "more.npy").unlink()
    assert isinstance(open_delta(delta), DeltaManifest)


def test_a_package_is_no_delta_and_a_delta_no_package(line: Line) -> None:
    delta = line.delta(line.package, 2, "delta")
    with pytest.raises(PackageError, match=r"package .*/package: manifest.json is not of its kind: "):
        open_delta(line.package)
    with pytest.raises(PackageError, match=r"package .*/delta: manifest.json is not of its kind: "):
        beginning(delta)


def test_a_delta_is_signed_as_a_package_is(line: Line, tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path / "keys", Algorithm.ed25519)
    write_delta(line.chain, line.versions[2], beginning(line.package), tmp_path / "signed", sign_key=secret)
    check((tmp_path / "signed" / MANIFEST).read_bytes(), read_signature(tmp_path / "signed"), [public])
    assert open_delta(tmp_path / "signed").to_version == 2

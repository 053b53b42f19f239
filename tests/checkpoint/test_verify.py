"""`verify` finds every damage and names what it breaks; the last good version is the one to go back to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.leases import Lease, write_lease
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import data_folder, encode_manifest, with_digest
from stack.checkpoint.retain import prune
from stack.checkpoint.tensors import TensorFile, write_tensors
from stack.checkpoint.verify import Kind, Standing, last_good, verify
from tests.checkpoint.chains import Toy, random_chain

GOOD, DAMAGED, PRUNED = Standing.good, Standing.damaged, Standing.pruned


def chain_in(folder: Path, num_versions: int = 4) -> tuple[Chain, Toy]:
    """Deltas on one base."""
    chain = chain_of(folder, for_writing=True)
    toy = Toy(tables={"item": (30, 4)}, managed={"user": (9, 2)})
    for number in range(1, num_versions + 1):
        toy.train()
        toy.save(chain, world_size=2, day=f"2017-11-{number:02d}")
    return chain, toy


def copied(chain: Chain, to: Path) -> Chain:
    """Where no two names are one file, so that a damage is in one place only."""
    shutil.copytree(chain.store.url, to)
    return chain_of(to)


def part_of(chain: Chain, number: int, begin: str = "tables/item") -> str:
    version = chain.manifest(number)
    return f"{data_folder(version.data)}/{next(name for name in version.files if name.startswith(begin))}"


def test_a_chain_as_it_was_written_is_good_to_the_last_byte(tmp_path: Path) -> None:
    for seed in range(3):
        chain, said = random_chain(tmp_path / str(seed), seed=seed)
        compact(chain, chain.manifest(4))
        compact(chain, chain.manifest(6))
        read: list[int] = []
        report = verify(chain, deep=True, progress=read.append)
        assert report.findings == ()
        assert report.versions == dict.fromkeys(said, GOOD)
        assert report.last_good == 6
        assert sum(read) == report.num_bytes
        names = [name for name in chain.store.list() if name.startswith("data/")]
        assert report.num_files == len(names)
        assert report.num_bytes == sum(chain.store.size(name) for name in names)
        prune(chain, CheckpointConfig(keep_last=1, keep_days=1))
        report = verify(chain, deep=True)
        assert report.findings == ()
        assert set(report.versions.values()) <= {GOOD, PRUNED}
        assert {number for number, one in report.versions.items() if one is PRUNED} == set(chain.pruned())


def test_every_flipped_bit_and_cut_in_any_file_is_found_and_named(tmp_path: Path) -> None:
    chain, _ = chain_in(tmp_path / "chain")
    compact(chain, chain.manifest(2))
    prune(chain, CheckpointConfig(keep_last=1, keep_days=3))
    chain = copied(chain, tmp_path / "copy")
    root = tmp_path / "copy"
    rng = np.random.default_rng(0)
    names = chain.store.list()
    assert {name.split("/")[0] for name in names} == {"manifests", "bases", "pruned", "data"}
    num_broken = 0
    for name in names:
        path = root / name
        data = path.read_bytes()
        for change in range(3):
            at, bit = int(rng.integers(len(data))), int(rng.integers(8))
            flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            path.write_bytes((flipped, data[:at], data + b"\0")[change])
            report = verify(chain)
            assert name in {finding.name for finding in report.findings}, (name, change)
            assert report.damaged
            num_broken += any(finding.breaks for finding in report.findings)
        path.unlink()
        report = verify(chain)
        gone = {finding.name for finding in report.findings}
        unsaid = {"manifests/00000004.json": "data/", "pruned/00000001.json": "data/", "bases/00000002.json": "pruned/"}
        assert name in gone or any(one.startswith(unsaid[name]) for one in gone), name
        path.write_bytes(data)
    assert verify(chain).findings == ()
    assert num_broken > 2 * len(names)


def test_a_damaged_delta_breaks_itself_and_what_builds_on_it_up_to_a_compaction(tmp_path: Path) -> None:
    chain, _ = chain_in(tmp_path, 5)
    name = part_of(chain, 2)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (finding,) = verify(chain).findings
    assert (finding.kind, finding.name, finding.breaks) == (Kind.damage, name, (2, 3, 4, 5))
    assert finding.what.startswith("its sha256 is ")
    report = verify(chain)
    assert report.versions == {1: GOOD, 2: DAMAGED, 3: DAMAGED, 4: DAMAGED, 5: DAMAGED}
    assert report.last_good == 1
    data[-1] ^= 1
    path.write_bytes(data)
    compact(chain, chain.manifest(4))
    data[-1] ^= 1
    path.write_bytes(data)
    report = verify(chain)
    assert report.versions == {1: GOOD, 2: DAMAGED, 3: DAMAGED, 4: GOOD, 5: GOOD}
    assert report.last_good == 5
    for number, standing in report.versions.items():
        if standing is GOOD:
            open_version(chain, chain.manifest(number)).verify()
        else:
            with pytest.raises(CheckpointError, match="is damaged"):
                open_version(chain, chain.manifest(number)).verify()


@pytest.mark.parametrize(
    ("harm", "name", "what", "breaks"),
    [
        (lambda root, chain: (root / "manifests/00000002.json").unlink(), "manifests/00000002.json", "is missing",
         (2, 3, 4)),
        (lambda root, chain: (root / "manifests/00000004.json").write_bytes(b""), "manifests/00000004.json",
         "Input data was truncated", (4,)),
        (lambda root, chain: shutil.copy(root / "manifests/00000001.json", root / "manifests/00000003.json"),
         "manifests/00000003.json", "holds version 1", (3, 4)),
        (lambda root, chain: shutil.rmtree(root / data_folder(chain.manifest(3).data)), "data/",
         "is gone, but manifests/00000003.json was not marked as pruned", (3, 4)),
        (lambda root, chain: (root / part_of(chain, 3)).unlink(), "tables/item", "is missing", (3, 4)),
        (lambda root, chain: (root / part_of(chain, 3, "ids/")).unlink(), "ids/user", "is missing", (3, 4)),
        (lambda root, chain: (root / part_of(chain, 3, "dense")).unlink(), "dense.safetensors", "is missing", (3,)),
        (lambda root, chain: (root / part_of(chain, 1, "loop")).write_bytes(b"{}"), "loop.json",
         "it has 2 bytes, not", (1,)),
    ],
)  # fmt: skip
def test_each_damage_is_named_with_the_versions_that_it_breaks(
    tmp_path: Path, harm: Callable[[Path, Chain], object], name: str, what: str, breaks: tuple[int, ...]
) -> None:
    chain, _ = chain_in(tmp_path / "chain")
    chain = copied(chain, tmp_path / "copy")
    harm(tmp_path / "copy", chain)
    report = verify(chain, deep=True)
    found = [one for one in report.findings if one.kind is Kind.damage and one.breaks]
    (finding,) = found
    assert name in finding.name
    assert finding.what.startswith(what)
    assert finding.breaks == breaks
    assert report.versions == {n: DAMAGED if n in breaks else GOOD for n in (1, 2, 3, 4)}
    assert report.last_good == max((n for n in (1, 2, 3, 4) if n not in breaks), default=None)


def test_a_manifest_exchanged_for_another_valid_one_is_found_by_who_builds_on_it(tmp_path: Path) -> None:
    chain, _ = chain_in(tmp_path / "chain")
    chain = copied(chain, tmp_path / "copy")
    forged = with_digest(msgspec.structs.replace(chain.manifest(2), step=77))
    (tmp_path / "copy/manifests/00000002.json").write_bytes(encode_manifest(forged))
    report = verify(chain)
    (finding,) = [one for one in report.findings if one.name.startswith("manifests/")]
    assert finding.what == "is not the version that manifests/00000003.json was built on"
    assert finding.breaks == (2, 3, 4)


def test_what_nobody_wrote_is_stray_and_what_killed_processes_left_is_no_damage(tmp_path: Path) -> None:
    chain, _ = chain_in(tmp_path)
    (tmp_path / data_folder(chain.manifest(2).data) / "tables/extra.safetensors").write_bytes(b"1")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "manifests/5.json").write_text("{}")
    report = verify(chain)
    assert {one.name: one.kind for one in report.findings} == {
        "notes.txt": Kind.stray,
        "manifests/5.json": Kind.stray,
        f"{data_folder(chain.manifest(2).data)}/tables/extra.safetensors": Kind.stray,
    }
    assert report.damaged
    assert set(report.versions.values()) == {GOOD}
    for finding in report.findings:
        (tmp_path / finding.name).unlink()
    for name in ("data/dead/file", "data/alive/file", ".aside-0/data/old/file"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"1")
    write_lease(chain.store, Lease(data="alive", seconds=60))
    report = verify(chain)
    assert {one.name: one.kind for one in report.findings} == {
        "data/dead": Kind.leftover, ".aside-0": Kind.leftover,
    }  # fmt: skip
    assert not report.damaged
    prune(chain, CheckpointConfig())
    assert verify(chain).findings == ()


def rewritten(chain: Chain, number: int, begin: str, change: Callable[[dict[str, Tensor]], object]) -> str:
    """Changes the numbers of a file, and all digests with them: as if it had been written so."""
    root = Path(chain.store.url)
    name = part_of(chain, number, begin)
    tensors = {key: value.clone() for key, value in TensorFile(chain.store, name).all().items()}
    change(tensors)
    with (root / name).open("wb") as file:
        entry = write_tensors(file, tensors)
    version = chain.manifest(number)
    own = name.partition("/")[2].partition("/")[2]
    manifest = encode_manifest(msgspec.structs.replace(version, files=version.files | {own: entry}))
    for path in (f"manifests/{number:08d}.json", f"{data_folder(version.data)}/manifest.json"):
        (root / path).write_bytes(manifest)
    return name


def put(name: str, at: int, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].view(-1).__setitem__(at, value)


@pytest.mark.parametrize(
    ("begin", "change", "what"),
    [
        ("tables/item", put("weight", 5, float("nan")), "weight of row "),
        ("tables/item", put("momentum", 0, float("inf")), "momentum of row "),
        ("tables/item", put("key", 0, 29), "its keys do not ascend"),
        ("tables/item", put("key", 0, -1), "its keys go from -1 to "),
        ("tables/item", lambda tensors: tensors.pop("second"), "it holds key, momentum, weight, not "),
        ("tables/user", put("row", 0, 99), "it has the rows "),
        ("tables/user", put("weight", 0, float("nan")), "weight of id "),
        ("dense", put("head.weight", 2, float("nan")), "head.weight is not finite"),
        ("optimizer", put("head.weight/exp_avg", 0, float("-inf")), "head.weight/exp_avg is not finite"),
        ("ids/user", lambda t: t.__setitem__("gone", torch.tensor([5, 3])), "gone does not ascend"),
    ],
)
def test_deep_finds_what_was_written_wrong(
    tmp_path: Path, begin: str, change: Callable[[dict[str, Tensor]], object], what: str
) -> None:
    chain, _ = chain_in(tmp_path / "chain", 1)
    chain = copied(chain, tmp_path / "copy")
    name = rewritten(chain, 1, begin, change)
    assert verify(chain).findings == ()
    report = verify(chain, deep=True)
    assert report.findings[0].name == name
    assert report.findings[0].what.startswith(what)
    assert report.versions == {1: DAMAGED}
    assert report.last_good is None


def test_deep_finds_a_key_in_two_parts_of_one_run(tmp_path: Path) -> None:
    chain = chain_of(tmp_path / "chain", for_writing=True)
    toy = Toy(tables={}, managed={"user": (40, 2)})
    for _ in range(4):
        toy.train(rows=6)
    toy.save(chain, world_size=2)
    chain = copied(chain, tmp_path / "copy")
    one, two = chain.manifest(1).tables["user"].parts
    folder = data_folder(chain.manifest(1).data)
    taken = TensorFile(chain.store, f"{folder}/{one.file}").rows("key", 0, one.num_rows).tolist()
    keys = TensorFile(chain.store, f"{folder}/{two.file}").rows("key", 0, two.num_rows).tolist()
    at, key = next(
        (at, key) for at in range(1, len(keys) - 1) for key in taken if keys[at - 1] < key < keys[at + 1]
    )  # fmt: skip
    name = rewritten(chain, 1, two.file, put("key", at, key))
    findings = verify(chain, deep=True).findings
    assert [one.what for one in findings] == [f"id {key} of table 'user' is there twice"]
    assert name.startswith(folder)


def test_the_last_good_version_is_found_below_a_damaged_one(tmp_path: Path) -> None:
    chain, _ = chain_in(tmp_path)
    assert last_good(chain, 5) == chain.manifest(4)
    assert last_good(chain, 4) == chain.manifest(3)
    assert last_good(chain, 1) is None
    (tmp_path / part_of(chain, 3, "dense")).unlink()
    assert last_good(chain, 4) == chain.manifest(2)
    (tmp_path / "manifests/00000004.json").write_bytes(b"{")
    assert last_good(chain, 4) == chain.manifest(2)
    (tmp_path / part_of(chain, 1)).unlink()
    assert last_good(chain, 4) is None


def test_versions_that_another_took_the_place_of_are_not_gone_back_to(tmp_path: Path) -> None:
    chain, toy = chain_in(tmp_path, 2)
    toy.parent = chain.manifest(1)
    toy.train()
    toy.save(chain)
    assert last_good(chain, 3) == chain.manifest(1)

"""What is not as it was written is never loaded: the refusal names the file, and so does `verify`."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec
import pytest

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import (
    MANIFEST,
    VersionManifest,
    data_folder,
    encode_manifest,
    manifest_name,
)
from stack.checkpoint.verify import Kind, Report, Standing, verify
from tests.checkpoint.chains import DELTAS, Toy, check

NUM_FLIPS = 200
COMPACTED = 3


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five versions, of which the fifth builds on all and the third is compacted."""
    folder = tmp_path_factory.mktemp("damage") / "chain"
    chain = chain_of(folder, for_writing=True)
    toy = Toy(tables={"item": (12, 4)}, managed={"user": (9, 2)})
    for number in range(1, 6):
        toy.train()
        toy.save(chain, world_size=1 + number % 2, options=DELTAS)
    compact(chain, chain.manifest(COMPACTED))
    return folder


@pytest.fixture
def chain(template: Path, tmp_path: Path) -> Chain:
    """Files of their own: a manifest's two names would change together."""
    shutil.copytree(template, tmp_path / "chain")
    return chain_of(tmp_path / "chain")


def _loading(chain: Chain, numbers: Collection[int] | None = None) -> dict[int, str | None]:
    """By version, why it is not loaded."""
    found: dict[int, str | None] = {}
    for number in chain.numbers() if numbers is None else numbers:
        try:
            open_version(chain, chain.manifest(number)).verify()
            found[number] = None
        except CheckpointError as error:
            found[number] = str(error)
    return found


def _needs(chain: Chain) -> dict[str, set[int]]:
    """By file, the versions that cannot be loaded without it as it was written."""
    needs: dict[str, set[int]] = {name: set() for name in chain.store.list()}
    for number in chain.numbers():
        version = chain.manifest(number)
        for name in open_version(chain, version).files():
            needs[name].add(number)
        for below in chain.line(version):
            needs[manifest_name(below.version)].add(number)
            if below.version == COMPACTED:
                needs[f"bases/{COMPACTED:08d}.json"].add(number)
                break
    return needs


def _refused_as(chain: Chain, name: str, needs: set[int]) -> Report:
    """One that needs the file is refused by its name, one that does not is loaded, and `verify` says it of all."""
    others = set(chain.numbers()) - needs
    for number, why in _loading(chain, [max(some) for some in (needs, others) if some]).items():
        assert (why is not None) == (number in needs), (number, name, why)
        assert why is None or f"/{name} " in why, (number, why)
    report = verify(chain)
    wrong = {finding.name: finding for finding in report.findings if finding.kind is not Kind.leftover}
    assert name in wrong, report.findings
    assert {number for number, one in report.versions.items() if one is Standing.damaged} >= needs
    assert report.last_good == max((number for number in chain.numbers() if number not in needs), default=None)
    return report


@pytest.fixture
def each_file(chain: Chain) -> Iterator[tuple[str, Path, set[int]]]:
    """Every file in turn; it is put back afterwards."""

    def files() -> Iterator[tuple[str, Path, set[int]]]:
        for name, needs in sorted(_needs(chain).items()):
            path = Path(chain.store.url) / name
            data = path.read_bytes()
            yield name, path, needs
            path.unlink(missing_ok=True)
            path.write_bytes(data)

    return files()


def test_one_flipped_bit_in_any_file_is_found(chain: Chain) -> None:
    rng, needs, names = random.Random(7), _needs(chain), chain.store.list()
    flips = [names[number % len(names)] for number in range(NUM_FLIPS)]
    for name in flips:
        path = Path(chain.store.url) / name
        data = path.read_bytes()
        bit = rng.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if name.endswith(f"/{MANIFEST}"):  # a second name of what loading reads
            assert set(_loading(chain).values()) == {None}
            assert name in {finding.name for finding in verify(chain).findings}, (name, bit)
        else:
            _refused_as(chain, name, needs[name])
        path.write_bytes(data)
    assert len({*flips}) == len(names) > 40
    assert not verify(chain).findings


@pytest.mark.parametrize(
    "cut",
    [lambda size: 0, lambda size: 1, lambda size: size // 2, lambda size: size - 1, None],
    ids=["empty", "one byte", "half", "all but one byte", "missing"],
)
def test_a_file_that_is_short_empty_or_missing_is_named(
    chain: Chain, each_file: Iterator[tuple[str, Path, set[int]]], cut: Callable[[int], int] | None
) -> None:
    for name, path, needs in each_file:
        data = path.read_bytes()
        path.unlink()
        if cut is not None:
            path.write_bytes(data[: cut(len(data))])
        if name.endswith(f"/{MANIFEST}"):
            assert name in {finding.name for finding in verify(chain).findings}
        elif cut is None and name in (manifest_name(5), f"bases/{COMPACTED:08d}.json"):
            # As if it had never been published, and no more is lost than that: its files are left over.
            assert {finding.kind for finding in verify(chain).findings} == {Kind.leftover}
            assert set(_loading(chain).values()) == {None}
        elif cut is None and name.startswith("manifests/"):
            assert verify(chain).damaged
        else:
            _refused_as(chain, name, needs)


def test_a_manifest_that_is_missing_in_the_middle_stops_all_that_build_on_it(chain: Chain) -> None:
    (Path(chain.store.url) / manifest_name(4)).unlink()
    assert [number for number, why in _loading(chain).items() if why] == [5]
    assert "has no version 4" in str(_loading(chain)[5])
    report = verify(chain)
    assert manifest_name(4) in {finding.name for finding in report.findings}
    assert report.last_good == 3


@pytest.mark.parametrize(
    "name", ["data/{}/tables/item/part-00009-0.safetensors", "manifests/notes.txt", "data/{}/more/file", "file"]
)
def test_a_file_that_nobody_wrote_is_named_and_breaks_nothing(chain: Chain, name: str) -> None:
    name = name.format(chain.manifest(2).data)
    path = Path(chain.store.url) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1")
    assert set(_loading(chain).values()) == {None}
    report = verify(chain)
    assert [(finding.kind, finding.name) for finding in report.findings] == [(Kind.stray, name)]
    assert report.damaged
    assert report.last_good == 5


def _rewrite(chain: Chain, version: VersionManifest, name: str | None = None) -> None:
    """As somebody who edits a manifest and does its digest again."""
    (Path(chain.store.url) / (name or manifest_name(version.version))).write_bytes(encode_manifest(version))


def test_a_delta_on_another_parent_is_refused(chain: Chain) -> None:
    """Its parent has the right number and another digest; and the other way round, the parent was changed below it."""
    head, below = chain.manifest(5), chain.manifest(4)
    assert head.parent is not None
    other = msgspec.structs.replace(head.parent, digest="0" * 64)
    _rewrite(chain, msgspec.structs.replace(head, parent=other))
    with pytest.raises(
        CheckpointError, match="00000004.json is damaged: its digest is .*, what builds on it says 0000"
    ):
        open_version(chain, chain.manifest(5))
    _rewrite(chain, head)
    open_version(chain, chain.manifest(5)).verify()
    _rewrite(chain, msgspec.structs.replace(below, step=99))
    with pytest.raises(CheckpointError, match="00000004.json is damaged: its digest is"):
        open_version(chain, chain.manifest(5))
    assert verify(chain).last_good == 3


def test_a_delta_that_was_copied_to_the_next_number_is_refused(chain: Chain) -> None:
    """Applied twice."""
    folder = Path(chain.store.url)
    shutil.copy(folder / manifest_name(5), folder / manifest_name(6))
    with pytest.raises(CheckpointError, match="00000006.json is damaged: it holds version 5"):
        chain.head()
    newest = chain.newest_readable()
    assert newest is not None
    assert newest.version == 5
    assert verify(chain).last_good == 5


def test_a_base_under_the_name_of_another_version_is_refused(chain: Chain) -> None:
    folder = Path(chain.store.url)
    shutil.copy(folder / f"bases/{COMPACTED:08d}.json", folder / "bases/00000004.json")
    with pytest.raises(CheckpointError, match="00000004.json is damaged: it is the compaction of another version"):
        open_version(chain, chain.manifest(4))


def test_folders_that_changed_places_are_refused(chain: Chain) -> None:
    one, two = (Path(chain.store.url) / data_folder(chain.manifest(number).data) for number in (4, 5))
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    loading = _loading(chain)
    assert [number for number, why in loading.items() if why] == [4, 5]
    assert all(
        re.search(rf"/{data_folder('')}[0-9a-f]{{32}}/\S+ is (damaged|missing)", str(loading[n])) for n in (4, 5)
    )
    report = verify(chain)
    assert report.last_good == 3
    assert {one.name, two.name} <= {finding.name.split("/")[1] for finding in report.findings}


@pytest.mark.parametrize("number", [2, 4])
def test_other_format_versions_are_refused_and_not_called_damaged(chain: Chain, number: int) -> None:
    path = Path(chain.store.url) / manifest_name(5)
    path.write_text(path.read_text().replace('"format_version": 3', f'"format_version": {number}'))
    with pytest.raises(CheckpointError, match=f"has format version {number}; this code reads version 3: use the code"):
        chain.head()


def test_fields_of_another_writer_are_refused_by_name(chain: Chain) -> None:
    path = Path(chain.store.url) / manifest_name(5)
    fields = json.loads(path.read_text())
    blank = json.dumps({"colour": "red"} | fields | {"digest": ""})
    digest = hashlib.sha256(blank.encode()).hexdigest()
    path.write_text(blank.replace('"digest": ""', f'"digest": "{digest}"'))
    unknown = r"00000005.json was written by other code .*unknown field `colour`.*: use the code that wrote it"
    with pytest.raises(CheckpointError, match=unknown):
        chain.head()


@pytest.mark.parametrize("data", ["../../other", "/etc", "a/../../b", "", "..", "x\0y"])
def test_a_manifest_that_leads_out_of_the_chain_is_refused(chain: Chain, data: str) -> None:
    version = msgspec.structs.replace(chain.manifest(1), data=data)
    _rewrite(chain, version)
    with pytest.raises(CheckpointError):
        open_version(chain, chain.manifest(1)).verify()


def test_a_part_that_leads_out_of_the_chain_is_refused(chain: Chain) -> None:
    version = chain.manifest(1)
    files = {f"../../../{name}": entry for name, entry in version.files.items()}
    _rewrite(chain, msgspec.structs.replace(version, files=files))
    checkpoint = open_version(chain, chain.manifest(1))
    with pytest.raises(CheckpointError):
        checkpoint.verify()
    with pytest.raises(CheckpointError, match="does not stay inside"):
        chain.store.read(f"data/{version.data}/../../../../etc/passwd")


@pytest.mark.parametrize(
    "data", [b"", b"[", b"{}", b"null", b"\xff" * 50, b"[" * 100_000, b'{"format_version": 1e999}']
)
def test_what_is_no_manifest_is_refused(chain: Chain, data: bytes) -> None:
    (Path(chain.store.url) / manifest_name(5)).write_bytes(data)
    with pytest.raises(CheckpointError, match="00000005.json (is damaged|has format version)"):
        chain.head()
    assert verify(chain).last_good == 4


def test_times_of_files_mean_nothing(chain: Chain) -> None:
    for number, name in enumerate(reversed(chain.store.list())):
        os.utime(Path(chain.store.url) / name, (number * 86_400, number * 86_400))
    head = chain.head()
    assert head is not None
    assert head.version == 5
    assert not verify(chain).findings


def test_the_toy_of_these_tests_comes_back_where_nothing_is_wrong(template: Path) -> None:
    """What is refused above is refused for what was done to it."""
    toy = Toy(tables={"item": (12, 4)}, managed={"user": (9, 2)})
    chain = chain_of(template)
    for number in range(1, 6):
        toy.train()
        check(chain, chain.manifest(number), toy)
        toy.gone = {"user": {}}

"""A checkpoint that is not whole is told apart from one that is, and the file is named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest
from safetensors import SafetensorError

from stack.base.errors import CheckpointError
from stack.checkpoint import save as save_module
from stack.checkpoint.load import latest, open_checkpoint
from stack.checkpoint.manifest import encode_manifest, read_manifest
from stack.checkpoint.retain import keep_last
from tests.checkpoint.saving import equal, save, save_on_ranks, split, tables

FILES = (
    "manifest.json",
    "dense.safetensors",
    "optimizer.safetensors",
    "loop.json",
    "tables/item/part-00000-0.safetensors",
    "tables/shop/part-00000-0.safetensors",
)


def refusal(path: Path) -> str:
    """The one line with which opening and verifying fails; empty if it does not."""
    try:
        open_checkpoint(path).verify()
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FILES)
def test_each_damage_of_each_file_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    file = path / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    damages = {"shorter": whole[:-1], "empty": b"", "longer": whole + b" ", "flipped": bytes(flipped)}
    for damage, data in damages.items():
        file.write_bytes(data)
        if name == "manifest.json" and damage == "longer":
            continue  # a space after JSON changes nothing
        line = refusal(path)
        assert name in line, damage
        assert "delete its checkpoint to use an older one" in line
        assert "\n" not in line
    file.unlink()
    assert name in refusal(path)
    file.write_bytes(whole)
    assert refusal(path) == ""


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    rng = random.Random(0)
    for _ in range(100):
        file = path / rng.choice(FILES)
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        assert refusal(path) != "", file
        file.write_bytes(whole)


def test_ranks_verify_all_files_between_them(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    file = path / "tables/item/part-00000-0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = 0
    for rank in range(3):
        try:
            open_checkpoint(path).verify(rank=rank, world_size=3)
        except CheckpointError:
            found += 1
    assert found == 1


def test_a_file_too_many_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "tables/item/part-00009-0.safetensors").write_bytes(b"")
    assert "part-00009-0.safetensors is not in the manifest" in refusal(path)


def test_part_of_another_checkpoint_is_found_by_its_rows(tmp_path: Path) -> None:
    first, second = split(tables(1)["shop"], [1])
    save_on_ranks(tmp_path, 1, [[first], [second]])
    path = tmp_path / "00000001"
    manifest = read_manifest(path)
    parts = manifest.tables["shop"].parts
    swapped = tuple(msgspec.structs.replace(part, file=parts[0].file) for part in parts)
    table = msgspec.structs.replace(manifest.tables["shop"], parts=swapped)
    forged = msgspec.structs.replace(manifest, tables={"shop": table})
    (path / "manifest.json").write_bytes(encode_manifest(forged))
    with pytest.raises(CheckpointError, match=r"part-00000-0.safetensors is damaged: its rows are not 1 to 2"):
        open_checkpoint(path).table_rows("shop", 0, 3)


def test_names_in_a_manifest_cannot_leave_the_folder(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = read_manifest(path)
    files = {("../outside" if name == "loop.json" else name): entry for name, entry in manifest.files.items()}
    (path / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
    with pytest.raises(ValueError, match=r"'../outside' does not stay inside"):
        open_checkpoint(path)


def test_another_format_version_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    newer = msgspec.structs.replace(read_manifest(path), format_version=3)
    (path / "manifest.json").write_bytes(encode_manifest(newer))
    assert "has format version 3; this code reads version 2" in refusal(path)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "00000009")
    assert "holds the checkpoint of step 1: rename it back" in refusal(tmp_path / "00000009")


def test_latest_passes_over_what_is_incomplete_and_says_so(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent").path is None
    for step in (9, 10, 100, 101, 102):
        save(tmp_path, step)
    (tmp_path / "00000102" / "manifest.json").unlink()
    (tmp_path / "00000101" / "loop.json").write_bytes(b"{}")
    (tmp_path / ".aside-00000200").mkdir()
    (tmp_path / "notes").mkdir()
    found = latest(tmp_path)
    assert found.path == tmp_path / "00000100"
    assert len(found.ignored) == 2
    assert "00000101/loop.json is damaged" in found.ignored[0]
    assert "00000102 is not a complete checkpoint: it has no manifest.json" in found.ignored[1]


def test_a_whole_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"00000001 was not written: it exists, and a checkpoint is never overwr"):
        save(tmp_path, 1, shards=list(tables(2).values()))
    first, second = split(tables(1)["item"], [5])
    results = save_on_ranks(tmp_path, 1, [[first], [second]])
    assert all(isinstance(result, CheckpointError) for result in results)
    assert (path / "manifest.json").read_bytes() == before
    assert refusal(path) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_damaged_checkpoint_makes_room_for_the_step_when_training_comes_by_again(tmp_path: Path) -> None:
    for number in (1, 2):
        (save(tmp_path, 1) / "loop.json").unlink()
        save(tmp_path, 1)
        assert refusal(tmp_path / "00000001") == ""
        assert (tmp_path / f"00000001.damaged-{number}").is_dir()
        shutil.rmtree(tmp_path / "00000001")
    assert latest(tmp_path).path is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_rank_that_cannot_write_stops_all_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save(tmp_path, 1)
    original = save_module.save_file

    def full_disk(tensors: dict[str, object], file: Path) -> None:
        if file.name == "part-00001-0.safetensors":
            raise error
        original(tensors, file)  # type: ignore[arg-type]

    monkeypatch.setattr(save_module, "save_file", full_disk)
    first, second = split(tables(2)["item"], [5])
    results = save_on_ranks(tmp_path, 2, [[first], [second]])
    assert all(isinstance(result, CheckpointError) for result in results)
    assert "00000002 was not written: rank 1 of 2 did not write its part; older" in str(results[0])
    assert "No space left on device" in str(results[1])
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    monkeypatch.undo()
    assert save_on_ranks(tmp_path, 2, [[first], [second]]) == [tmp_path / "00000002"] * 2


def test_every_file_and_folder_is_flushed_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []

    def note(path: Path) -> None:
        flushed.append((str(path.relative_to(tmp_path.parent)), (tmp_path / "00000001").exists()))

    monkeypatch.setattr(save_module, "sync", note)
    path = save(tmp_path, 1)
    before = {name for name, published in flushed if not published}
    aside = f"{tmp_path.name}/.aside-00000001"
    inside = {str(file.relative_to(path)) for file in path.rglob("*")}
    assert before >= {f"{aside}/{name}" for name in inside} | {aside}
    assert [name for name, published in flushed if published] == [tmp_path.name, "."]
    names = [name.removeprefix(f"{aside}/") for name, _ in flushed]
    assert max(names.index(name) for name in FILES if name != "manifest.json") < names.index("manifest.json")


def test_a_folder_that_cannot_be_made_stops_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    first, second = split(tables(2)["item"], [5])
    results = save_on_ranks(tmp_path / "file", 2, [[first], [second]])
    assert all(isinstance(result, CheckpointError) for result in results)


def test_keep_last_deletes_the_oldest_and_never_the_newest_complete(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    (tmp_path / "00000005" / "dense.safetensors").unlink()
    (tmp_path / ".aside-00000006").mkdir()
    assert keep_last(tmp_path, count=2) == ["00000001", "00000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000003", "00000004", "00000005"]
    assert keep_last(tmp_path, count=1) == ["00000003"]
    assert keep_last(tmp_path, count=1) == []
    found = latest(tmp_path).path
    assert found == tmp_path / "00000004"
    assert equal(open_checkpoint(found).table_rows("item", 0, 11), tables(4)["item"])
    with pytest.raises(CheckpointError, match="cannot keep 0 checkpoints: keep at least 1"):
        keep_last(tmp_path, count=0)


def test_what_a_killed_save_of_the_same_step_left_does_not_get_in(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    aside = tmp_path / ".aside-00000001"
    shutil.copytree(path, aside)
    (aside / "tables/item/part-00077-0.safetensors").write_bytes(b"old")
    shutil.rmtree(path)
    assert refusal(save(tmp_path, 1)) == ""

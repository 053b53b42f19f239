"""Files and folders are there whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.base import files
from stack.base.errors import ConfigError, DataError
from stack.base.files import (
    cut_lines,
    folder_aside,
    make_folder,
    remove_leftovers,
    safe_join,
    sha256_of,
    write_bytes,
    write_text,
)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/../../x", "a/../b", "/etc/passwd", "a\\b", "a\0b", "//x", "link/x"]
)
def test_a_name_that_leaves_the_root_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"does not stay inside|leads out of"):
        safe_join(tmp_path / "root", name)


@given(parts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4))
def test_what_safe_join_gives_is_always_inside(parts: list[str]) -> None:
    root = Path("/data/root")
    try:
        path = safe_join(root, "/".join(parts))
    except DataError:
        return
    assert root in path.resolve().parents or path.resolve() == root


def test_plain_names_are_joined(tmp_path: Path) -> None:
    assert (
        safe_join(tmp_path, "days/2017-01-01/bucket-0000.parquet") == tmp_path / "days/2017-01-01/bucket-0000.parquet"
    )


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "long text of the first time")
    write_bytes(tmp_path / "file", b"short")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"short")]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file", "old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_appears_only_at_the_end_of_its_block(tmp_path: Path) -> None:
    with folder_aside(tmp_path / "days" / "monday") as aside:
        (aside / "part").mkdir()
        (aside / "part" / "file").write_text("x")
        assert not (tmp_path / "days" / "monday").exists()
    assert (tmp_path / "days" / "monday" / "part" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "days").iterdir()] == ["monday"]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with folder_aside(tmp_path / "day") as aside:
            (aside / name).write_text(name)
    assert [path.name for path in (tmp_path / "day").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["day"]


def _write_and_fail(path: Path) -> None:
    with folder_aside(path) as aside:
        (aside / "second").write_text("half")
        raise RuntimeError("killed")


def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path) -> None:
    with folder_aside(tmp_path / "day") as aside:
        (aside / "first").write_text("whole")
    with pytest.raises(RuntimeError, match="killed"):
        _write_and_fail(tmp_path / "day")
    assert [path.name for path in tmp_path.iterdir()] == ["day"]
    assert [path.name for path in (tmp_path / "day").iterdir()] == ["first"]


def test_leftovers_of_a_killed_writer_are_removed_and_named(tmp_path: Path) -> None:
    (tmp_path / ".aside-day-1").mkdir()
    (tmp_path / ".aside-day-1" / "file").touch()
    (tmp_path / ".aside-file-2").touch()
    (tmp_path / "day").mkdir()
    assert remove_leftovers(tmp_path) == [".aside-day-1", ".aside-file-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["day"]
    assert remove_leftovers(tmp_path / "none") == []


def test_a_folder_is_made_or_the_option_that_chose_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        make_folder(tmp_path / "a" / "b", option="plan.out")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"^plan\.out=.*file cannot be written \(File exists\): choose another folder"
    ):
        make_folder(tmp_path / "file", option="plan.out")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match=r"b cannot be written \(Permission denied\)"):
        make_folder(tmp_path / "a" / "b", option="plan.out")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"1\n2\n3\n4\n", b"1\n2\n"),
        (b"1\n2\n3\n4", b"1\n2\n"),
        (b"1\n2\n", b"1\n2\n"),
        (b"4\n5\n", b""),
        (b"1", b""),
    ],
)
def test_the_end_of_a_log_is_cut_back_to_the_last_line_to_keep(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "log"
    cut_lines(path, keep=lambda line: True)
    assert not path.exists()
    path.write_bytes(before)
    cut_lines(path, keep=lambda line: int(line) <= 2)
    assert path.read_bytes() == after

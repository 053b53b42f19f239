"""A package that was changed after export is refused, and the message names what was changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stack.base.errors import PackageError
from stack.export.package import open_package, read_manifest
from stack.export.sealed import MANIFEST, File, write_sealed
from tests.export.toy import MANIFEST_OF_TOY

TABLE = "rows/item/rows.npy"


@pytest.fixture
def package(toy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(toy, tmp_path / "package")


def test_an_untouched_package_opens_as_it_was_written(package: Path) -> None:
    manifest = open_package(package)
    assert msgspec.structs.replace(manifest, files={}, digest="") == MANIFEST_OF_TOY
    assert TABLE in manifest.files
    assert MANIFEST not in manifest.files


def flip_a_bit(package: Path) -> None:
    data = bytearray((package / TABLE).read_bytes())
    data[-3] ^= 1
    (package / TABLE).write_bytes(data)


def link_out(package: Path) -> None:
    target = package.parent / "item.npy"
    (package / TABLE).rename(target)
    (package / TABLE).symlink_to(target)


def link_folder_out(package: Path) -> None:
    (package / "rows").rename(package.parent / "rows")
    (package / "rows").symlink_to(package.parent / "rows")


def list_file(name: str) -> Callable[[Path], None]:
    def tamper(package: Path) -> None:
        manifest = read_manifest(package)
        files = {**manifest.files, name: File(num_bytes=1, sha256="")}
        write_sealed(package, msgspec.structs.replace(manifest, files=files))

    return tamper


def change(field: bytes, value: bytes) -> Callable[[Path], None]:
    def tamper(package: Path) -> None:
        data = (package / MANIFEST).read_bytes()
        assert field in data
        (package / MANIFEST).write_bytes(data.replace(field, value))

    return tamper


def rename_table(package: Path) -> None:
    manifest = read_manifest(package)
    write_sealed(package, msgspec.structs.replace(manifest, tables={"../up": manifest.tables["item"]}))


def move_graph(name: str) -> Callable[[Path], None]:
    def tamper(package: Path) -> None:
        manifest = read_manifest(package)
        graphs = {"user_half": msgspec.structs.replace(manifest.graphs["user_half"], files={"onnx": name})}
        write_sealed(package, msgspec.structs.replace(manifest, graphs=graphs))

    return tamper


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "bit flip": (flip_a_bit, "'rows/item/rows.npy' is damaged: its sha256"),
    "truncated": (lambda p: (p / TABLE).write_bytes(b"x"), "'rows/item/rows.npy' has 1 bytes, manifest.json says 152"),
    "missing": (lambda p: (p / TABLE).unlink(), "'rows/item/rows.npy' is missing"),
    "extra": (lambda p: (p / "x.so").write_bytes(b""), "'x.so' is not listed in manifest.json"),
    "linked file": (link_out, "'rows/item/rows.npy' is not a plain file inside the package"),
    "linked folder": (link_folder_out, "'rows' is not listed in manifest.json"),
    "parent": (list_file("../outside"), "refused the file name '../outside'"),
    "absolute": (list_file("/etc/passwd"), "refused the file name '/etc/passwd'"),
    "nul": (list_file("a\0b"), r"refused the file name 'a\\x00b'"),
    "table": (rename_table, "table '../up' cannot be a package's name"),
    "graph elsewhere": (move_graph("../graph.onnx"), "refused the file name '../graph.onnx'"),
    "graph not listed": (move_graph("graphs/other.onnx"), "'graphs/other.onnx', of graph 'user_half', is not among"),
    "hidden": (list_file(".hidden"), "refused the file name '.hidden'"),
    "manifest": (change(b'"run": "toy"', b'"run": "top"'), "manifest.json was changed: its digest is"),
    "no json": (lambda p: (p / MANIFEST).write_bytes(b"\xff{"), "manifest.json cannot be read"),
    "later format": (change(b'"format_version": 2', b'"format_version": 3'), "format version 3, this code reads 2: "),
    "unknown field": (change(b'"max_history"', b'"max_histories"'), "manifest.json is not of its kind: Object"),
    "no manifest": (lambda p: (p / MANIFEST).unlink(), "it has no manifest.json; write one with: stack export"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_package_is_refused_by_name(package: Path, name: str) -> None:
    tamper, text = TAMPERED[name]
    tamper(package)
    with pytest.raises(PackageError, match=text):
        open_package(package)


def test_nobody_but_the_owner_may_write_in_a_package_whatever_the_umask_was(package: Path) -> None:
    paths = [package, *package.rglob("*")]
    for path in paths:
        path.chmod(0o777 if path.is_dir() else 0o666)
    write_sealed(package, read_manifest(package))
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o755, 0o644}

"""Folders that are what they were when they were written: packages and row deltas.

One is complete once `manifest.json` is in it. That lists every other file with its size and sha256, and has a digest of
itself; a signature (`stack.export.sign`) may lie beside it.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from stack.base.errors import PackageError
from stack.base.files import sha256_of
from stack.export.sign import SIGNATURE, sign, write_signature

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
"""What packages, deltas, and files in them may be called."""
_PATH = re.compile(rf"{NAME}(/{NAME}){{0,3}}")
_CHECK_THREADS = 4


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and digest of one file of the package."""

    num_bytes: int
    sha256: str


class Sealed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A manifest: files with their digests, and the sha256 of itself, encoded with an empty digest."""

    format_version: int
    files: dict[str, File] = {}
    digest: str = ""


M = TypeVar("M", bound=Sealed)


def refuse_name(name: str, *, what: str) -> str:
    """The name itself. Raises: `PackageError` where it could lead out of a folder, or is too long to show."""
    if not re.fullmatch(NAME, name):
        raise PackageError(
            f"{what} {name[:80]!r} cannot be a package's name: it must match {NAME} (letters, digits, '_', '.', '-')"
        )
    return name


def refuse_path(name: str, folder: Path) -> None:
    """Raises: `PackageError` where the name of a file could lead out of the package `folder`."""
    if not _PATH.fullmatch(name):
        raise PackageError(
            f"package {folder}: refused the file name {name[:80]!r}: not a plain name inside the package"
        )


def describe_files(folder: Path) -> dict[str, File]:
    """Size and sha256 of every file under `folder`, by its name relative to it."""
    return {
        name: File(num_bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in sorted(_walk(folder, folder))
    }


def check_files(folder: Path, files: Mapping[str, File]) -> None:
    """Compares a folder with what its manifest lists. Raises: `PackageError` naming the first file that differs."""
    for name in files:
        refuse_path(name, folder)
    for name in sorted(set(_walk(folder, folder)) - set(files) - {MANIFEST, SIGNATURE}):
        raise PackageError(f"package {folder}: {name!r} is not listed in {MANIFEST}: remove it, or export again")
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        list(pool.map(lambda one: _check(folder, *one), files.items()))


def read_sealed(folder: Path, kind: type[M]) -> M:
    """A manifest of some kind, its format and its own digest checked."""
    path = folder / MANIFEST
    if not path.is_file():
        raise PackageError(f"no package at {folder}: it has no {MANIFEST}; write one with: stack export run.name=<run>")
    data = path.read_bytes()
    try:
        manifest = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise PackageError(f"package {folder}: {_other_format(data)}{MANIFEST} is not of its kind: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"package {folder}: {MANIFEST} cannot be read: {error}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise PackageError(f"package {folder}: {_other_format(data)}export it again")
    digest = _digest(manifest)
    if digest != manifest.digest:
        raise PackageError(
            f"package {folder}: {MANIFEST} was changed: its digest is {digest}, it says {manifest.digest}"
        )
    return manifest


def write_sealed(folder: Path, manifest: M, *, sign_key: Path | None = None) -> M:
    """Writes and returns a manifest with its own digest in it, signed where there is a key. From here on nobody but the
    owner may write in the folder, whatever the umask is: servers refuse packages that others can change."""
    sealed = msgspec.structs.replace(manifest, digest=_digest(manifest))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=1))
    if sign_key is not None:
        write_signature(folder, sign((folder / MANIFEST).read_bytes(), sign_key))
    for path in (folder, *folder.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o022)
    return sealed


def _digest(manifest: Sealed) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))).hexdigest()


def _other_format(data: bytes) -> str:
    """Says so where a manifest is of another version of the format."""
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return f"format version {version}, this code reads {FORMAT_VERSION}: " if version != FORMAT_VERSION else ""


class _Version(msgspec.Struct):
    format_version: int


def _walk(folder: Path, root: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry, root)
        else:
            yield entry.relative_to(root).as_posix()


def _check(folder: Path, name: str, expected: File) -> None:
    path = folder / name
    if not path.exists() and not path.is_symlink():
        raise PackageError(f"package {folder}: {name!r} is missing")
    if not stat.S_ISREG(path.lstat().st_mode) or path.resolve() != folder.resolve() / name:
        raise PackageError(f"package {folder}: {name!r} is not a plain file inside the package")
    num_bytes = path.stat().st_size
    if num_bytes != expected.num_bytes:
        raise PackageError(f"package {folder}: {name!r} has {num_bytes} bytes, {MANIFEST} says {expected.num_bytes}")
    if sha256_of(path) != expected.sha256:
        raise PackageError(f"package {folder}: {name!r} is damaged: its sha256 is not the one in {MANIFEST}")

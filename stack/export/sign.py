"""Signatures of packages: a `.pt2` file is a program, so a server should load only what a key that it trusts signed.

    package/
      manifest.json       sizes and digests of all files
      signature.json      Signature of the bytes of manifest.json: it vouches for all that the manifest lists

ed25519 has a secret key, with which the exporter signs, and a public one, with which servers check; hmac-sha256 has one
secret for both, so who can check can sign. What a key is decides how it is used, never what a signature says of itself.

A signature does not make a package the newest: an old one stays signed. Check and read the same bytes, and let nobody
else write to the folder in between (`refuse_writable_by_others`).
"""

from __future__ import annotations

import binascii
import contextlib
import enum
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from stack.base.errors import ConfigError, PackageError
from stack.base.files import write_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "signature.json"
_PEM = b"-----BEGIN "
_MIN_SECRET_BYTES = 32
_MAX_FILE_BYTES = 1 << 16


class Algorithm(enum.Enum):
    """How a manifest is signed."""

    ed25519 = "ed25519"
    """A secret key signs, a public one checks (RFC 8032)."""
    hmac_sha256 = "hmac-sha256"
    """One secret does both (RFC 2104)."""


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`key_id`: first 16 hex digits of the sha256 of the raw public key, or of the sha256 of the HMAC secret. `value`
    is in hex."""

    algorithm: Algorithm
    key_id: str
    value: str


def sign(manifest_bytes: bytes, key_file: Path) -> Signature:
    """Signs with the secret in `key_file`: an ed25519 key as unencrypted PEM (PKCS 8), or at least 32 bytes in hex.

    Raises: `PackageError` where the file cannot be read, is open to others or holds no such key; `ConfigError` where
    an ed25519 key needs the package cryptography and it is missing.
    """
    data = _read_secret(key_file)
    if not data.startswith(_PEM):
        secret = _hmac_secret(data, key_file)
        value = hmac.digest(secret, manifest_bytes, "sha256")
        return Signature(algorithm=Algorithm.hmac_sha256, key_id=_hmac_id(secret), value=value.hex())
    private = _private_key(data, key_file)
    raw = private.public_key().public_bytes_raw()
    return Signature(algorithm=Algorithm.ed25519, key_id=_id(raw), value=private.sign(manifest_bytes).hex())


def check(manifest_bytes: bytes, signature: Signature, trusted: Sequence[Path]) -> None:
    """Returns where one of the `trusted` key files (public PEM, or HMAC secrets) made the signature of these bytes.

    Raises: `PackageError` for a key that is not trusted, an algorithm that is not the key's, a wrong signature, or a
    key file that cannot be used; `ConfigError` as `sign`.
    """
    keys = [_trusted_key(file) for file in trusted]
    key = next((key for key in keys if key.key_id == signature.key_id), None)
    if key is None:
        known = ", ".join(key.key_id for key in keys) or "none"
        raise PackageError(
            f"the package is signed with the key {signature.key_id[:16]!r}, which is not trusted; trusted: {known}"
        )
    if signature.algorithm is not key.algorithm:
        raise PackageError(
            f"the package's signature says {signature.algorithm.value}, but its key {key.key_id} ({key.file}) is for "
            f"{key.algorithm.value}: sign it again"
        )
    try:
        value = bytes.fromhex(signature.value)
    except ValueError:
        value = b""
    if not key.made(value, manifest_bytes):
        raise PackageError(
            f"the package's signature is wrong: the key {key.key_id} ({key.file}) did not sign this manifest; it was "
            "changed after signing: export it again, or get it again from where it was signed"
        )


def write_signature(folder: Path, signature: Signature) -> None:
    """Puts the signature into a package, whole or not at all, in place of one that is there."""
    write_bytes(folder / SIGNATURE, msgspec.json.format(msgspec.json.encode(signature), indent=1))


def read_signature(folder: Path) -> Signature:
    """The signature in a package.

    Raises: `PackageError` where there is none, or it is damaged.
    """
    path = folder / SIGNATURE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES)
        return msgspec.json.decode(data, type=Signature)
    except FileNotFoundError as error:
        raise PackageError(f"package {folder} is not signed: it has no {SIGNATURE}; sign it first") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"package {folder}: {SIGNATURE} cannot be read: {error}") from error


def make_keys(folder: Path, algorithm: Algorithm) -> tuple[Path, Path]:
    """Makes a new key in `folder`; the files of the secret and of the public half, which for HMAC are the same file.
    Both can be read by this user alone; give servers a copy of the second.

    Raises: `PackageError` where a file is there already, or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if algorithm is Algorithm.hmac_sha256:
            secret = _write_new(folder / "package-hmac.key", secrets.token_hex(_MIN_SECRET_BYTES).encode() + b"\n")
            return secret, secret
        secret_pem, public_pem = _new_ed25519()
        secret = _write_new(folder / "package-ed25519.key.pem", secret_pem)
        try:
            return secret, _write_new(folder / "package-ed25519.pub.pem", public_pem)
        except OSError:
            secret.unlink()
            raise
    except FileExistsError as error:
        raise PackageError(f"{error.filename} exists: keys are not overwritten; choose another folder") from error
    except OSError as error:
        raise PackageError(f"no keys can be made in {folder} ({error.strerror}): choose another folder") from error


def refuse_writable_by_others(folder: Path) -> None:
    """Walks a package: all in it, and the folder, belongs to this user or root, and nobody else can write to it.

    A link to the folder is followed, so resolve it once and use that path for all; its parents are not looked at, and
    neither are access control lists.

    Raises: `PackageError` naming the first, in the order of names, that is not so, or that is a link or a device.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise PackageError(f"no package at {folder}: it is not a folder")
    for path in _walk(root):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise PackageError(f"package {folder}: {str(path)!r} is neither a plain file nor a folder: remove it")
        if status.st_mode & 0o022:
            raise PackageError(
                f"package {folder}: {str(path)!r} can be written by others (mode {stat.S_IMODE(status.st_mode):04o}), "
                f"and a package is a program: chmod -R go-w {root}"
            )
        if status.st_uid not in (os.geteuid(), 0):
            raise PackageError(
                f"package {folder}: {str(path)!r} belongs to user {status.st_uid}, not to this one ({os.geteuid()}) or "
                f"root, and a package is a program: chown -R {os.geteuid()} {root}"
            )


def _walk(path: Path) -> Iterator[Path]:
    """`path` before what is in it, so that a folder is judged before it is read. Links are not followed."""
    yield path
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            yield from _walk(entry)


@dataclass(frozen=True, kw_only=True)
class _Key:
    """A trusted key: either the HMAC secret or the public key."""

    file: Path
    key_id: str
    secret: bytes = b""
    public: Ed25519PublicKey | None = None

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.hmac_sha256 if self.public is None else Algorithm.ed25519

    def made(self, value: bytes, message: bytes) -> bool:
        """Whether this key made the signature `value` of `message`."""
        if self.public is None:
            return hmac.compare_digest(value, hmac.digest(self.secret, message, "sha256"))
        from cryptography.exceptions import InvalidSignature

        try:
            self.public.verify(value, message)
        except InvalidSignature:
            return False
        return True


def _trusted_key(file: Path) -> _Key:
    data, status = _read(file)
    if data.startswith(_PEM):
        _refuse_mode(file, status, 0o022, "could be exchanged by others", "go-w")
        public = _public_key(data, file)
        return _Key(file=file, key_id=_id(public.public_bytes_raw()), public=public)
    _refuse_mode(file, status, 0o077, "is open to others", "600")
    secret = _hmac_secret(data, file)
    return _Key(file=file, key_id=_hmac_id(secret), secret=secret)


def _id(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _hmac_id(secret: bytes) -> str:
    return _id(hashlib.sha256(secret).digest())


def _hmac_secret(data: bytes, file: Path) -> bytes:
    try:
        secret = binascii.unhexlify(data.strip())
    except binascii.Error:
        secret = b""
    if len(secret) < _MIN_SECRET_BYTES:
        raise PackageError(
            f"the key file {file} holds neither an ed25519 key as PEM nor at least {_MIN_SECRET_BYTES} bytes in hex"
        )
    return secret


def _private_key(data: bytes, file: Path) -> Ed25519PrivateKey:
    with _needs_cryptography():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    try:
        key = load_pem_private_key(data, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PackageError(f"the key file {file} holds no secret ed25519 key as PEM without a password")
    return key


def _public_key(data: bytes, file: Path) -> Ed25519PublicKey:
    with _needs_cryptography():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise PackageError(f"the trusted key file {file} holds no public ed25519 key as PEM; secret ones stay at home")
    return key


def _new_ed25519() -> tuple[bytes, bytes]:
    with _needs_cryptography():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    return (
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


@contextlib.contextmanager
def _needs_cryptography() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            "ed25519 signatures need the package cryptography: pip install cryptography, or use hmac-sha256"
        ) from error


def _read_secret(file: Path) -> bytes:
    data, status = _read(file)
    _refuse_mode(file, status, 0o077, "is open to others", "600")
    return data


def _read(file: Path) -> tuple[bytes, os.stat_result]:
    """The content of a key file, and what the system says of the file it came from."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # does not wait for a pipe's writer
        with open(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            return opened.read(_MAX_FILE_BYTES) if stat.S_ISREG(status.st_mode) else b"", status
    except OSError as error:
        raise PackageError(f"the key file {file} cannot be read ({error.strerror}): name a key's file") from error


def _refuse_mode(file: Path, status: os.stat_result, forbidden: int, what: str, mode: str) -> None:
    if status.st_mode & forbidden:
        raise PackageError(f"the key file {file} {what} (mode {stat.S_IMODE(status.st_mode):04o}): chmod {mode} {file}")
    if status.st_uid not in (os.geteuid(), 0):
        raise PackageError(
            f"the key file {file} belongs to user {status.st_uid}, not to {os.geteuid()} or root: use your own key"
        )


def _write_new(path: Path, data: bytes) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    return path

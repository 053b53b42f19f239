"""Bearer tokens out of a file that only its owner reads. They can be exchanged while the server runs.

    # who has it: the ranking service, since March
    9rT3v...

One token a line, of at least 16 printable ASCII characters without spaces; `#` begins a comment line. To rotate, add
the new token, move the callers to it, take the old one out. No token is in any message.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from stack.base.errors import ConfigError
from stack.telemetry.console import say

_TOKEN = re.compile(rb"[!-~]{16,}")
_SCHEME = "bearer "
_LOOK_SECONDS = 1.0
_MAX_BYTES = 1 << 20

_Stamp = tuple[int, int, int, int]
"""Modification and change time (ns), size and inode: another one means that content or mode may have changed."""


class Tokens:
    """Says who may ask. `path=None` lets everyone."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the file. `clock` gives seconds.

        Raises: `ConfigError` where it cannot be read, others may read or write it, or a line is no token.
        """
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp = None if path is None else _stamp(path)
        self._digests = [] if path is None else _read(path)

    def allows(self, authorization_header: str | None) -> bool:
        """Whether a request with this `Authorization` header (None: it has none) may be answered.

        Every token is compared, in a time that tells nothing of them. Looks at the file at most once a second; one that
        became bad is said once, and the tokens read before it stay valid until it is mended.
        """
        if self._path is None:
            return True
        self._look(self._path)
        given = authorization_header or ""
        if given[: len(_SCHEME)].lower() != _SCHEME or not given.isascii():
            return False
        digest = hashlib.sha256(given[len(_SCHEME) :].strip(" ").encode()).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _look(self, path: Path) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._digests = _read(path)
        except ConfigError as error:
            say(f"{error}; the {len(self._digests)} tokens read before it stay valid")
        else:
            say(f"{path} was changed: {len(self._digests)} tokens are valid now")


def generate_token() -> str:
    """A new token of 256 random bits, 43 characters."""
    return secrets.token_urlsafe(32)


def _stamp(path: Path) -> _Stamp | None:
    """None where there is no file. Taken before the file is read, so a change during the reading is seen later."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _read(path: Path) -> list[bytes]:
    """The sha256 of each token.

    Raises: `ConfigError` as the class says.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # does not wait for a pipe's writer
        with open(descriptor, "rb") as file:
            _refuse_open_to_others(path, os.fstat(descriptor))
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be read ({error.strerror}): name a file of tokens") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"the token file {path} has more than {_MAX_BYTES} bytes: is it the right one?")
    digests = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"line {number} of the token file {path} is no token: write at least 16 printable ASCII characters "
                "without spaces, or begin a comment with #"
            )
        digests.append(hashlib.sha256(token).digest())
    if not digests:
        raise ConfigError(f"the token file {path} has no token, so nobody could ask: write one a line")
    return digests


def _refuse_open_to_others(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"the token file {path} is not a plain file: name a file of tokens")
    if status.st_mode & 0o077:
        raise ConfigError(
            f"the token file {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"the token file {path} belongs to user {status.st_uid}, not to this one ({os.geteuid()}) or root: "
            f"chown {os.geteuid()} {path}"
        )

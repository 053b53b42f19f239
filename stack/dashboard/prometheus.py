"""What the page may ask of Prometheus: three paths, with bounds on what they take. All else is refused here."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

PATHS = {
    "query": frozenset({"query", "time"}),
    "query_range": frozenset({"query", "start", "end", "step"}),
    "alerts": frozenset[str](),
}
"""Of /api/v1: the parameters that each takes, all of which are to be given."""
MAX_QUERY_CHARACTERS = 4_000
MAX_POINTS = 2_000
_BLOCK_BYTES = 1 << 16


class RefusedError(Exception):
    """A question that is not passed on; its text is for the page."""


class UnreachableError(Exception):
    """Prometheus did not answer, or not in a way that can be passed on."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What Prometheus said: JSON, also where the status is an error."""

    status: int
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """A fixed address that is asked with GET; redirects are not followed, and no proxy of the environment is used."""

    address: str
    timeout_seconds: float
    max_answer_bytes: int

    def ask(self, name: str, parameters: Sequence[tuple[str, str]]) -> Answer:
        """Blocks for as long as the time limit at most.

        Raises: `RefusedError` for what `PATHS` and the bounds do not allow, `UnreachableError`.
        """
        _check(name, dict(parameters), num_given=len(parameters))
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname is not None
        connection = kind(parts.hostname, parts.port, timeout=self.timeout_seconds)
        limit = [("timeout", f"{round(1000 * self.timeout_seconds)}ms")] if parameters else []
        target = f"{parts.path.rstrip('/')}/api/v1/{name}?{urlencode([*parameters, *limit])}"
        try:
            connection.request("GET", target, headers={"accept": "application/json"})
            with connection.getresponse() as response:
                return self._read(response, deadline=time.monotonic() + self.timeout_seconds)
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise UnreachableError(f"Prometheus at {self.address} does not answer: {said}") from error
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse, *, deadline: float) -> Answer:
        if "json" not in response.headers.get("content-type", ""):
            raise UnreachableError(
                f"what answers at {self.address} is not Prometheus: status {response.status} without JSON"
            )
        body = bytearray()
        while block := response.read1(_BLOCK_BYTES):
            body += block
            if len(body) > self.max_answer_bytes:
                raise UnreachableError(
                    f"the answer has more than {self.max_answer_bytes} bytes: choose one run or a shorter range, or "
                    "raise dashboard.max_answer_bytes"
                )
            if time.monotonic() > deadline:
                raise UnreachableError(f"the answer took longer than {self.timeout_seconds} s")
        return Answer(status=response.status, body=bytes(body))


def _check(name: str, given: dict[str, str], *, num_given: int) -> None:
    if name not in PATHS:
        raise RefusedError(f"only {', '.join(PATHS)} are asked for")
    if given.keys() != PATHS[name] or num_given != len(given):
        raise RefusedError(f"{name} takes {', '.join(sorted(PATHS[name])) or 'no parameter'}, each once")
    if len(given.get("query", "")) > MAX_QUERY_CHARACTERS:
        raise RefusedError(f"the query has {len(given['query'])} characters: at most {MAX_QUERY_CHARACTERS} are taken")
    numbers = {key: _number(key, value) for key, value in given.items() if key != "query"}
    if name == "query_range":
        span, step = numbers["end"] - numbers["start"], numbers["step"]
        if step <= 0 or span < 0 or span / step > MAX_POINTS:
            raise RefusedError(f"{span:g} seconds in steps of {step:g}: from 1 to {MAX_POINTS} steps are taken")


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e12:
        raise RefusedError(f"{key}={text[:40]!r} is no number of seconds")
    return value

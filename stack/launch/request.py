"""What follows `stack launch`, taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.base.errors import ConfigError, UnknownNameError

VERBS = ("ingest", "train", "daily", "evaluate", "export", "serve")
DRY_RUN = "--dry-run"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was typed: the verb to launch, the options that describe the job, and whether to show it only."""

    verb: str
    options: list[str]
    dry_run: bool


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the job is to find and leave things: its run folder and name, the buckets of its data (None where they are
    not seen from here), and where `stack serve` listens."""

    folder: Path
    name: str
    num_buckets: int | None
    serve_host: str
    serve_port: int


def read_request(words: Sequence[str]) -> Request:
    """Takes the words after `stack launch` apart.

    Raises: `ConfigError` where there is no verb, or one that is not for launching.
    """
    for flag in ("--multirun", "-m"):
        if flag in words:
            raise ConfigError(f"stack launch starts one job at a time: leave out {flag}, or launch it for each value")
    if not words or words[0].startswith("-") or "=" in words[0]:
        raise ConfigError(f"stack launch needs a verb first, as in `stack launch train`; known: {', '.join(VERBS)}")
    if words[0] not in VERBS:
        raise UnknownNameError("verb to launch", words[0], VERBS)
    options = [word for word in words[1:] if word != DRY_RUN]
    return Request(verb=words[0], options=options, dry_run=DRY_RUN in words)

"""What a Prometheus knows, by its HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import msgspec

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One series at one time."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Asked:
    """`address` is its host and port."""

    address: str

    def query(self, expression: str) -> list[Sample]:
        """The instant vector of now. Raises: `HTTPError` where the expression is wrong."""
        found = self._get("query", query=expression)["result"]
        return [Sample(labels=one["metric"], value=float(one["value"][1])) for one in found]

    def up(self) -> dict[tuple[str, str, str], bool]:
        """Whether it can be scraped, by role, run and rank of each target."""
        return {
            tuple(one.labels.get(name, "") for name in ("role", "run", "rank")): one.value == 1  # type: ignore[misc]
            for one in self.query('up{job="stack"}')
        }

    def alerts(self) -> list[Mapping[str, Any]]:
        """Those pending or firing: labels, annotations, state."""
        found: list[Mapping[str, Any]] = self._get("alerts")["alerts"]
        return found

    def _get(self, what: str, **words: str) -> Any:
        url = f"http://{self.address}/api/v1/{what}?{urlencode(words)}"
        with urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            return msgspec.json.decode(answer.read())["data"]

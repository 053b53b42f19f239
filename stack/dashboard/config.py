"""Options of `stack dashboard`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class DashboardConfig:
    host: str = "127.0.0.1"
    # address to listen on; whoever reaches it sees everything that Prometheus knows
    port: int = 8080
    # TCP port; 0 takes a free one
    prometheus: str = "http://127.0.0.1:9090"
    # address of Prometheus, as this machine reaches it: browsers ask the page's server, which asks there
    scrape_seconds: float = 5.0
    # Prometheus' scrape_interval: rates are over four of them or more
    timeout_seconds: float = 10.0
    # an answer of Prometheus that takes longer is given up
    max_answer_bytes: int = 16 << 20
    # a larger answer of Prometheus is given up

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"dashboard.port={self.port} must be 0 (any free port) to 65535")
        for name in ("scrape_seconds", "timeout_seconds", "max_answer_bytes"):
            value: float = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"dashboard.{name}={value} must be above 0")
        _check_address(self.prometheus)


def _check_address(address: str) -> None:
    """One http(s) address, maybe with the path that Prometheus is under, and nothing that would be sent with it."""
    hint = "write it as http://host:port"
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"dashboard.prometheus={address!r} is no address ({error}): {hint}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"dashboard.prometheus={address!r} is no http or https address: {hint}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"dashboard.prometheus has a user, a query or a fragment, which is not sent: {hint}")

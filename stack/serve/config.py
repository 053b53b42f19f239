"""Options of `stack serve`."""

from __future__ import annotations

from dataclasses import dataclass

from stack.base.errors import ConfigError


@dataclass(kw_only=True)
class ServeConfig:
    package: str = ""
    # folder that `stack export` wrote
    host: str = "127.0.0.1"
    # address to listen on; the routes ask for no password, so think before opening them to a network
    port: int = 8000
    # TCP port; 0 takes a free one
    max_body_bytes: int = 8 << 20
    # larger bodies are refused
    body_timeout_seconds: float = 10.0
    # slower bodies are refused
    max_candidates: int = 10_000
    # candidates in one request
    max_ids: int = 64
    # ids in one multi-valued feature of one event or candidate
    shutdown_seconds: float = 10.0
    # requests under way may take this long after a stop signal

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"serve.port={self.port} must be 0 (any free port) to 65535")
        for name in ("max_body_bytes", "body_timeout_seconds", "max_candidates", "max_ids", "shutdown_seconds"):
            value: float = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"serve.{name}={value} must be above 0")

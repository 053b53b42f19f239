"""Options of `stack serve`."""

from __future__ import annotations

from dataclasses import dataclass, field

from stack.base.errors import ConfigError
from stack.export.package import GraphFormat
from stack.serve.cache import CacheKind

MIN_LMDB_MIB = 4


@dataclass(kw_only=True)
class ServeConfig:
    package: str = ""
    # folder that `stack export` wrote; others are loaded, by name, from the folder that it lies in
    host: str = "127.0.0.1"
    # address to listen on; without serve.read_tokens whoever reaches it is answered
    port: int = 8000
    # TCP port; 0 takes a free one
    workers: int = 0
    # processes that answer; 0: one for each core
    graph_format: GraphFormat | None = None
    # onnx or aoti; null: the first that the package has
    read_tokens: str | None = None
    # file of bearer tokens that requests must have one of, a line each, mode 600; null: none is asked for
    admin_host: str = "127.0.0.1"
    # address of the routes that load, switch and measure
    admin_port: int = 8001
    # its TCP port; 0 takes a free one
    admin_tokens: str | None = None
    # file of bearer tokens of those routes; null: one is made for this run, and its file named at start
    trusted_keys: list[str] = field(default_factory=list)
    # files of the keys whose signatures are accepted; empty: packages need no signature
    keep_versions: int = 3
    # versions that stay loaded, for a rollback that waits for nothing
    max_deltas: int = 8
    # row deltas on a package, above which they are merged in the background
    max_in_flight: int = 64
    # requests that a worker reads or answers at once; more are refused with 429
    max_body_bytes: int = 8 << 20
    # larger bodies are refused
    body_timeout_seconds: float = 10.0
    # slower bodies are refused
    max_candidates: int = 10_000
    # candidates in one request
    max_ids: int = 64
    # ids in one multi-valued feature of one event or candidate
    cache: CacheKind = CacheKind.lmdb
    # where vectors of users who are named in requests are kept: none; lmdb, a file of this server, which ends with it;
    # redis, for several servers
    cache_mib: int = 256
    # of lmdb; the oldest go first
    cache_max_age_seconds: float = 300.0
    # older vectors are not used
    redis_url: str = "redis://127.0.0.1:6379/0"
    # of redis
    record: str | None = None
    # folder to record requests in, with their answers, for `stack audit` to replay; null records none. Its files hold
    # users' ids and what they did, and are their owner's alone
    record_share: float = 0.01
    # of the requests, drawn at random
    record_mib: int = 256
    # of all files in the folder; then no more is recorded
    shutdown_seconds: float = 10.0
    # requests under way may take this long after a stop signal

    def __post_init__(self) -> None:
        for name in ("port", "admin_port"):
            port: int = getattr(self, name)
            if not 0 <= port <= 65_535:
                raise ConfigError(f"serve.{name}={port} must be 0 (any free port) to 65535")
        if self.workers < 0:
            raise ConfigError(f"serve.workers={self.workers} must be 0 (one for each core) or more")
        if self.keep_versions < 1:
            raise ConfigError(f"serve.keep_versions={self.keep_versions} must be at least 1")
        if self.cache is CacheKind.lmdb and self.cache_mib < MIN_LMDB_MIB:
            raise ConfigError(
                f"serve.cache_mib={self.cache_mib} must be at least {MIN_LMDB_MIB}; serve.cache=none has none"
            )
        if not 0 <= self.record_share <= 1:
            raise ConfigError(f"serve.record_share={self.record_share} must be a share, from 0 to 1")
        for name in (
            "max_body_bytes", "body_timeout_seconds", "max_candidates", "max_ids", "shutdown_seconds", "max_in_flight",
            "cache_max_age_seconds", "max_deltas", "record_mib",
        ):  # fmt: skip
            value: float = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"serve.{name}={value} must be above 0")

"""Options of a server that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from stack.base.errors import ConfigError
from stack.serve.cache import CacheKind
from stack.serve.config import MIN_LMDB_MIB, ServeConfig
from stack.serve.lmdb_cache import MIN_BYTES


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"port": 65_536}, "serve.port=65536 must be 0 .* to 65535"),
        ({"admin_port": -1}, "serve.admin_port=-1 must be 0"),
        ({"workers": -1}, "serve.workers=-1 must be 0"),
        ({"keep_versions": 0}, "serve.keep_versions=0 must be at least 1"),
        ({"cache_mib": 3}, "serve.cache_mib=3 must be at least 4; serve.cache=none has none"),
        ({"max_candidates": 0}, "serve.max_candidates=0 must be above 0"),
        ({"body_timeout_seconds": 0.0}, "serve.body_timeout_seconds=0.0 must be above 0"),
    ],
)
def test_an_option_outside_its_range_is_named_with_its_limit(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ServeConfig(**options)


def test_the_smallest_cache_is_the_smallest_file() -> None:
    assert MIN_LMDB_MIB << 20 == MIN_BYTES
    assert ServeConfig(cache_mib=MIN_LMDB_MIB).cache is CacheKind.lmdb
    assert ServeConfig(cache=CacheKind.none, cache_mib=0).cache_mib == 0

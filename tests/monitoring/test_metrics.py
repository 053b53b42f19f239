"""What Prometheus' own linter says of every metric, and what a server's scrape costs."""

from __future__ import annotations

import inspect

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stack.telemetry import metrics
from tests.monitoring.conftest import Tool

CLASSES = [
    one for _, one in inspect.getmembers(metrics, inspect.isclass) if one.__module__ == metrics.__name__
]  # fmt: skip


def filled(registry: CollectorRegistry, owner: object) -> int:
    """Gives every metric of `owner` a value, with labels where it has them; how many there are."""
    found = [one for one in vars(owner).values() if isinstance(one, Counter | Gauge | Histogram)]
    for metric in found:
        names = metric._labelnames
        one = metric.labels(*("x" for _ in names)) if names else metric
        if isinstance(one, Histogram):
            one.observe(0.1)
        else:
            one.inc()
    return len(found)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_names_kinds_and_helps_are_as_prometheus_wants_them(tool: Tool, kind: type) -> None:
    registry = CollectorRegistry()
    assert filled(registry, kind(registry)) >= 7
    registered = {metric.name for metric in registry.collect()}
    assert len(registered) == len(vars(kind(CollectorRegistry())))
    assert tool("promtool", "check", "metrics", given=_without_created(registry)) == ""


def _without_created(registry: CollectorRegistry) -> str:
    """The client's own series of when others began are no names of ours."""
    lines = generate_latest(registry).decode().splitlines(keepends=True)
    return "".join(line for line in lines if "_created" not in line)

"""The panels: what they ask is declared, what is declared is asked, and each answer is asked for as its kind needs."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

from stack.dashboard.boards import BOARDS
from stack.dashboard.panels import Board, Kind, Panel, Query
from stack.telemetry.metrics import AuditMetrics, DailyMetrics, ServerMetrics, TrainMetrics, WorkerMetrics
from tools.monitor.asked import Asked

OTHERS = {"up", "process_resident_memory_bytes"}
"""What Prometheus and its client tell by themselves."""
NOT_SHOWN = {"stack_daily_last_end_timestamp_seconds"}
"""The end of a run that failed: alerts alone ask for it."""
AS_THEY_STAND = {"stack_telemetry_errors_total"}
"""Counters whose first count may precede all scrapes, which no increase sees."""
NAME = re.compile(r"\b(?:stack_\w+|up|process_\w+)\b(?=\{)")
QUERIES = [(board, panel, query) for board in BOARDS for panel in board.panels for query in panel.queries]
IDS = [f"{board.name}-{panel.title}-{query.legend}" for board, panel, query in QUERIES]


def kinds() -> dict[str, str]:
    """Every declared metric's kind by its name in PromQL (of a histogram, its buckets, sum and count)."""
    registry = CollectorRegistry()
    for declared in (TrainMetrics, DailyMetrics, AuditMetrics, ServerMetrics, WorkerMetrics):
        declared(registry)
    found = {}
    for family in registry.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {f"{family.name}{ending}": family.type for ending in endings}
    return found


def filled(expression: str, *, run: str = ".*", range_seconds: int = 3600) -> str:
    """With what Grafana and the page put in."""
    return (
        expression.replace("$__rate_interval", "60s").replace("$__range", f"{range_seconds}s").replace("$run", run)
    )  # fmt: skip


def test_there_are_five_boards_whose_panels_have_titles_of_their_own() -> None:
    assert [board.name for board in BOARDS] == ["training", "tables", "daily", "audits", "serving"]
    for board in BOARDS:
        titles = [panel.title for panel in board.panels]
        assert len(set(titles)) == len(titles) >= 10
        assert all(panel.look.endswith(".") and len(panel.look) <= 120 for panel in board.panels)


def test_every_metric_asked_for_is_declared_and_every_one_declared_is_shown() -> None:
    asked = {name for _, _, query in QUERIES for name in NAME.findall(query.expr)}
    declared = kinds()
    assert asked - OTHERS <= declared.keys()
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    shown = {name for name in declared if re.sub(r"_(bucket|sum|count)$", "", name) in stems}
    assert declared.keys() - shown == NOT_SHOWN


@pytest.mark.parametrize(("board", "panel", "query"), QUERIES, ids=IDS)
def test_counters_are_asked_for_as_rates_gauges_as_they_are_and_runs_are_kept(
    board: Board, panel: Panel, query: Query
) -> None:
    declared = kinds()
    for found in NAME.finditer(query.expr):
        name, before = found.group(), query.expr[: found.start()]
        rated = re.search(r"(rate|increase)\($", before) is not None
        counts = declared.get(name, "gauge") in ("counter", "histogram") and name not in AS_THEY_STAND
        assert rated == counts, name
        assert 'run=~"$run"' in query.expr[found.end() :].partition("}")[0]
    by_run = panel.kind is Kind.heatmap or "by (run" in query.expr
    assert by_run, query.expr
    assert "{{run}}" not in query.legend
    if "_bucket" in query.expr:
        assert re.search(r"by \((run, )?(route, )?le\)", query.expr)


@pytest.mark.parametrize(("board", "panel", "query"), QUERIES, ids=IDS)
def test_every_query_returns_data_from_a_real_prometheus_for_all_runs_and_for_one(
    asked: Asked, board: Board, panel: Panel, query: Query
) -> None:
    every = asked.query(filled(query.expr, range_seconds=board.range_seconds))
    one = asked.query(filled(query.expr, run="demo", range_seconds=board.range_seconds))
    assert every
    assert one
    assert {sample.labels.get("run", "demo") for sample in one} == {"demo"}
    used = set(re.findall(r"\{\{(\w+)\}\}", query.legend)) | set(panel.keys)
    assert all(used <= sample.labels.keys() for sample in every)
    assert not asked.query(filled(query.expr, run="nobody", range_seconds=board.range_seconds))

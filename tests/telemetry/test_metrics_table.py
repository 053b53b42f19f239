"""Names, kinds and labels of all metrics, and the page that tells them."""

from __future__ import annotations

import re

import pytest
from prometheus_client.metrics import MetricWrapperBase

from tools.metrics_table import HOLDERS, PAGE, metrics_of, name_of, with_table

ALL = [metric for kinds in HOLDERS.values() for kind in kinds for metric in metrics_of(kind)]
LABELS = {
    "route", "label", "code", "reason", "feature", "result", "kind", "task", "table", "phase", "level", "part", "layer",
    "percentile",
}  # fmt: skip


def test_the_page_has_the_table_of_now() -> None:
    assert PAGE.read_text() == with_table(PAGE.read_text()), "run: python -m tools.metrics_table"


def test_no_name_is_used_twice() -> None:
    names = [name_of(metric) for metric in ALL]
    assert len(names) == len(set(names)) > 60


@pytest.mark.parametrize("metric", ALL, ids=name_of)
def test_a_name_follows_the_conventions(metric: MetricWrapperBase) -> None:
    name = name_of(metric)
    assert re.fullmatch(r"stack_(train|serve|daily|audit|telemetry)(_[a-z]+)+", name)
    assert name.endswith("_total") == (metric._type == "counter")
    assert not re.search(r"milli|micro|minutes|hours|percent|_(kb|mib|gib|ms)(_|$)", name), "not a base unit"
    if metric._type == "histogram":
        assert name.endswith("_seconds")
    assert metric._documentation.endswith(".")
    assert set(metric._labelnames) <= LABELS, "labels have few values: no ids, no channels"

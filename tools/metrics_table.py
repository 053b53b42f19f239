"""The table of docs/metrics.md, from the metrics themselves: python -m tools.metrics_table

It goes between the marks of the page; `tests/telemetry/test_metrics_table.py` says where it is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from stack.base.files import write_text
from stack.telemetry.metrics import AuditMetrics, DailyMetrics, ServerMetrics, TrainMetrics, WorkerMetrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- made by tools.metrics_table -->\n", "<!-- until here -->\n"
HOLDERS: dict[str, tuple[Callable[[CollectorRegistry], object], ...]] = {
    "train": (TrainMetrics,),
    "serve": (ServerMetrics, WorkerMetrics),
    "daily": (DailyMetrics,),
    "audit": (AuditMetrics,),
}


def metrics_of(kind: Callable[[CollectorRegistry], object]) -> list[MetricWrapperBase]:
    """Every metric of a class, in the order declared."""
    return [one for one in vars(kind(CollectorRegistry())).values() if isinstance(one, MetricWrapperBase)]


def name_of(metric: MetricWrapperBase) -> str:
    """As Prometheus knows it; the buckets, sum and count of a histogram add their own ends."""
    return f"{metric._name}_total" if metric._type == "counter" else metric._name


def table() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "| name | kind | labels | what it says | who has it |"
    yield "|---|---|---|---|---|"
    for holder, kinds in HOLDERS.items():
        for metric in (one for kind in kinds for one in metrics_of(kind)):
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            yield f"| `{name_of(metric)}` | {metric._type} | {labels} | {metric._documentation} | {holder} |"


def with_table(page: str) -> str:
    """The page with the table of now."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    written = with_table(PAGE.read_text())
    sys.stdout.write("as it was\n" if written == PAGE.read_text() else f"{PAGE} has another table now\n")
    write_text(PAGE, written)

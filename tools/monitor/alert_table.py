"""The table of alerts in docs/monitoring.md, from the rules themselves: python -m tools.monitor.alert_table

It goes between the marks of the page; `tests/monitoring/test_docs.py` says where it is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from stack.base.files import write_text
from tools.monitor.copies import COMMITTED

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
BEGIN, END = "<!-- made by tools.monitor.alert_table -->\n", "<!-- until here -->\n"


def with_table(page: str) -> str:
    """The page with the table of now."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{chr(10).join(_lines())}\n{END}{rest.split(END)[1]}"


def _lines() -> Iterator[str]:
    yield "| alert | level | where | for |"
    yield "|---|---|---|---|"
    for group in yaml.safe_load((COMMITTED / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            name, page = rule["alert"], rule["annotations"]["runbook"].removeprefix("docs/")
            cells = (f"[{name}]({page})", rule["labels"]["severity"], f"`{_cell(rule['expr'])}`", rule.get("for", ""))
            yield f"| {' | '.join(cells)} |"


def _cell(expression: str) -> str:
    return expression.strip().replace("|", "\\|")


if __name__ == "__main__":
    write_text(PAGE, with_table(PAGE.read_text()))

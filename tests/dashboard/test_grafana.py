"""Grafana's files are what the panels say, and ask a real Prometheus for what it has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from stack.dashboard.boards import BOARDS
from stack.dashboard.panels import Kind
from tests.dashboard.test_panels import filled
from tools.dashboards.__main__ import FOLDER
from tools.dashboards.grafana import as_json
from tools.monitor.asked import Asked

NAMES = [board.name for board in BOARDS]


def committed(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def targets() -> Iterator[tuple[str, str, str]]:
    """Board, panel and expression of every question in the committed files."""
    for name in NAMES:
        for panel in committed(name)["panels"]:
            for target in panel["targets"]:
                yield name, panel["title"], target["expr"]


def test_generating_again_changes_nothing() -> None:
    assert {path.stem: path.read_text() for path in FOLDER.iterdir()} == {one.name: as_json(one) for one in BOARDS}


@pytest.mark.parametrize("name", NAMES)
def test_source_and_run_are_variables_and_dashboards_lead_to_each_other(name: str) -> None:
    told = committed(name)
    source, run = told["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (run["name"], run["type"], run["includeAll"], run["allValue"]) == ("run", "query", True, ".*")
    (link,) = told["links"]
    assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == ("dashboards", ["stack"], True, True)
    assert told["tags"] == ["stack"]
    assert told["uid"] == f"stack-{name}"
    for panel in told["panels"]:
        sources = {json.dumps(one["datasource"]) for one in (panel, *panel["targets"])}
        assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}


@pytest.mark.parametrize("board", BOARDS, ids=NAMES)
def test_panels_have_the_kind_and_words_of_their_source_and_do_not_overlap(board: Any) -> None:
    types = {Kind.line: "timeseries", Kind.stat: "stat", Kind.table: "table", Kind.heatmap: "heatmap"}
    told = committed(board.name)["panels"]
    assert [(one["title"], one["description"], one["type"]) for one in told] == [
        (panel.title, panel.look, types[panel.kind]) for panel in board.panels
    ]
    cells = set()
    for one in told:
        place = one["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, one["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own


@pytest.mark.parametrize(("name", "title", "expression"), list(targets()))
def test_every_expression_of_the_files_returns_data_from_a_real_prometheus(
    asked: Asked, name: str, title: str, expression: str
) -> None:
    assert asked.query(filled(expression))
    assert not re.search(r"\$(?!run\b|__rate_interval\b|__range\b)", expression)

"""The committed configuration by the programs that will read it: promtool and amtool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.cases import CASES, Case, Series
from tests.monitoring.conftest import Tool, alerts, committed, records
from tests.monitoring.figures import FIGURES, Figure
from tools.monitor.copies import COMMITTED

_STEP = "15s"


def test_prometheus_and_alertmanager_accept_their_files(tool: Tool) -> None:
    said = tool("promtool", "check", "config", COMMITTED / "prometheus.yml")
    assert "2 rule files found" in said
    assert "SUCCESS" in tool("amtool", "check-config", COMMITTED / "alertmanager.yml")
    for name, number in (("rules.yml", len(records())), ("alerts.yml", len(alerts()))):
        assert f"SUCCESS: {number} rules found" in tool("promtool", "check", "rules", "--lint-fatal", COMMITTED / name)


def test_every_alert_and_every_figure_has_a_case() -> None:
    assert {case.alert for case in CASES} == set(alerts())
    assert {figure.record for figure in FIGURES} == set(records())


def test_each_alert_fires_when_it_must_and_not_before_nor_just_short_of_it(tool: Tool, tmp_path: Path) -> None:
    tests = {name: [test for case in CASES if case.alert == name for test in _tests_of(case)] for name in alerts()}
    files = [_write(tmp_path / name, _with_its_figures(name), several) for name, several in tests.items()]
    said = tool("promtool", "test", "rules", *files)
    assert said.count("SUCCESS") == len(files)


def test_each_figure_is_what_it_says(tool: Tool, tmp_path: Path) -> None:
    tests = [_figure_of(figure) for figure in FIGURES]
    tool("promtool", "test", "rules", _write(tmp_path, committed("rules.yml"), tests))


@pytest.mark.parametrize("wrong", ["silent", "fires"])
def test_a_case_that_is_wrong_is_told(tool: Tool, tmp_path: Path, wrong: str) -> None:
    case = next(case for case in CASES if case.alert == "StackRankDown")
    case = replace(case, silent=case.fires) if wrong == "silent" else replace(case, fires=case.silent)
    with pytest.raises(AssertionError, match="StackRankDown"):
        tool("promtool", "test", "rules", _write(tmp_path, _with_its_figures(case.alert), _tests_of(case)))


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"critical", "warning"}, name
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}, name


def _tests_of(case: Case) -> list[dict[str, Any]]:
    labels = {**case.labels, "severity": alerts()[case.alert]["labels"]["severity"]}
    fires = {"eval_time": case.fires, "alertname": case.alert, "exp_alerts": [{"exp_labels": labels}]}
    silent = {"eval_time": case.silent, "alertname": case.alert, "exp_alerts": []}
    return [
        _test({**case.both, **case.bad}, alert_rule_test=[silent, fires]),
        _test({**case.both, **case.good}, alert_rule_test=[{**silent, "eval_time": case.fires}]),
    ]


def _figure_of(figure: Figure) -> dict[str, Any]:
    labels = ",".join(f'{name}="{value}"' for name, value in figure.labels.items())
    asked = {
        "expr": f"round({figure.record}, 1e-6)",
        "eval_time": "5m",
        "exp_samples": [{"labels": f"{{{labels}}}", "value": figure.value}],
    }
    return _test(figure.series, promql_expr_test=[asked])


def _test(series: Series, **tests: list[dict[str, Any]]) -> dict[str, Any]:
    given = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": _STEP, "input_series": given, **tests}


def _with_its_figures(name: str) -> dict[str, Any]:
    """Rules of one alert and of the figures that it is made of, which takes a tenth of the time of all of them. It has
    no annotations: promtool would want them word for word."""
    rule = {key: value for key, value in alerts()[name].items() if key != "annotations"}
    figures = [one for group in committed("rules.yml")["groups"] for one in group["rules"]]
    needed = [one for one in figures if one["record"] in rule["expr"]]
    return {"groups": [{"name": "figures", "rules": needed}, {"name": "alert", "rules": [rule]}]}


def _write(folder: Path, rules: dict[str, Any], tests: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    file = folder / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": _STEP, "tests": tests}))
    return file

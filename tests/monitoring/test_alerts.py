"""Every alert for real: metrics, a Prometheus that scrapes them, an Alertmanager, a webhook.

The rules are the committed ones in a hurry (`tools.monitor.copies.faster`): each `for` is a second, each range ten
seconds, each offset five. Limits are those of the rules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from tests.clocks import PATIENCE_SECONDS
from tests.monitoring.conftest import alerts
from tests.monitoring.processes import processes
from tools.monitor.asked import Asked
from tools.monitor.copies import faster, write_alertmanager, write_prometheus
from tools.monitor.programs import alertmanager, node_exporter, prometheus
from tools.monitor.webhook import webhook

_BEAT_SECONDS = 0.2
_PAST_SECONDS = 8
"""More than the five seconds that rules in a hurry look back beyond."""
_LATER = "StackTextfilesUnread"
"""Alertmanager holds StackDailyMissing back behind it, so it comes last."""


@pytest.fixture(scope="module")
def told(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Any]]:
    """What came: the alerts while all was well, and the first message of each afterwards."""
    folder = tmp_path_factory.mktemp("alerts")
    came: dict[str, Any] = {}
    with ExitStack() as stack:
        of = stack.enter_context(processes(folder))
        hook = stack.enter_context(webhook(lambda alert: came.setdefault(alert["labels"]["alertname"], alert)))
        (folder / "alertmanager").mkdir()
        messenger = stack.enter_context(
            alertmanager(write_alertmanager(folder / "alertmanager", webhook=hook, fast=True))
        )
        of.tell("node", "", stack.enter_context(node_exporter(of.textfiles, log=folder)))
        of.be_well()
        config = write_prometheus(folder / "prometheus", targets=[of.targets], alertmanager=messenger, fast=True)
        asked = Asked(stack.enter_context(prometheus(config)))

        _beat_until(lambda: len(asked.up()) == 6 and all(asked.up().values()), of.be_well)
        start = time.monotonic()
        _beat_until(lambda: time.monotonic() - start > _PAST_SECONDS, of.be_well)
        well = [alert["labels"] for alert in asked.alerts()] + [alert["labels"] for alert in came.values()]
        of.be_bad()
        expected = alerts().keys() - {_LATER}
        _beat_until(lambda: came.keys() >= expected, of.go_on_badly, lambda: f"{expected - came.keys()}")
        of.break_a_textfile()
        _beat_until(lambda: _LATER in came, of.go_on_badly, lambda: _LATER)
        yield {"well": well, "came": came}


def test_nothing_is_said_while_all_is_well(told: Mapping[str, Any]) -> None:
    assert told["well"] == []


def test_every_alert_reaches_the_webhook_with_words_that_a_person_can_act_on(told: Mapping[str, Any]) -> None:
    assert told["came"].keys() == alerts().keys()
    for name, alert in told["came"].items():
        assert alert["status"] == "firing"
        assert alert["labels"]["severity"] == alerts()[name]["labels"]["severity"]
        assert alert["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}"
        for part in ("summary", "description"):
            text = alert["annotations"][part]
            assert text
            assert not any(wrong in text for wrong in ("{{", "<no value>", "<error", "%!", "NaN")), text


def test_figures_are_in_the_words(told: Mapping[str, Any]) -> None:
    came = told["came"]
    assert came["StackRankDown"]["annotations"]["summary"] == "Rank 0 of down does not answer"
    assert came["StackTableFull"]["annotations"]["description"].startswith("99% of its rows are held")
    assert came["StackServeErrors"]["labels"]["run"] == "bad"
    assert came["StackDailyLate"]["annotations"]["summary"].startswith("late has had no good night for 2d 0h")
    assert came["StackDailyMissing"]["annotations"]["summary"] == "Nothing is known of the daily job gone"
    assert came["StackNormDrift"]["annotations"]["description"].startswith("Its means are 5.0 times as far off")


def test_only_waits_are_shorter_in_rules_in_a_hurry() -> None:
    rule = "expr: increase(a:rate5m[30m]) > 26 * 3600 or a offset 10m\nfor: 1h"
    assert faster(rule) == "expr: increase(a:rate5m[10s]) > 26 * 3600 or a offset 5s\nfor: 1s"


def _beat_until(
    condition: Callable[[], bool], beat: Callable[[], None], missing: Callable[[], str] = lambda: "what was to come"
) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"did not come: {missing()}"
        beat()
        time.sleep(_BEAT_SECONDS)

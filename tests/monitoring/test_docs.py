"""Runbooks and the page on monitoring say what the rules are, and what they say can be done."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml

from stack.__main__ import VERBS
from stack.job import CHOICES, Composer, Job, configs_folder
from tests.monitoring.conftest import Tool, alerts, records
from tools.monitor.alert_table import PAGE, with_table

RUNBOOKS = PAGE.parent / "runbooks.md"


def _sections() -> Mapping[str, str]:
    found = re.split(r"^## (\w+)\n", RUNBOOKS.read_text(), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def _indented(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_every_alert_has_a_runbook_where_its_annotation_says() -> None:
    assert list(_sections()) == list(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}"


def test_every_runbook_says_what_to_look_at_what_to_do_and_whether_it_can_wait() -> None:
    for name, text in _sections().items():
        assert _indented(text), name
        assert "\n1. " in text, name
        assert re.search(r"^(It|One refused batch) .*\b(wait|costs time)", text, flags=re.MULTILINE), name


def test_what_runbooks_look_at_is_promql(tool: Tool, tmp_path: Path) -> None:
    found = [
        line for text in _sections().values() for line in _indented(text) if not line.startswith(("stack ", "curl "))
    ]
    rules = [{"record": f"looked_{number}", "expr": line} for number, line in enumerate(found)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "runbooks", "rules": rules}]}))
    assert f"SUCCESS: {len(found)} rules found" in tool("promtool", "check", "rules", file)
    assert len(found) > 60


def test_commands_of_runbooks_have_verbs_and_options_that_exist() -> None:
    commands = [line for text in _sections().values() for line in _indented(text) if line.startswith("stack ")]
    options = {}
    for command in commands:
        _, verb, *words = shlex.split(command.replace("$run", "mine"))
        assert verb in VERBS, command
        given = (word.partition("=") for word in words if "=" in word and not word.startswith("day="))  # daily's own
        options |= {name: value for name, _, value in given}
    assert len(commands) > 10
    Composer(root=Job, choices=CHOICES, folder=configs_folder()).compose(
        [f"{name}={options[name]}" for name in options]
    )


def test_the_page_has_every_rule_and_the_table_of_now() -> None:
    page = PAGE.read_text()
    assert with_table(page) == page, "python -m tools.monitor.alert_table writes it anew"
    assert sorted(
        re.findall(r"`(run[\w]*:[\w:]+)`", page.partition("## Rules")[2].partition("## Alerts")[0])
    ) == sorted(records())

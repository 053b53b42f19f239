"""Copies of `configs/prometheus` for programs on free ports of this machine: as it is, or with shorter waits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stack.base.files import write_text

COMMITTED = Path(__file__).parents[2] / "configs" / "prometheus"
_FAST = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
_WAITS = (
    (re.compile(r"\bfor: \w+"), "for: 1s"),
    (re.compile(r"\[\w+\]"), "[10s]"),
    (re.compile(r"\boffset \w+"), "offset 5s"),
)


def faster(rules: str) -> str:
    """Rules as text: every `for` is a second, every range ten, every offset five. Limits stay, and so do the names of
    recording rules, which tell their range."""
    for found, instead in _WAITS:
        rules = found.sub(instead, rules)
    return rules


def write_prometheus(
    folder: Path, *, targets: Sequence[Path], alertmanager: str | None = None, fast: bool = False
) -> Path:
    """The configuration and its rules in `folder`; its path. `targets`: folders of the files that tell what is scraped.
    `alertmanager`: host and port. `fast`: scraped each second, with `faster` rules."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rules.yml", "alerts.yml"):
        text = (COMMITTED / name).read_text()
        write_text(folder / name, faster(text) if fast else text)
    settings = _load("prometheus.yml")
    (job,) = settings["scrape_configs"]
    (found,) = job["file_sd_configs"]
    found["files"] = [str(one.resolve() / "*.json") for one in targets]
    if alertmanager is None:
        del settings["alerting"]
    else:
        settings["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    if fast:
        settings["global"] = _FAST
    return _dump(folder / "prometheus.yml", settings)


def write_alertmanager(folder: Path, *, webhook: str, fast: bool = False) -> Path:
    """The configuration with another webhook; its path. `fast`: groups are sent at once."""
    settings = _load("alertmanager.yml")
    (receiver,) = settings["receivers"]
    receiver["webhook_configs"][0]["url"] = webhook
    if fast:
        settings["route"] |= {"group_wait": "0s", "group_interval": "1s"}
    return _dump(folder / "alertmanager.yml", settings)


def _load(name: str) -> Any:
    return yaml.safe_load((COMMITTED / name).read_text())


def _dump(path: Path, settings: Any) -> Path:
    write_text(path, yaml.safe_dump(settings, sort_keys=False))
    return path

"""The page of an audit: whole, closed, safe, and with all that the report says."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from stack.audits.findings import Drift, Finding, Level
from stack.audits.judge import Usual, layer_report
from stack.audits.page import page
from stack.audits.report import AuditReport
from tests.audits.test_judge import CONFIG, effect, layer, moments

_VOID = {"meta", "br", "rect", "line", "circle", "path"}


class Reader(HTMLParser):
    """Tags that are open, text, and whatever a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loaded: list[str] = []
        self.num: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num[tag] = self.num.get(tag, 0) + 1
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def report(**changed: object) -> AuditReport:
    layers = [
        layer_report(layer(moments(shift=0.4, ratio=0.3)), Usual(), CONFIG, logit_rmse=0.7,
                     earlier={"2017-11-18": moments(shift=0.1), "2017-11-19": moments(shift=0.3)})[0],
        layer_report(layer(moments(), task="power", broken=20), Usual(), CONFIG)[0],
    ]  # fmt: skip
    finding = Finding(level=Level.warning, name="ctr is off", measured="0.4 > 0.1", allowed="0.1", remedy="look & see")
    found = AuditReport(
        format_version=1, run="demo", version=3, step=9, dataset="prepared/x", created="2026-11-28",
        code_version="0.1.0", days=("2017-11-20",), reference_days=("2017-11-18", "2017-11-19"),
        traffic="live", num_timelines=391, steps_per_day=21.0, rank_spread=0.0, parts={},
            level=Level.warning, findings=(finding,), layers=tuple(layers),
        effects=(effect(calibration=(1.02, 1.9)), msgspec.structs.replace(effect(), slice="no history")),
    )  # fmt: skip
    return msgspec.structs.replace(found, **changed)


def test_the_page_says_what_the_report_says_and_loads_nothing() -> None:
    reader = read(page(report()))
    text = " ".join(" ".join(reader.text).split())
    assert reader.loaded == []
    assert "http" not in page(report())
    for said in (
        "demo, version 3", "May be released: what is off stops nothing on these days.", "ctr is off",
        "Measured: 0.4 > 0.1.", "ctr : of every 1,000 candidates, people took 100, and the model expected 102; of one",
        "put the right one first 70.0% of the time (100,000 candidates looked at, 10,000 taken).",
        "a day of training has 21",
        "At the last save, the processes that trained it had statistics 0 deviations apart.",
        "What to do: look & see.", "1.02 → 1.9", "ctr.head.1", "power.head.1", "no history", "0.4 ± 0.001 deviations",
        "the last 20 batches or so, of 9", "20 that learnt what is not finite", "variance 0.30 times",
    ):  # fmt: skip
        assert said in text, said
    assert Drift.far.value in text
    assert reader.num["figure"] == 4, "the channels that diverge most; none of a layer that is as it was learnt"
    assert reader.num["circle"] == 2 * 20


@pytest.mark.parametrize(
    ("level", "verdict"),
    [
        (Level.ok, "May be released: nothing was found."),
        (Level.critical, "Must not be released."),
    ],
)
def test_the_verdict_is_the_worst_finding(level: Level, verdict: str) -> None:
    assert verdict in page(report(level=level))


def test_names_out_of_a_run_are_text_on_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    text = page(report(run=evil, dataset=f'"{evil}', code_version=evil))
    assert "<script" not in text
    assert read(text).text.count(f"Audit of {evil}, version 3") == 1

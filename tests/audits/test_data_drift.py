"""What is found of a day, and what is not, on days made up for it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from stack.audits.data_columns import IdSums, LabelSums, NumberSums
from stack.audits.data_config import DataAuditConfig
from stack.audits.data_day import DayProfile
from stack.audits.data_drift import compared
from stack.audits.data_findings import findings
from stack.audits.data_page import html, tables
from stack.audits.data_report import DataReport, Measure
from stack.audits.findings import Level
from stack.base.errors import ConfigError

CONFIG = DataAuditConfig()


def _day(
    number: int, *, num: int = 4000, rate: float = 0.1, signal: float = 0.5, price: float = 1.0, shift: float = 0.0,
    stuck: bool = False, unknown: float = 0.1, new: float = 0.02, num_bad: int = 0, ids: int = 50,
) -> DayProfile:  # fmt: skip
    """A day of one group with the features `price` and `taste` (which tells the label by `signal`) and one table."""
    rng = np.random.default_rng(number)
    label_K = (rng.random(num) < rate).astype(np.float64)
    taste_K = rng.normal(0, 1, num) + signal * (2 * label_K - 1)
    price_K = rng.lognormal(0, 1, num) * price + shift
    dense_KF = np.stack([price_K, np.full(num, 3.0) if stuck else taste_K], axis=1)
    dense_KF[:num_bad, 0] = np.nan
    numbers = {name: NumberSums() for name in ("shown.price", "shown.taste", "shown.bought")}
    for sums, value_K in zip(numbers.values(), (dense_KF[:, 0], dense_KF[:, 1], label_K), strict=True):
        sums.add(value_K)
    item_N = rng.integers(1, ids, num)
    item_N[rng.random(num) < unknown] = 0
    item_N[rng.random(num) < new] = 1000
    items = IdSums(table="item", num_known=900, keys=False)
    items.add(item_N)
    labels = LabelSums(features=("price", "taste"))
    labels.add(label_K, dense_KF, None)
    volume = {"timelines": num // 20, "events": num, "moments": num // 10, "shown examples": num}
    return DayProfile(
        day=f"2024-03-{number:02d}", digest="", volume=volume,
        columns={"event.item": items.facts()} | {name: sums.facts() for name, sums in numbers.items()},
        labels={"shown.bought": labels.facts()},
    )  # fmt: skip


def _report(day: DayProfile, usual: Sequence[DayProfile] | None = None, config: DataAuditConfig = CONFIG) -> DataReport:
    return compared(day, [_day(number) for number in range(1, 15)] if usual is None else usual, config=config)


def _names(report: DataReport, config: DataAuditConfig = CONFIG) -> dict[str, str]:
    return {one.name: one.level.value for one in findings(report, config)}


def test_an_ordinary_day_has_no_findings() -> None:
    assert _names(_report(_day(20))) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_bad": 1}, {"not finite values in shown.price": "critical"}),
        ({"stuck": True}, {"constant feature shown.taste": "critical"}),
        ({"unknown": 0.2}, {"missing values in event.item": "warning"}),
        ({"unknown": 0.97}, {"missing values in event.item": "critical", "distribution of event.item": "warning"}),
        ({"new": 0.2}, {"new ids in event.item": "warning"}),
        ({"price": 2.0}, {"distribution of shown.price": "warning"}),
        ({"price": 100.0}, {"distribution of shown.price": "critical"}),
        ({"rate": 0.15}, {"label rate of shown.bought": "warning"}),
        ({"rate": 0.35}, {"label rate of shown.bought": "critical"}),
        ({"rate": 0.0}, {"constant label shown.bought": "critical"}),
        ({"num": 40_000}, {"volume of events": "critical", "volume of moments": "critical",
                           "volume of timelines": "warning", "volume of shown examples": "warning"}),
        ({"num": 400}, {"volume of events": "critical", "volume of moments": "critical",
                        "volume of timelines": "warning", "volume of shown examples": "warning"}),
        ({"num": 0}, {"empty day": "critical"}),
        ({"ids": 500}, {"distinct values of event.item": "warning", "distribution of event.item": "warning"}),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_day_is_found_by_name(change: dict[str, float], expected: dict[str, str]) -> None:
    assert _names(_report(_day(20, **change))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("usual", "flipped"),
    [
        ({"rate": 0.01, "signal": 0.5}, {"rate": 0.99, "signal": -0.5}),  # told by both
        ({"rate": 0.01, "signal": 0.0}, {"rate": 0.99, "signal": 0.0}),  # told by its rate alone
        ({"rate": 0.5, "signal": 0.2}, {"rate": 0.5, "signal": -0.2}),  # told by its features alone
    ],
)
def test_a_flipped_label_is_found_where_its_rate_or_its_features_tell(
    usual: dict[str, float], flipped: dict[str, float]
) -> None:
    days = [_day(number, **usual) for number in range(1, 15)]  # type: ignore[arg-type]
    found = _names(_report(_day(20, **flipped), days))  # type: ignore[arg-type]
    assert found["label flip of shown.bought"] == "critical"
    assert not {name for name in found if "rate" in name}
    assert _names(_report(_day(20, **usual), days)) == {}  # type: ignore[arg-type]


def test_a_flip_that_nothing_tells_is_not_guessed_at() -> None:
    days = [_day(number, rate=0.5, signal=0.0) for number in range(1, 15)]
    assert _names(_report(_day(20, rate=0.5, signal=-0.0), days)) == {}


def test_a_feature_that_is_nearly_always_the_same_may_be_so_all_day() -> None:
    def rare(number: int, num_rare: int) -> DayProfile:
        sums = NumberSums()
        sums.add(np.r_[np.ones(num_rare), np.zeros(4000 - num_rare)])
        day = _day(number)
        return msgspec.structs.replace(day, columns=day.columns | {"shown.price": sums.facts()})

    for num_rare, expected in ((40, {}), (1200, {"constant feature shown.price": "critical"})):
        days = [rare(number, num_rare + number) for number in range(1, 15)]
        found = _names(_report(rare(20, 0), days))
        assert {name: level for name, level in found.items() if "distribution" not in name} == expected


def test_swings_of_the_days_before_are_allowed() -> None:
    days = [_day(number, unknown=0.1 + 0.3 * (number % 7 > 4)) for number in range(1, 15)]
    assert _names(_report(_day(20, unknown=0.4), days)) == {}


def test_with_too_few_days_only_what_is_wrong_by_itself_is_found() -> None:
    broken = _day(20, rate=0.9, price=100.0, num=40_000, num_bad=1)
    assert _names(_report(broken, [_day(1), _day(2)])) == {"not finite values in shown.price": "critical"}
    assert _names(_report(broken, [])) == {"not finite values in shown.price": "critical"}


def test_a_holiday_stops_nothing_but_for_what_is_wrong_by_itself() -> None:
    config = DataAuditConfig(holidays=["03-20", "2024-03-05"])
    found = _names(_report(_day(20, num=400, price=100.0, num_bad=1), config=config), config)
    assert {name for name, level in found.items() if level == "critical"} == {"not finite values in shown.price"}
    assert found["volume of events"] == found["distribution of shown.price"] == "warning"


def test_many_columns_with_the_same_wrong_are_one_finding() -> None:
    def wide(number: int, price: float) -> DayProfile:
        day = _day(number, price=price)
        copies = {f"shown.price{place}": day.columns["shown.price"] for place in range(6)}
        return msgspec.structs.replace(day, columns=day.columns | copies)

    (found,) = findings(_report(wide(20, 2.0), [wide(number, 1.0) for number in range(1, 15)]), CONFIG)
    assert found.name == "distribution of 7 columns"
    assert "the most: " in found.measured
    assert "and others" in found.measured


def test_a_report_can_be_written_read_and_shown() -> None:
    report = _report(_day(20, price=100.0))
    assert msgspec.json.decode(msgspec.json.encode(report), type=DataReport) == report
    page = html(report)
    assert page.count("<svg") == page.count("</svg>") == len(report.figures) + 1  # what is off is there twice
    assert page.startswith('<section class="data">')
    assert page.count('class="mark critical"') == 2
    volume, off = tables(report)
    assert (volume.row_count, off.row_count) == (4, 1)
    assert list(off.columns[0].cells) == ["shown.price"]


def test_distances_of_the_days_before_are_each_from_the_others() -> None:
    report = _report(_day(20))
    (figure,) = [one for one in report.figures if (one.column, one.measure) == ("shown.price", Measure.distribution)]
    assert len(figure.trend) == 14
    assert figure.level is Level.ok
    assert all(one is not None and 0 < one < 0.1 for one in figure.trend)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"warn_rate": 1.0}, "audit_data.warn_rate=1 and audit_data.critical_rate=3 must be above 1"),
        ({"warn_new": 0.6}, "audit_data.warn_new=0.6 and audit_data.critical_new=0.5 must be above 0, the second not"),
        ({"min_reference_days": 20}, "must be at least 1 and at most audit_data.reference_days=14"),
        ({"flipped": 0.5}, "audit_data.flipped=0.5 must be above -1 and below 0"),
        ({"holidays": ["25.12."]}, "audit_data.holidays has '25.12.': write it as MM-DD or YYYY-MM-DD"),
        ({"sigmas": 0.0}, "audit_data.sigmas=0 must be above 0"),
        ({"min_values": 0}, "audit_data.min_values=0 must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        DataAuditConfig(**option)  # type: ignore[arg-type]

"""The page in headless Chromium, over `stack dashboard` as a process and a real Prometheus."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from stack.dashboard.boards import BOARDS
from tools.dashboards.browser import Page, PageError
from tools.dashboards.site import served

DESK, PHONE = (1280, 900), (390, 844)
PANELS = """[...document.querySelectorAll('.panel')].map((one) => ({
    title: one.ariaLabel, state: one.dataset.state, points: Number(one.dataset.points),
    kind: one.classList[1], said: one.querySelector('.message').textContent, painted: painted(one),
}))"""
PAINTED = """function painted(panel) {
    const canvas = panel.querySelector('canvas');
    if (!canvas) return panel.querySelector('.value, td') ? 1 : 0;
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const colours = new Set();
    for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) colours.add(data.slice(i, i + 3).join());
    return colours.size;
}"""


def show(page: Page, site: str, state: str, *, size: tuple[int, int] = DESK, dark: bool = False) -> None:
    """Opens the page anew, and waits until it has asked for all."""
    page.size(*size, dark=dark, phone=size == PHONE)
    page.go("about:blank")
    page.go(f"{site}/#refresh=0&{state}")
    page.wait("['ready', 'down'].includes(document.body?.dataset.state)")


def panels(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.value(f"(() => {{ {PAINTED} return {PANELS}; }})()")
    return found


def pixels(png: bytes) -> np.ndarray:
    """Height x width x 3, 0 to 255."""
    return np.round(matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(int)


def box(page: Page, selector: str) -> dict[str, float]:
    found: dict[str, float] = page.value(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
    return found


def loss(page: Page) -> str:
    """What the panel of losses tells: the moment, and the value of its first line."""
    panel = "document.querySelector('[aria-label=Loss]')"
    said: str = page.value(f"{panel}.querySelector('time').textContent + ' ' + {panel}.querySelector('b').textContent")
    return said


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (PHONE, True)], ids=["desk", "phone"])
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_panel_of_every_board_shows_data_and_nothing_comes_from_elsewhere(
    tab: Page, site: str, board: Any, size: tuple[int, int], dark: bool
) -> None:
    del tab.errors[:], tab.requests[:]
    show(tab, site, f"board={board.name}", size=size, dark=dark)
    told = panels(tab)
    assert {one["title"] for one in told} == {panel.title for panel in board.panels}
    for one in told:
        assert (one["state"], one["said"]) == ("ok", ""), one
        assert one["points"] >= 1, one
        assert one["painted"] >= (3 if one["kind"] in ("line", "heatmap") else 1), one
    assert tab.value("document.documentElement.scrollWidth") == size[0]
    assert tab.errors == []
    assert {url for url in tab.requests if not url.startswith((site, "about:"))} == set()
    assert tab.value("document.querySelector('[role=tab][aria-selected=true]').textContent") == board.title


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_a_word_that_has_no_room_beside_its_value_goes_below_it(tab: Page, site: str, size: tuple[int, int]) -> None:
    show(tab, site, "board=audits", size=size)
    tab.value("document.querySelector('.tile .value').innerHTML = '0.000789<small class=critical>critical</small>'")
    beyond = "[...document.querySelectorAll('.tile')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert tab.value(beyond) == 0
    assert box(tab, ".tile small")["right"] < box(tab, ".tile")["right"]


@pytest.mark.parametrize(("dark", "ground"), [(False, 244), (True, 13)], ids=["light", "dark"])
def test_what_is_seen_is_not_blank_in_light_and_dark(tab: Page, site: str, dark: bool, ground: int) -> None:
    show(tab, site, "board=training", dark=dark)
    seen = pixels(tab.png())
    assert seen.shape == (900, 1280, 3)
    assert seen[899, 2, 0] == ground
    plot = box(tab, "[aria-label=Loss] .plot")
    part = seen[int(plot["top"]) : int(plot["bottom"]), int(plot["left"]) : int(plot["right"])]
    colours, counts = np.unique(part.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) > 30
    assert counts.max() < 0.99 * counts.sum()
    lines = [tuple(colour) for colour in colours if np.ptp(colour) > 90]
    assert len(lines) > 10


def test_the_pointer_and_the_arrow_keys_tell_values_at_a_moment(tab: Page, site: str) -> None:
    show(tab, site, "board=training&run=demo")
    newest = loss(tab)
    plot = box(tab, "[aria-label=Loss] .plot")
    tab.mouse("mouseMoved", plot["left"] + 0.3 * plot["width"], plot["top"] + 0.5 * plot["height"])
    tab.wait("document.querySelector('[aria-label=Loss] time').textContent")
    earlier = loss(tab)
    assert float(earlier.split()[1]) > float(newest.split()[0])
    others = "document.querySelector('[aria-label=AUC] time').textContent"
    assert tab.value(others) == earlier.split()[0]
    tab.value("document.querySelector('[aria-label=Loss] .plot').focus()")
    tab.key("ArrowLeft")
    before = loss(tab)
    assert before.split()[0] < earlier.split()[0]
    tab.key("Escape")
    assert loss(tab) == newest
    label = tab.value("document.querySelector('[aria-label=Loss] .plot').ariaLabel")
    assert label.startswith(f"Loss, now: ctr {newest.strip()}, ")


def test_tabs_are_changed_by_keys_and_the_address_keeps_what_is_shown(tab: Page, site: str) -> None:
    show(tab, site, "board=training&run=demo")
    tab.value("document.getElementById('tab-training').focus()")
    for key, board in (
        ("ArrowRight", "tables"),
        ("End", "serving"),
        ("ArrowRight", "training"),
        ("ArrowLeft", "serving"),
    ):
        tab.key(key)
        assert tab.value("document.activeElement.id") == f"tab-{board}"
        assert tab.value("location.hash") == f"#board={board}&run=demo&refresh=0"
    tab.wait("[...document.querySelectorAll('.panel')].every((one) => one.dataset.state === 'ok')")


def test_one_run_is_chosen_and_legends_name_runs_where_there_are_several(tab: Page, site: str) -> None:
    names = "[...document.querySelectorAll('[aria-label=Loss] .legend span')].map((one) => one.textContent)"
    show(tab, site, "board=training")
    tasks = ["ctr", "next_item", "power", "rank"]
    assert sorted(tab.value(names)) == sorted(f"{run} · {task}" for run in ("demo", "marketplace") for task in tasks)
    assert tab.value("[...document.getElementById('run').options].map((one) => one.value)") == [
        "",
        "demo",
        "marketplace",
    ]
    tab.value("(() => { const run = document.getElementById('run'); run.value = 'marketplace';"
              " run.dispatchEvent(new Event('change')); })()")  # fmt: skip
    tab.wait(f"{names}.length === 4")
    assert sorted(tab.value(names)) == tasks
    assert tab.value("location.hash") == "#board=training&run=marketplace&refresh=0"


def test_a_drag_over_a_chart_looks_closer_and_a_button_leads_back(tab: Page, site: str) -> None:
    show(tab, site, "board=training")
    plot = box(tab, "[aria-label=Loss] .u-over")
    x, y = plot["left"], plot["top"] + 20
    tab.mouse("mouseMoved", x + 0.25 * plot["width"], y)
    tab.mouse("mousePressed", x + 0.25 * plot["width"], y)
    tab.mouse("mouseMoved", x + 0.5 * plot["width"], y)
    tab.mouse("mouseReleased", x + 0.5 * plot["width"], y)
    told = dict(word.split("=") for word in tab.wait("location.hash.includes('from') && location.hash")[1:].split("&"))
    assert int(told["to"]) - int(told["from"]) == pytest.approx(900, abs=30)
    tab.wait("[...document.querySelectorAll('.panel.line')].every((one) => one.dataset.state === 'ok')")
    tab.value("document.getElementById('now').click()")
    assert "from" not in tab.value("location.hash")
    assert tab.value("document.getElementById('now').hidden")


def test_a_line_is_hidden_and_shown_by_its_legend(tab: Page, site: str) -> None:
    show(tab, site, "board=training&run=demo")
    button = "document.querySelector('[aria-label=Loss] .legend button')"
    for pressed in ("false", "true"):
        tab.value(f"{button}.click()")
        assert tab.value(f"{button}.getAttribute('aria-pressed')") == pressed


def test_alerts_that_fire_are_told_of_the_run_that_is_chosen(tab: Page, site: str) -> None:
    told = "[...document.querySelectorAll('.alert')].map((one) => one.textContent)"
    show(tab, site, "board=tables")
    first, second = tab.value(told)
    assert first.startswith("TableNearlyFull demo · warning · table item · for ")
    assert first.endswith("% full.")
    assert "marketplace" in second
    show(tab, site, "board=tables&run=demo")
    assert len(tab.value(told)) == 1
    levels = "[...document.querySelectorAll('.tile[data-level]')].map((one) => one.ariaLabel + ' ' + one.dataset.level)"
    assert tab.value(levels) == ["Fullest table warning"]


def test_a_range_without_data_says_so_in_every_panel(tab: Page, site: str) -> None:
    show(tab, site, "board=serving&from=1000000000&to=1000003600")
    board = next(board for board in BOARDS if board.name == "serving")
    told = {one["title"]: (one["state"], one["said"]) for one in panels(tab)}
    assert told == {panel.title: ("empty", panel.empty) for panel in board.panels}


def test_what_prometheus_refuses_is_told_as_it_said_it(tab: Page, site: str) -> None:
    show(tab, site, "board=training")
    ask = "import('/static/ask.js').then((ask) => ask.newest('sum(', {start: 0, end: 9, step: 1, scrape: 1}))"
    with pytest.raises(PageError, match="parse error"):
        tab.value(ask)


def test_a_script_in_the_page_does_not_run(tab: Page, site: str) -> None:
    show(tab, site, "board=training")
    tab.value("(() => { const one = document.createElement('script'); one.textContent = 'window.ran = 1';"
              " document.body.append(one); })()")  # fmt: skip
    assert tab.value("window.ran === undefined")
    assert any("Content Security Policy" in error for error in tab.errors)


def test_prometheus_that_is_down_is_said_once_and_in_every_panel(tab: Page) -> None:
    with served("http://127.0.0.1:9") as site:
        show(tab, site, "board=training")
        said = tab.value("document.getElementById('down').textContent")
        assert said.startswith("Prometheus at http://127.0.0.1:9 does not answer: ")
        assert {(one["state"], one["said"]) for one in panels(tab)} == {("down", "Prometheus does not answer.")}
        assert tab.value("document.getElementById('updated').textContent") == "not updated since the start"
    tab.value("document.getElementById('controls').run.dispatchEvent(new Event('change'))")
    tab.wait("document.getElementById('down').textContent.startsWith('The server of this page does not answer')")

"""The page as a browser shows it: on a phone and on a desk, in light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterator

import matplotlib.image
import numpy as np
import pytest

from stack.audits.page import page
from tests.audits.test_page import report
from tools.dashboards.browser import Page, browser, missing_browser


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    if missing_browser():
        pytest.skip("there is no chromium: make monitoring (as root, on Debian or Ubuntu)")
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "audit.html"
    path.write_text(page(report()))
    return path.as_uri()


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3)."""
    return np.round(matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(int)


@pytest.mark.parametrize(("width", "phone", "dark"), [(390, True, False), (390, True, True), (1000, False, False)])
def test_the_page_is_read_on_a_phone_as_on_a_desk(tab: Page, address: str, width: int, phone: bool, dark: bool) -> None:
    tab.size(width, 800, dark=dark, phone=phone)
    tab.go(address)
    tab.wait("document.readyState === 'complete'")
    assert tab.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), "it scrolls aside"
    box = tab.value("(({top, height}) => [top, height])(document.querySelector('.verdict').getBoundingClientRect())")
    assert box[0] + box[1] < 800, "the verdict is on the first screen"
    drawn = "[...document.querySelectorAll('summary svg')].map(one => one.getBoundingClientRect().height)"
    assert all(height > 20 for height in tab.value(drawn)), "each layer is drawn"
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    heights = "[...document.querySelectorAll('figure svg, .wide table')].map(one => one.getBoundingClientRect().height)"
    assert min(tab.value(heights)) > 20
    seen = pixels(tab.png(whole=True))
    assert seen.shape[0] > 1000
    colours, counts = np.unique(seen.reshape(-1, 3), axis=0, return_counts=True)
    assert (colours[counts.argmax()].mean() < 100) == dark, "the ground is dark where the reader's machine is"
    blue = (np.abs(seen - np.array([0x4A, 0x7F, 0xB5])).max(axis=2) < 40).sum()
    assert blue > 500, "dots, bars and densities"
    assert tab.errors == []
    assert all(url.startswith("file:") for url in tab.requests)

"""The pictures of docs/dashboards.md: `python -m tools.dashboards.pictures`. Of the example: none of it was measured.

Needs Debian's Prometheus and Chromium (`make monitoring`).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from stack.base.errors import UserError
from stack.base.files import write_bytes
from stack.telemetry.console import say
from tools.dashboards.browser import Page, browser
from tools.dashboards.example import FINE_SECONDS
from tools.dashboards.history import running_example
from tools.dashboards.site import served

FOLDER = Path(__file__).parents[2] / "docs" / "dashboards"
PICTURES = {
    "training": ("board=training&run=demo", (1280, 980), False),
    "serving-phone": ("board=serving&run=demo", (390, 1120), True),
}
"""Name -> what is shown, width and height, dark."""
_HOUR = 3600.0


def main() -> int:
    """Writes them all."""
    try:
        with tempfile.TemporaryDirectory() as work:
            now = time.time()
            example = running_example(Path(work) / "example", until=now + 300, fine_seconds=1.6 * _HOUR, nights=8)
            with example as prometheus, served(prometheus, scrape_seconds=FINE_SECONDS) as site, browser() as page:
                FOLDER.mkdir(exist_ok=True)
                for name, (state, size, dark) in PICTURES.items():
                    write_bytes(FOLDER / f"{name}.png", _taken(page, f"{site}/#refresh=0&{state}", size, dark=dark))
    except UserError as error:
        say(f"pictures: {error}", file=sys.stderr)
        return 2
    say(f"{len(PICTURES)} pictures are in {FOLDER}")
    return 0


def _taken(page: Page, url: str, size: tuple[int, int], *, dark: bool) -> bytes:
    page.size(*size, dark=dark, phone=size[0] < 640)
    page.go("about:blank")
    page.go(url)
    page.wait("document.body?.dataset.state === 'ready'")
    page.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.png()


if __name__ == "__main__":
    sys.exit(main())

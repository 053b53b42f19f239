"""The verb: its help, and options that cannot be used. That it serves and stops is seen where its page is looked at."""

from __future__ import annotations

import json
import socket

import pytest

from stack.__main__ import main
from stack.base.files import sha256_of
from tools.dashboards.vendor import FOLDER, PACKAGE, VERSION


def test_the_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["dashboard", "--help"])
    shown = capsys.readouterr().out
    assert "  stack dashboard dashboard.prometheus=http://monitor:9090" in shown
    assert "ssh -L 8080:127.0.0.1:8080" in shown


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("port=65536", "dashboard.port=65536 must be 0 (any free port) to 65535"),
        ("scrape_seconds=0", "dashboard.scrape_seconds=0.0 must be above 0"),
        ("timeout_seconds=-1", "dashboard.timeout_seconds=-1.0 must be above 0"),
        ("prometheus=monitor:9090", "dashboard.prometheus='monitor:9090' is no http or https address"),
        ("prometheus=http://a:b", "dashboard.prometheus='http://a:b' is no address (Port could not be cast"),
        ("prometheus=http://me:secret@a", "dashboard.prometheus has a user, a query or a fragment, which is not sent"),
        ("prometheus='http://a/?x=1'", "dashboard.prometheus has a user, a query or a fragment, which is not sent"),
        ("hots=x", "unknown option 'dashboard.hots'; 'dashboard' knows: host, max_answer_bytes, port, prometheus, "),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line(capsys: pytest.CaptureFixture[str], option: str, line: str) -> None:
    assert main(["dashboard", f"dashboard.{option}"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"stack: {line}")
    assert shown.err.count("\n") == 1
    assert "secret" not in shown.err


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["dashboard", f"dashboard.port={port}"]) == 2
    said = f"stack: cannot listen on 127.0.0.1:{port}: Address already in use: choose another dashboard.port or"
    assert capsys.readouterr().err.startswith(said)


def test_the_chart_library_is_what_its_package_held() -> None:
    told = json.loads((FOLDER / "vendor.json").read_text())
    assert (told["package"], told["version"], told["licence"]) == (PACKAGE, VERSION, "MIT")
    assert told["sha256"] == {path.name: sha256_of(path) for path in FOLDER.iterdir() if path.name != "vendor.json"}
    assert f"(v{VERSION})" in (FOLDER / "uPlot.iife.min.js").read_text()[:80]
    assert "MIT License" in (FOLDER / "LICENSE").read_text()

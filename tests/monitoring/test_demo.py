"""`make monitor-demo`: what it says without the demo's run, and that nothing of it is left when it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.clocks import wait_for
from tests.distributed.launch import ROOT
from tools.monitor_demo import FOLDER, main

DEMO = ROOT / "runs" / "demo"


def test_without_the_demos_run_it_says_how_to_get_it(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main([]) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    said = "monitor-demo: runs/demo has no trained model with a package: run `make demo` first\n"
    assert capsys.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_it_watches_a_training_and_a_server_and_ends_all_it_started_when_told_to(
    programs: None, tmp_path: Path
) -> None:
    if not (DEMO / "checkpoints").is_dir():
        pytest.skip("needs the demo's run: make demo")
    with _started(tmp_path / "said.txt") as process:
        said = tmp_path / "said.txt"
        wait_for(lambda: "StackServeStale" in said.read_text() or process.poll() is not None, seconds=400)
        text, family = said.read_text(), psutil.Process(process.pid).children(recursive=True)
        names = {one.name() for one in family}
        second = subprocess.run([sys.executable, "-m", "tools.monitor_demo"], cwd=ROOT, capture_output=True, text=True)
        alive = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]  # an audit ends
        (launcher,) = (one for one in alive if "torch.distributed.run" in one.cmdline())
        launcher.kill()  # whose processes are left behind
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == "monitor-demo: another one runs, and has runs/monitor-demo: end it first\n"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    for row in (
        ["serve", "demo", "", "yes"],
        ["train", "monitor-demo", "0", "yes"],
        ["train", "monitor-demo", "1", "yes"],
    ):
        assert row in rows
    assert {"prometheus", "prometheus-alertmanager", "prometheus-node-exporter"} <= names
    assert len(family) >= 9
    time.sleep(1)
    assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    assert (ROOT / FOLDER / "targets" / "node.json").is_file()


@contextmanager
def _started(said: Path) -> Iterator[subprocess.Popen[bytes]]:
    with said.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "tools.monitor_demo"], cwd=ROOT, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)

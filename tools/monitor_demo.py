"""`make monitor-demo`: the demo's model trained again by two processes and served, beside what watches them: Prometheus
with the rules of `configs/prometheus`, Alertmanager, node_exporter, `stack dashboard`.

    python -m tools.monitor_demo [--seconds N] [option=value ...]

Needs the demo's run (`make demo`), which it leaves as it is but for the profiles of days that audits keep there; all
else that it writes is in `runs/monitor-demo`, and is made anew each time. Options are passed to the training. It
listens on loopback alone, but for the ports where torchrun's processes meet; it goes on until Ctrl-C or for so many
seconds, and ends all that it started. docs/monitoring.md tells what one sees.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psutil
from rich.table import Table

from stack.base.errors import UserError
from stack.serve.client import Running, ask, running_server
from stack.telemetry.console import say, show
from tools.bench.bodies import recorded_bodies, user_of
from tools.monitor.asked import Asked
from tools.monitor.copies import write_alertmanager, write_prometheus
from tools.monitor.programs import alertmanager, node_exporter, prometheus, require_programs, stop, write_target
from tools.monitor.webhook import webhook

RUNS = Path("runs")
FOLDER = RUNS / "monitor-demo"
TARGETS, TEXTFILES = FOLDER / "targets", FOLDER / "textfile"
GROUP = "impression"
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stack")
_MANAGED = ("ids.modes.item=managed", "ids.rows.item=30000")
_PAUSE_SECONDS = 0.2
_FIRST_LOOK_SECONDS = 60.0
_START_SECONDS = 300.0
_SAVE_SECONDS = 60.0
"""Training saves when it is told to end."""


def main(words: Sequence[str]) -> int:
    """Until it is told to end; 2 where something is missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.monitor_demo")
    parser.add_argument("--seconds", type=float, help="end after so many seconds; else at Ctrl-C")
    parser.add_argument("options", nargs="*", metavar="option=value", help="for the training")
    given = parser.parse_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a terminal that is closed, too: Prometheus would go on
        signal.signal(number, _as_interrupt)
    end = None if given.seconds is None else time.monotonic() + given.seconds
    try:
        _demo(given.options, end)
    except (UserError, URLError) as error:  # Prometheus may be ended by others
        say(f"monitor-demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("ended, as was everything it started")
    return 0


def _demo(options: Sequence[str], end: float | None) -> None:
    require_programs()
    package = _newest_package()
    with ExitStack() as stack:
        stack.enter_context(_alone())
        shutil.rmtree(FOLDER, ignore_errors=True)
        for made in (TARGETS, TEXTFILES):
            made.mkdir(parents=True)
        hook = stack.enter_context(webhook(_say_alert))
        messenger = stack.enter_context(alertmanager(write_alertmanager(FOLDER, webhook=hook)))
        files = stack.enter_context(node_exporter(TEXTFILES, log=FOLDER))
        write_target(TARGETS / "node.json", files, role="node")
        config = write_prometheus(FOLDER / "prometheus", targets=[TARGETS], alertmanager=messenger)
        watcher = stack.enter_context(prometheus(config))
        own = (
            "telemetry.enabled=true", f"telemetry.targets={TARGETS}", f"telemetry.textfile={TEXTFILES}",
            "telemetry.port=0",
        )  # fmt: skip
        server = stack.enter_context(running_server(package, options=["serve.workers=1", *own]))
        stack.enter_context(_asked_all_the_time(server, package))
        page = stack.enter_context(_dashboard(watcher))
        train = ("train", "experiment=demo", "train.num_threads=1", "train.num_epochs=100", *_MANAGED, *options)
        run = (f"run.dir={FOLDER}", f"run.name={FOLDER.name}")
        training = stack.enter_context(_started(*_TORCHRUN, *train, *run, *own, log="training"))
        say(
            f"dashboard      {page}\nPrometheus     http://{watcher}\nAlertmanager   http://{messenger}"
            f"\nserver         {server.address}, its metrics {server.admin}/metrics\nlogs, targets  {FOLDER}"
        )
        asked = Asked(watcher)
        _until_training_is_seen(asked, training, end)
        stack.callback(_end_all, training, psutil.Process(training.pid).children(recursive=True))
        audit = ("-m", "stack", "audit", "run.name=demo", f"audit.out={FOLDER / 'audit'}", *own)
        stack.enter_context(_started(*audit, log="audit"))
        _rest(_FIRST_LOOK_SECONDS, end)
        show(_targets(asked))
        show(_alerts(asked))
        if end is None:
            say("Ctrl-C ends it; alerts are told as they come")
        _rest(None, end)


def _newest_package() -> Path:
    """Of those that `make demo` and `make serve-demo` export."""
    demo = RUNS / "demo"
    found = [demo / "package", *sorted((demo / "packages").glob("????-??-??"))]
    there = [one for one in found if (one / "manifest.json").is_file()]
    if not (demo / "checkpoints").is_dir() or not there:
        raise UserError(f"{demo} has no trained model with a package: run `make demo` first")
    return there[-1]


@contextmanager
def _alone() -> Iterator[None]:
    """Another one would take this one's folder away."""
    folder = os.open(RUNS, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"another one runs, and has {FOLDER}: end it first") from error
    finally:
        os.close(folder)


@contextmanager
def _started(*words: str, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program of its own; what it says goes into a file."""
    with (FOLDER / f"{log}.log").open("w") as said:
        process = subprocess.Popen([sys.executable, *words], stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        stop(process, seconds=_SAVE_SECONDS)


def _end_all(launcher: subprocess.Popen[bytes], processes: Sequence[psutil.Process]) -> None:
    """A launcher that was killed leaves its processes behind."""
    stop(launcher, seconds=_SAVE_SECONDS)
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.terminate()
    for one in psutil.wait_procs(processes, timeout=_SAVE_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


@contextmanager
def _dashboard(watcher: str) -> Iterator[str]:
    """Its address."""
    words = ("-m", "stack", "dashboard", f"dashboard.prometheus=http://{watcher}", "dashboard.port=0")
    with _started(*words, log="dashboard") as process:
        deadline = time.monotonic() + _START_SECONDS
        said = FOLDER / "dashboard.log"
        while "dashboard at " not in said.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"stack dashboard did not start: {said.read_text().strip()}")
            time.sleep(0.1)
        yield said.read_text().partition("dashboard at ")[2].split()[0].rstrip(",")


@contextmanager
def _asked_all_the_time(server: Running, package: Path) -> Iterator[None]:
    """A little traffic: vectors and scores of users that the package recorded, in turn."""
    bodies = recorded_bodies(package, GROUP)
    done = threading.Event()

    def go_on() -> None:
        number = 0
        while not done.wait(_PAUSE_SECONDS):
            body = bodies[number % len(bodies)]
            number += 1
            try:
                ask(server.address, "/v1/users:embed", user_of(body))
                ask(server.address, "/v1/items:score", body)
            except (UserError, OSError):  # the dashboard shows them
                continue

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _until_training_is_seen(asked: Asked, training: subprocess.Popen[bytes], end: float | None) -> None:
    deadline = min(time.monotonic() + _START_SECONDS, end or float("inf"))
    while sum(up for (role, _, _), up in asked.up().items() if role == "train") < 2:
        if training.poll() is not None:
            said = (FOLDER / "training.log").read_text().splitlines()
            why = next((line for line in said if line.startswith("stack: ")), "it did not say why")
            raise UserError(f"the training ended with {training.returncode}: {why} ({FOLDER}/training.log)")
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)


def _rest(seconds: float | None, end: float | None) -> None:
    """For so long, but not beyond `end`; for ever where both are None."""
    until = min(float("inf") if seconds is None else time.monotonic() + seconds, end or float("inf"))
    while time.monotonic() < until:
        time.sleep(0.2)


def _targets(asked: Asked) -> Table:
    table = Table("role", "run", "rank", "answers", title="targets")
    for (role, run, rank), up in sorted(asked.up().items()):
        table.add_row(role, run, rank, "yes" if up else "no")
    return table


def _alerts(asked: Asked) -> Table:
    table = Table("alert", "severity", "state", "what", title="alerts")
    for alert in asked.alerts():
        labels = alert["labels"]
        table.add_row(labels["alertname"], labels["severity"], alert["state"], alert["annotations"]["summary"])
    return table


def _say_alert(alert: Mapping[str, Any]) -> None:
    labels, words = alert["labels"], alert["annotations"]
    say(f"{alert['status']}: {labels['alertname']} ({labels['severity']}): {words['summary']}; see {words['runbook']}")


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

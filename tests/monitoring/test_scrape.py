"""A training of two processes, and a server, both real, in a Prometheus that finds them by the files they write."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from stack.export.package import read_manifest
from stack.serve.client import Running, ask, running_server
from tests.clocks import wait_for
from tests.distributed.elastic import SMALL
from tests.distributed.launch import ROOT, TORCHRUN
from tests.export.toy import write_toy_package
from tests.prepared import write_prepared
from tests.serve.in_process import USER
from tools.monitor.asked import Asked
from tools.monitor.copies import write_prometheus
from tools.monitor.programs import prometheus, stop

_RUN = "watched"


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A Prometheus, and what it looks at."""

    prometheus: Asked
    training: subprocess.Popen[bytes]
    server: Running
    package: Path

    def rate(self, figure: str) -> float:
        """The least of the series there are; 0 while there is none."""
        return min((one.value for one in self.prometheus.query(figure)), default=0.0)

    def rank(self, rank: int) -> psutil.Process:
        """The process that trains as `rank`."""
        (found,) = (
            one for one in psutil.Process(self.training.pid).children() if one.environ().get("RANK") == str(rank)
        )
        return found


@pytest.fixture(scope="module")
def watched(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Once everything answers."""
    folder = tmp_path_factory.mktemp("watched")
    targets = folder / "targets"
    targets.mkdir()
    own = (
        "telemetry.enabled=true",
        f"telemetry.targets={targets}",
        "telemetry.port=0",
        f"run.name={_RUN}",
        f"run.dir={folder}",
    )
    prepared = write_prepared(folder / "prepared", num_buckets=4)
    command = [*TORCHRUN, "-m", "stack", "train", *SMALL, *own, f"data.out={prepared}", "train.num_epochs=10000"]
    package = write_toy_package(folder / "package")
    with ExitStack() as stack:
        with (folder / "training.txt").open("w") as said:
            training = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        stack.callback(stop, training)
        server = stack.enter_context(running_server(package, options=["serve.workers=1", *own]))
        config = write_prometheus(folder / "prometheus", targets=[targets], fast=True)
        address = stack.enter_context(prometheus(config))
        found = Watched(prometheus=Asked(address), training=training, server=server, package=package)
        wait_for(lambda: sum(found.prometheus.up().values()) == 3, "not all three can be scraped", seconds=180)
        yield found


def test_all_processes_are_found_and_their_figures_are_rates(watched: Watched) -> None:
    served = read_manifest(watched.package).lineage.run
    assert watched.prometheus.up() == dict.fromkeys(
        [("train", _RUN, "0"), ("train", _RUN, "1"), ("serve", served, "")], True
    )

    def rates() -> bool:
        ask(watched.server.address, "/v1/users:embed", USER)
        return min(map(watched.rate, _RATES)) > 0

    wait_for(rates, "a rate stays 0")
    assert watched.rate("run:stack_serve_errors:ratio_rate5m") == 0
    steps = watched.prometheus.query("stack_train_step")
    assert {one.labels["rank"] for one in steps} == {"0", "1"}


def test_a_rank_that_is_killed_is_told_by_its_number(watched: Watched) -> None:
    watched.rank(1).send_signal(signal.SIGKILL)

    def fires() -> bool:
        return any(
            alert["labels"]["alertname"] == "StackRankDown" and alert["state"] == "firing"
            for alert in watched.prometheus.alerts()
        )

    wait_for(fires, "StackRankDown does not fire")
    down = watched.prometheus.query('up{role="train"} == 0')
    assert (_RUN, "1") in {(one.labels["run"], one.labels["rank"]) for one in down}  # rank 0 fails without it


_RATES = (
    "run:stack_train_steps:rate1m",
    "run:stack_train_examples:rate1m",
    "run_rank:stack_train_step_seconds:p99_5m",
    "run_table:stack_train_lookups:rate1m",
    "run_route:stack_serve_requests:rate1m",
    "run_route:stack_serve_request_seconds:p99_5m",
)

"""Jobs of several processes that lose one, or a whole host, end as if nothing had happened."""

from __future__ import annotations

import functools
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.elastic import NUM_STEPS, Job, lose_host
from tests.distributed.networks import Host, two_networks, why_not
from tests.prepared import write_prepared
from tests.train.worker import Run, versions

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
LOOPBACK = Host()
NO_NOISE = ("model.norm=none", "model.dropout=0")
Losses = list[dict[str, Any]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared") / "data", num_buckets=4)


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Losses]:
    """The log of a run on one host that nothing happens to; each process leaves what it wrote."""

    @functools.cache
    def run(num_processes: int, *options: str) -> Losses:
        one_host = ("cluster.hosts=1", f"cluster.devices_per_host={num_processes}", *options)
        with Job(*one_host, runs=tmp_path_factory.mktemp("whole"), name="whole", prepared=prepared) as job:
            job.start()
            assert job.finish() == [0], job.said()
            losses, said, logs = job.losses(), job.said(), job.rank_logs()
            assert job.num_processes() == [num_processes]
        names = {f"{rank}/{name}.log" for rank in range(num_processes) for name in ("stdout", "stderr")}
        assert len(losses) == NUM_STEPS
        assert f"[0]:step {NUM_STEPS}/{NUM_STEPS}" in said
        assert logs.keys() == {f"host-0/attempt_0/{name}" for name in names}
        assert "training ctr, follow, power, rank on 4 days" in logs["host-0/attempt_0/0/stdout.log"]
        return losses

    return run


@pytest.fixture
def networks() -> Iterator[tuple[Host, Host]]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with two_networks() as hosts:
        yield hosts


def _two_hosts(port: int, *, num_processes: int, first: Host = LOOPBACK) -> list[str]:
    return [
        *("cluster.hosts=2", f"cluster.devices_per_host={num_processes}"),
        f"launch.rendezvous={first.address}:{port}",
    ]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_two_agents_survive_the_loss_of_a_worker_and_of_a_host(
    prepared: Path, tmp_path: Path, uninterrupted: Callable[..., Losses], num_workers: int
) -> None:
    """With more than two processes the order of sums differs in the first step after a restart: DDP lays its buckets
    anew after its first step."""
    port = _free_port()
    with Job(*_two_hosts(port, num_processes=num_workers), runs=tmp_path, name="two", prepared=prepared) as job:
        job.start()
        job.wait_until(lambda: LOOPBACK.listens(port), what="store of the first host")
        second = job.start()
        job.wait_for_step(8)
        job.worker(0).send_signal(signal.SIGKILL)
        job.wait_until(lambda: "going on after step" in job.said(), what="restart")
        job.wait_for_step(20)
        lose_host(second)
        job.start()
        assert job.finish() == [0, -signal.SIGKILL, 0], job.said()
        assert job.num_processes() == [2 * num_workers] * 3
        if num_workers == 1:
            assert job.losses() == uninterrupted(2)
        else:
            _assert_near(job.losses(), uninterrupted(4))


def test_a_host_on_another_network_that_falls_silent_is_missed_and_replaced(
    prepared: Path, tmp_path: Path, networks: tuple[Host, Host], uninterrupted: Callable[..., Losses]
) -> None:
    one, two = networks
    port = _free_port()
    options = [*_two_hosts(port, num_processes=1, first=one), "train.collective_timeout_seconds=15"]
    with Job(*options, runs=tmp_path, name="networks", prepared=prepared) as job:
        job.start(one)
        job.wait_until(lambda: one.listens(port), what="store of the first host")
        second = job.start(two)
        job.wait_for_step(8)
        two.pull_cable()
        lose_host(second)
        line = "is missing: it ended, or took no part for 15 s while the others waited for it;"
        job.wait_until(lambda: line in job.said(), what="line that names the silent rank")
        two.plug_cable()
        job.start(two)
        assert job.finish() == [0, -signal.SIGKILL, 0], job.said()
        assert job.losses() == uninterrupted(2)
        hosts = {name.partition("/")[0] for name in job.rank_logs()}
        assert hosts == {f"host-{one.address}", f"host-{two.address}"}


def test_with_min_hosts_the_others_go_on_and_take_a_host_in_when_it_comes_back(
    prepared: Path, tmp_path: Path, uninterrupted: Callable[..., Losses]
) -> None:
    port = _free_port()
    options = [*_two_hosts(port, num_processes=1), "launch.min_hosts=1", *NO_NOISE]
    with Job(*options, runs=tmp_path, name="fewer", prepared=prepared) as job:
        job.start()
        job.wait_until(lambda: LOOPBACK.listens(port), what="store of the first host")
        second = job.start()
        job.wait_for_step(8)
        lose_host(second)
        job.wait_until(lambda: job.num_processes()[1:] == [1], what="start without the second host")
        job.wait_for_step(20)
        job.worker(0).send_signal(signal.SIGSTOP)  # or it would be at the end before the third has begun
        job.start()
        job.wait_until(lambda: job.num_processes()[2:] == [2], what="start with the third host")
        assert job.finish() == [0, -signal.SIGKILL, 0], job.said()
        assert job.num_processes() == [2, 1, 2]
        _assert_near(job.losses(), uninterrupted(2, *NO_NOISE))


def test_two_agents_save_when_they_are_asked_to_stop_and_go_on_with_the_same_command(
    prepared: Path, tmp_path: Path, uninterrupted: Callable[..., Losses]
) -> None:
    """torchx starts both agents; a scheduler that takes the hosts away sends SIGTERM to each process, some to agents
    alone."""
    options = ["cluster.hosts=2", "cluster.devices_per_host=1", f"launch.port={_free_port()}"]
    with Job(*options, runs=tmp_path, name="asked", prepared=prepared) as job:
        job.start()
        job.wait_for_step(8)
        for process in [*job.workers(), *job.agents()]:
            process.send_signal(signal.SIGTERM)
        assert job.finish() == [1]
        assert "stopped as asked, and saved: the same command goes on from" in job.said()
        saved = max(versions(Run(runs=str(tmp_path), name="asked")))
        assert saved == job.num_logged() < NUM_STEPS
        job.start()
        assert job.finish() == [1, 0], job.said()
        assert f"going on after step {saved}" in job.said()
        assert job.losses() == uninterrupted(2)


def test_a_rank_that_stalls_is_named_by_the_others(prepared: Path, tmp_path: Path) -> None:
    options = [
        "cluster.hosts=1",
        "cluster.devices_per_host=2",
        "launch.max_restarts=0",
        "train.collective_timeout_seconds=15",
    ]
    with Job(*options, runs=tmp_path, name="stalled", prepared=prepared) as job:
        job.start()
        job.wait_for_step(8)
        stalled = job.worker(1)
        stalled.send_signal(signal.SIGSTOP)
        lines = "stack: rank 1 of 2 is missing: it ended, or took no part for 15 s while the others waited for it;"
        job.wait_until(lambda: lines in job.said(), what="line that names rank 1")
        stalled.send_signal(signal.SIGKILL)
        assert job.finish() == [1]
        errors = job.rank_logs()["host-0/attempt_0/0/stderr.log"].splitlines()
        assert [line[: len(lines)] for line in errors if line.startswith("stack: ")] == [lines]
        assert not any("Traceback" in line for line in errors)


def _assert_near(ours: Losses, theirs: Losses) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one["num_examples"] == other["num_examples"]
        assert one["losses"] == pytest.approx(other["losses"], rel=2e-3), one["step"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])

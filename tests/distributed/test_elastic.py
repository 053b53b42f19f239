"""Jobs of several processes that lose one, or a whole host, end as if nothing had happened."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.distributed.elastic import NUM_STEPS, Job, lose_host
from tests.prepared import write_prepared

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
ONE_HOST = ("cluster.hosts=1", "cluster.devices_per_host=2")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The log of a run of two processes on one host that nothing happens to; each process leaves what it wrote."""
    with Job(*ONE_HOST, runs=tmp_path_factory.mktemp("whole"), name="whole", prepared=prepared) as job:
        job.start()
        assert job.finish() == [0], job.said()
        losses, said, logs = job.losses(), job.said(), job.rank_logs()
    assert len(losses) == NUM_STEPS
    assert f"[0]:step {NUM_STEPS}/{NUM_STEPS}" in said
    assert logs.keys() == {f"host-0/attempt_0/{rank}/{name}.log" for rank in (0, 1) for name in ("stdout", "stderr")}
    assert "training ctr, follow, power, rank on 4 days" in logs["host-0/attempt_0/0/stdout.log"]
    return losses


def test_two_agents_survive_the_loss_of_a_worker_and_of_a_host(
    prepared: Path, tmp_path: Path, uninterrupted: list[dict[str, object]]
) -> None:
    port = _free_port()
    options = ["cluster.hosts=2", "cluster.devices_per_host=1", f"launch.rendezvous=127.0.0.1:{port}"]
    with Job(*options, runs=tmp_path, name="two", prepared=prepared) as job:
        job.start()
        job.wait_until(lambda: _listens(port), what="store of the first host")
        second = job.start()
        job.wait_for_step(8)
        job.worker(0).send_signal(signal.SIGKILL)
        job.wait_until(lambda: "going on after step" in job.said(), what="restart")
        job.wait_for_step(20)
        lose_host(second)
        job.start()
        assert job.finish() == [0, -signal.SIGKILL, 0], job.said()
        assert job.losses() == uninterrupted


def test_two_agents_save_when_they_are_asked_to_stop_and_go_on_with_the_same_command(
    prepared: Path, tmp_path: Path, uninterrupted: list[dict[str, object]]
) -> None:
    """torchx starts both agents; a scheduler that takes the hosts away sends SIGTERM to each agent."""
    options = ["cluster.hosts=2", "cluster.devices_per_host=1", f"launch.port={_free_port()}"]
    with Job(*options, runs=tmp_path, name="asked", prepared=prepared) as job:
        job.start()
        job.wait_for_step(8)
        for agent in job.agents():
            agent.send_signal(signal.SIGTERM)
        assert job.finish() == [1]
        assert "stopped as asked, and saved: the same command goes on from" in job.said()
        saved = max(int(path.name) for path in (job.folder / "checkpoints").iterdir())
        assert saved == job.num_logged() < NUM_STEPS
        job.start()
        assert job.finish() == [1, 0], job.said()
        assert f"going on after step {saved}" in job.said()
        assert job.losses() == uninterrupted


def test_a_rank_that_stalls_is_named_by_the_others(prepared: Path, tmp_path: Path) -> None:
    options = [*ONE_HOST, "launch.max_restarts=0", "train.collective_timeout_seconds=15"]
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


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])

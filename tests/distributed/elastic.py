"""Jobs started by `stack launch train` on this machine, that tests wound while they run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from tests.distributed.launch import ROOT
from tests.distributed.networks import INTERFACE, Host

TIMEOUT_SECONDS = 240
NUM_STEPS = 64
SMALL = (
    "data=events", "data.path=none", "model.num_states=16", "model.norm=batch", "model.dropout=0.2",
    "train.batch_size=16", "train.num_epochs=8", "train.save_every_steps=5", "train.log_every_steps=5",
    "train.num_threads=1",
)  # fmt: skip
"""The smallest model with all that a resumed run must restore: random draws, running statistics, two optimizers."""


class Job:
    """A run of training, of as many launches as a test starts for it. Ends all of them at the end of its block."""

    def __init__(self, *options: str, runs: Path, name: str, prepared: Path) -> None:
        self.folder = runs / name
        self._where = f"run.dir={runs}"
        self._name = f"run.name={name}"
        self._options = [*SMALL, f"data.out={prepared}", self._where, self._name, *options]
        self._launches: list[subprocess.Popen[bytes]] = []
        self._streams: list[Path] = []
        self._runs = runs

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes():
            _kill(process)
        for launch in self._launches:
            launch.kill()
            launch.wait()

    def start(self, host: Host | None = None) -> subprocess.Popen[bytes]:
        """One more `stack launch train`, on the given host where they are told apart; what it says goes into a file."""
        stream = self._runs / f"{self.folder.name}-{len(self._launches)}.txt"
        inside, options = list(host.inside) if host else [], _own_options(host) if host else []
        with stream.open("wb") as file:
            launch = subprocess.Popen(
                [*inside, sys.executable, "-m", "stack", "launch", "train", *self._options, *options],
                cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._launches.append(launch)
        self._streams.append(stream)
        return launch

    def said(self) -> str:
        """What all launches have said so far."""
        return "\n".join(stream.read_text(errors="replace") for stream in self._streams)

    def finish(self) -> list[int]:
        """Exit statuses of the launches, in their order."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for launch in self._launches:
            try:
                launch.wait(timeout=max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"not over after {TIMEOUT_SECONDS} s:\n{self.said()}") from None
        return [launch.returncode for launch in self._launches]

    def wait_for_step(self, step: int) -> None:
        """Until the run's log has this step."""
        self.wait_until(lambda: self.num_logged() >= step, what=f"step {step}")

    def wait_until(self, happened: Callable[[], bool], *, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not happened():
            assert time.monotonic() < deadline, f"no {what} after {TIMEOUT_SECONDS} s:\n{self.said()}"
            ended = [launch.returncode for launch in self._launches if launch.poll() not in (None, -signal.SIGKILL)]
            assert not ended, f"over before {what}, with {ended}:\n{self.said()}"
            time.sleep(0.005)

    def num_logged(self) -> int:
        log = self.folder / "steps.jsonl"
        return log.read_bytes().count(b"\n") if log.is_file() else 0

    def workers(self) -> list[psutil.Process]:
        """The processes that train."""
        return [process for process in self._processes() if _rank(process) >= 0]

    def worker(self, rank: int) -> psutil.Process:
        """The process that trains as `rank`."""
        found = [process for process in self.workers() if _rank(process) == rank]
        assert len(found) == 1, f"rank {rank} is {len(found)} processes"
        return found[0]

    def agents(self) -> list[psutil.Process]:
        """torchrun on each host."""
        return [process for process in self._processes() if "torch.distributed.run" in process.cmdline()]

    def losses(self) -> list[dict[str, object]]:
        """The run's log without its times."""
        records = [msgspec.json.decode(line) for line in (self.folder / "steps.jsonl").read_bytes().splitlines()]
        return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]

    def num_processes(self) -> list[int]:
        """How many processes trained after each start."""
        file = self.folder / "versions.json"
        return [start["processes"] for start in msgspec.json.decode(file.read_bytes())] if file.is_file() else []

    def rank_logs(self) -> dict[str, str]:
        """What each process wrote to stdout and stderr, by the path below the run's logs, without random parts."""
        found = {}
        for path in sorted((self.folder / "logs").glob("host-*/*/attempt_*/*/*.log")):
            host, _, attempt, rank, name = path.parts[-5:]
            found[f"{host}/{attempt}/{rank}/{name}"] = path.read_text(errors="replace")
        return found

    def _processes(self) -> list[psutil.Process]:
        """Everything of this run: launches, schedulers, agents, workers."""
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if f"{self._where} {self._name}" in words:
                found.append(process)
        return found


def lose_host(launch: subprocess.Popen[bytes]) -> None:
    """Ends a launch, its agent and its workers at once, as a machine does that loses power."""
    top = psutil.Process(launch.pid)
    family = [top, *top.children(recursive=True)]
    for process in family:
        _kill(process, signal.SIGSTOP)
    for process in family:
        _kill(process)
    launch.wait()


def _own_options(host: Host) -> list[str]:
    return [f"launch.local_addr={host.address}", f"launch.env.GLOO_SOCKET_IFNAME={INTERFACE}"]


def _kill(process: psutil.Process, number: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _rank(process: psutil.Process) -> int:
    """-1 where the process is not a worker."""
    try:
        words, variables = process.cmdline(), process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return -1
    return int(variables["RANK"]) if "train" in words and "RANK" in variables else -1

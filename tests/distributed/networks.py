"""Two hosts on one machine: network namespaces joined by a cable that can be pulled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

INTERFACE = "cable"
TIMEOUT_SECONDS = 10
_SLEEP = ("sleep", "infinity")


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where a command is run, and its address there; `inside` is what goes before the command."""

    address: str = "127.0.0.1"
    inside: tuple[str, ...] = ()

    def listens(self, port: int) -> bool:
        """Whether somebody on this host answers at its address."""
        probe = ["bash", "-c", f"exec 3<>/dev/tcp/{self.address}/{port}"]
        return subprocess.run([*self.inside, *probe], capture_output=True, check=False).returncode == 0

    def pull_cable(self) -> None:
        """Nothing comes from this host any more, and it says nothing of that."""
        self._run("ip", "link", "set", INTERFACE, "down")

    def plug_cable(self) -> None:
        self._run("ip", "link", "set", INTERFACE, "up")

    def _run(self, *command: str) -> None:
        done = subprocess.run([*self.inside, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def why_not() -> str:
    """Why there cannot be two networks here; empty where there can."""
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"no program {', '.join(missing)}"
    try:
        with two_networks():
            return ""
    except AssertionError as error:
        return f"this user may not make networks ({error}): be root, or begin with `unshare --map-root-user --net`"


@contextlib.contextmanager
def two_networks() -> Iterator[tuple[Host, Host]]:
    """Gone with the block."""
    with contextlib.ExitStack() as ends:
        pids = [ends.enter_context(_namespace()) for _ in range(2)]
        hosts = [
            Host(address=f"10.200.77.{number}", inside=("nsenter", f"--net=/proc/{pid}/ns/net"))
            for number, pid in enumerate(pids, start=1)
        ]
        ports = [f"name {INTERFACE} netns {pid}".split() for pid in pids]
        Host()._run("ip", "link", "add", *ports[0], "type", "veth", "peer", *ports[1])
        for host in hosts:
            host._run("ip", "address", "add", f"{host.address}/24", "dev", INTERFACE)
            host._run("ip", "link", "set", "lo", "up")
            host.plug_cable()
        yield hosts[0], hosts[1]


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """A process in a network of its own."""
    with subprocess.Popen(["unshare", "--net", *_SLEEP], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not _is_apart(process.pid):
                assert process.poll() is None, process.stderr.read().strip()
                assert time.monotonic() < deadline, "unshare has not made a network"
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()


def _is_apart(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    except OSError:  # it has ended
        return False

"""Disturbs saving, compacting and pruning at every call to the system that changes something; counts what comes out.

    python -m tests.checkpoint.count_faults [--quick] [--injector strace|python] [--action NAME] [--fault NAME] [--json]

`strace` has the kernel do it, from outside. `python` needs no tool: it wraps the functions of `os`, and knows a fault
more: a call that was done, and whose answer was lost. Each fault hits a child of this process, which has everything
imported; then this process looks at the chain as a reader would, and tries again.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from stack.base.files import ASIDE
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import open_version
from stack.checkpoint.retain import prune
from stack.checkpoint.verify import Kind, verify
from tests.checkpoint.fault_worker import (
    ACTIONS,
    KEEP,
    LATER_SECONDS,
    REFUSED,
    in_one_thread,
    prepare,
    status_of,
)

SYSTEM_CALLS = (
    "write", "pwrite64", "writev", "fsync", "fdatasync", "mkdir", "mkdirat", "link", "linkat", "rename", "renameat",
    "renameat2", "unlink", "unlinkat", "rmdir",
)  # fmt: skip
FUNCTIONS = ("write", "pwrite", "fsync", "fdatasync", "mkdir", "link", "rename", "replace", "unlink", "rmdir")
KILL, LOST = "kill", "lost"
FAULTS = {"strace": (KILL, "ENOSPC", "EIO"), "python": (KILL, "ENOSPC", "EIO", LOST)}
WAIT_SECONDS = 20.0
_TRIAL = f"{ASIDE}trial-"
"""What a probe of the place left that was killed: three tiny files that no prune can tell from a living one's."""


@dataclass(kw_only=True)
class Row:
    """Of one action, call and fault. `old`, `new`: what a reader saw after it; `between`: pruning had marked some
    versions and not all. `told`: the action ended with an error that it explained; `nothing`: it went on."""

    action: str
    call: str
    fault: str
    points: int
    old: int = 0
    new: int = 0
    between: int = 0
    told: int = 0
    nothing: int = 0
    wrong: list[str] = field(default_factory=list)


class Subject:
    """One action on copies of one prepared chain."""

    def __init__(self, folder: Path, action: str) -> None:
        self.action = action
        self._folder = folder
        self._template = folder / "template"
        prepare(self._template, action)
        with self.copy() as chain:
            assert status_of(Path(chain.store.url), action) == 0
            self._digests = {number: self._digest(chain, number) for number in self._readable(chain)}
            self._new = self._names(chain)
            self._tidy(chain)
            self._tidied = self._shape(chain)
        chain = chain_of(self._template)
        self._digests |= {number: self._digest(chain, number) for number in self._readable(chain)}
        self._old = self._names(chain)

    @contextmanager
    def copy(self) -> Iterator[Chain]:
        folder = self._folder / "copy"
        subprocess.run(["cp", "-a", str(self._template), str(folder)], check=True)  # links stay links
        try:
            yield chain_of(folder)
        finally:
            shutil.rmtree(folder)

    def look(self, chain: Chain, *, tidied: bool = False) -> str:
        """What a reader sees: every version that is there as it was written, and none half."""
        seen = self.standing(chain)
        for number in self._readable(chain):
            assert self._digest(chain, number) == self._digests[number], f"version {number} reads differently"
        report = verify(chain)
        found = [one for one in report.findings if tidied or one.kind is not Kind.leftover]
        found = [one for one in found if not one.name.startswith(_TRIAL)]
        assert not found, found
        return seen

    def standing(self, chain: Chain) -> str:
        """Which versions and compactions there are: those from before, or those that the action makes."""
        names = self._names(chain)
        between = self.action == "prune" and all(
            set(old) <= set(now) <= set(new) or set(new) <= set(now) <= set(old)
            for old, now, new in zip(self._old, names, self._new, strict=True)
        )
        assert names in (self._old, self._new) or between, f"{names} is neither {self._old} nor {self._new}"
        return "old" if names == self._old else "new" if names == self._new else "between"

    def converge(self, chain: Chain) -> None:
        """Tries again, and sweeps what is left: then it is as if nothing had happened."""
        status = _ended(_child(lambda: status_of(Path(chain.store.url), self.action)))
        assert status == 0, f"trying again ended with {status}"
        assert self.standing(chain) == "new"
        self._tidy(chain)
        left, wanted = self._shape(chain).items(), self._tidied.items()
        assert left == wanted, f"is left: {dict(left - wanted)}, should be: {dict(wanted - left)}"
        assert self.look(chain, tidied=True) == "new"

    def _tidy(self, chain: Chain) -> None:
        options = KEEP if self.action == "prune" else CheckpointConfig(keep_last=99)
        prune(chain, options, clock=lambda: time.time() + LATER_SECONDS)

    @staticmethod
    def _shape(chain: Chain) -> dict[str, int]:
        """Files by folder, whatever the unique names are."""
        found: dict[str, int] = {}
        for name in chain.store.list():
            if name.startswith(_TRIAL):
                continue
            about = re.sub(r"[0-9a-f]{32}", "*", name).replace(ASIDE, "aside ")
            found[about] = found.get(about, 0) + 1
        return found

    @staticmethod
    def _names(chain: Chain) -> tuple[tuple[int, ...], ...]:
        return chain.numbers(), chain.compacted(), chain.pruned()

    @staticmethod
    def _readable(chain: Chain) -> list[int]:
        return [number for number in chain.numbers() if number not in chain.pruned()]

    @staticmethod
    def _digest(chain: Chain, number: int) -> str:
        return open_version(chain, chain.manifest(number)).digest()


def _child(body: Callable[[], int], *, stopped: bool = False) -> int:
    """Forks; the child does `body` and ends with what it returns, first stopping itself where asked."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        status = body()
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def _ended(pid: int) -> int:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"did not end within {WAIT_SECONDS:g} s")


class Strace:
    """Has the kernel disturb a process from outside."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "strace.log"

    def counts(self, body: Callable[[], int]) -> dict[str, int]:
        status = self._run(body, ["-f", "-e", f"trace={','.join(SYSTEM_CALLS)}"])
        assert status == 0, f"undisturbed it ended with {status}"
        text = self._log.read_text()
        assert len(set(re.findall(r"^(\d+) +\w+\(", text, re.MULTILINE))) == 1, "a thread of its own has calls"
        found = re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE)
        return {call: found.count(call) for call in SYSTEM_CALLS if call in found}

    def disturb(self, body: Callable[[], int], call: str, number: int, fault: str) -> int:
        what = "signal=KILL" if fault == KILL else f"error={fault}"
        status = self._run(body, ["-e", f"trace={call}", "-e", f"inject={call}:{what}:when={number}"])
        hit = status == -signal.SIGKILL if fault == KILL else "(INJECTED)" in self._log.read_text()
        assert hit, f"{fault} at {call} {number} did not come"
        return status

    def _run(self, body: Callable[[], int], options: list[str]) -> int:
        pid = _child(body, stopped=True)
        os.waitpid(pid, os.WUNTRACED)
        command = ["strace", "-qq", "-o", str(self._log), *options, "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            deadline = time.monotonic() + WAIT_SECONDS
            while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
                if tracer.poll() is not None or time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    assert tracer.stderr is not None
                    raise RuntimeError(f"strace cannot be used here: {tracer.stderr.read().strip() or 'no answer'}")
                time.sleep(0.0005)
            os.kill(pid, signal.SIGCONT)
            return _ended(pid)


class Wrapping:
    """Disturbs the functions of `os` inside the process."""

    def counts(self, body: Callable[[], int]) -> dict[str, int]:
        found = dict.fromkeys(FUNCTIONS, 0)
        with _wrapped(lambda call, function, *arguments, **options: _counted(found, call, function)):
            assert body() == 0
        return {call: count for call, count in found.items() if count}

    def disturb(self, body: Callable[[], int], call: str, number: int, fault: str) -> int:
        left = [number]

        def disturbed(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            left[0] -= name == call
            if name != call or left[0] != 0:
                return function
            left[0] = -1
            if fault == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == LOST:
                function(*arguments, **options)
            code = getattr(errno, fault, errno.EIO)
            raise OSError(code, os.strerror(code))

        def child() -> int:
            with _wrapped(disturbed):
                return body()

        return _ended(_child(child))


def _counted(found: dict[str, int], call: str, function: Callable[..., Any]) -> Callable[..., Any]:
    found[call] += 1
    return function


@contextmanager
def _wrapped(choose: Callable[..., Callable[..., Any]]) -> Iterator[None]:
    """Each function of `os` asks `choose` first what it is to do."""
    with mock.patch.multiple(os, **{name: _asking(name, getattr(os, name), choose) for name in FUNCTIONS}):
        yield


def _asking(name: str, function: Callable[..., Any], choose: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
    return lambda *arguments, **options: choose(name, function, *arguments, **options)(*arguments, **options)


def count(folder: Path, action: str, *, injector: str, faults: Sequence[str], quick: bool) -> list[Row]:
    """Faults at every call (`quick`: at the first, one in the middle, the last) of an action."""
    subject = Subject(folder, action)
    tool = Strace(folder) if injector == "strace" else Wrapping()

    def on(chain: Chain) -> Callable[[], int]:
        return lambda: status_of(Path(chain.store.url), action)

    with subject.copy() as chain:
        counts = tool.counts(on(chain))
    rows = []
    for call, num_calls in counts.items():
        points = sorted({1, (num_calls + 1) // 2, num_calls}) if quick else range(1, num_calls + 1)
        for fault in faults:
            row = Row(action=action, call=call, fault=fault, points=len(points))
            rows.append(row)
            for number in points:
                with subject.copy() as chain:
                    try:
                        _one(row, subject, chain, tool.disturb(on(chain), call, number, fault))
                    except AssertionError as error:
                        row.wrong.append(f"{action}: {fault} at {call} {number}: {error}")
    return rows


def _one(row: Row, subject: Subject, chain: Chain, status: int) -> None:
    wanted = {-signal.SIGKILL} if row.fault == KILL else {0, REFUSED}
    assert status in wanted, f"it ended with {status}"
    row.told += status == REFUSED
    row.nothing += status == 0
    seen = subject.look(chain)
    assert status != 0 or seen == "new", "it said that all is well, and it is not"
    setattr(row, seen, getattr(row, seen) + 1)
    subject.converge(chain)


def told(rows: list[Row]) -> str:
    """A table by action and call, for people and for the documentation."""
    lines = [
        "| action | call | calls | faults | old seen | new seen | between | said so | no harm | wrong |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    kinds = {(row.action, row.call): row.points for row in rows}
    groups = [(f"{action} | {call} | {points}", [row for row in rows if (row.action, row.call) == (action, call)])
              for (action, call), points in kinds.items()]  # fmt: skip
    for name, group in [*groups, (f"all | | {sum(kinds.values())}", rows)]:
        sums = [sum(getattr(row, key) for row in group) for key in ("old", "new", "between", "told", "nothing")]
        numbers = [sum(row.points for row in group), *sums, sum(len(row.wrong) for row in group)]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--injector", choices=sorted(FAULTS), default="strace")
    parser.add_argument("--action", choices=sorted(ACTIONS), action="append")
    parser.add_argument("--fault", choices=FAULTS["python"], action="append")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    in_one_thread()
    begin, rows = time.monotonic(), []
    for action in asked.action or ACTIONS:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            faults = asked.fault or FAULTS[asked.injector]
            rows += count(Path(folder), action, injector=asked.injector, faults=faults, quick=asked.quick)
    wrong = [line for row in rows for line in row.wrong]
    if asked.json:
        print(json.dumps([asdict(row) for row in rows]))  # noqa: T201
    else:
        print(told(rows))  # noqa: T201
        print(f"{time.monotonic() - begin:.0f} s, {os.cpu_count()} cores, {asked.injector}")  # noqa: T201
        print("\n".join(wrong), file=sys.stderr)  # noqa: T201
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

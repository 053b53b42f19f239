"""The worker processes of a server, from the supervisor's side: started, spoken to, started again when they die.

All accept from one listening socket, so a worker that dies takes with it only what it had accepted.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
from prometheus_client import multiprocess

from stack.base.errors import PackageError
from stack.serve.config import ServeConfig
from stack.serve.control import MAX_LINE_BYTES, Drop, Message, Stop, next_answer, write
from stack.serve.worker import Begin
from stack.telemetry.console import say

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client writes what a process counts; it looks for it when it is imported."""
_RESTART_SECONDS = 0.5
_MOST_RESTART_SECONDS = 30.0
_ORDER_SECONDS = 600.0


class WorkerGoneError(Exception):
    """A worker died before it answered."""


class Member:
    """One worker process."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process
        self.control = control
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[str | None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self.ended = asyncio.get_running_loop().create_future()

    async def connect(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self.control, limit=MAX_LINE_BYTES)
        asyncio.get_running_loop().create_task(self._listen(reader)).add_done_callback(_reraise)

    async def order(self, message: Message) -> None:
        """Waits until it is done.

        Raises: `PackageError` where the worker could not, `WorkerGoneError` where it died.
        """
        assert self._writer is not None
        number = next(self._ids)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        try:
            write(self._writer, msgspec.structs.replace(message, id=number))
            await self._writer.drain()
            error = await asyncio.wait_for(answer, _ORDER_SECONDS)
        except TimeoutError as late:
            self.kill()  # what it may still do would be unknown: another takes its place
            raise WorkerGoneError from late
        except ConnectionError as gone:
            raise WorkerGoneError from gone
        finally:
            self._waiting.pop(number, None)
        if error is not None:
            raise PackageError(error)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while (done := await next_answer(reader)) is not None:
                waiting = self._waiting.get(done.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(done.error)
        except ConnectionError:
            pass  # it died: as at the end of what it said
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(WorkerGoneError())
        if not self.ended.done():
            self.ended.set_result(None)
        if self._writer is not None:
            self._writer.close()

    def kill(self) -> None:
        self.process.kill()


class Crew:
    """`num_workers` processes. `prepare` brings a new one up to what the others serve, before it accepts."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        listener: socket.socket,
        folder: Path,
        num_workers: int,
        prepare: Callable[[Member], Awaitable[None]],
        died: Callable[[], None],
    ) -> None:
        self._config = config
        self._listener = listener
        self._folder = folder
        self._num_workers = num_workers
        self._prepare = prepare
        self._died = died
        self._keepers: list[asyncio.Task[None]] = []
        self.members: list[Member] = []

    async def start(self) -> None:
        """Starts all workers; returns when each is up. Raises: `PackageError` where the first cannot serve."""
        first = await self._begun()
        self._keep(first)
        for member in await asyncio.gather(*(self._begun() for _ in range(self._num_workers - 1))):
            self._keep(member)

    async def order(self, message: Message) -> None:
        """All workers that live do it; a worker that dies meanwhile is started again as things stand then.

        Raises: `PackageError` of the first that could not, or where none lived to do it.
        """
        members = list(self.members)
        results = await asyncio.gather(*(member.order(message) for member in members), return_exceptions=True)
        for result in results:
            if isinstance(result, PackageError):
                raise result
            if isinstance(result, BaseException) and not isinstance(result, WorkerGoneError):
                raise result
        if not isinstance(message, Drop) and all(isinstance(result, WorkerGoneError) for result in results):
            raise PackageError("no worker lived to do it: see the server's log")

    async def stop(self, seconds: float) -> None:
        """Lets all answer what is under way; kills those that take longer, whatever else they were told to do."""
        for keeper in self._keepers:
            keeper.cancel()
        members, self.members = self.members, []
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._stopped(member, seconds) for member in members))

    async def _stopped(self, member: Member, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        with suppress(TimeoutError, PackageError, WorkerGoneError):
            await asyncio.wait_for(member.order(Stop(id=0)), seconds)
        await self._reaped(member, deadline - asyncio.get_running_loop().time())

    def _keep(self, member: Member) -> None:
        self.members.append(member)
        task = asyncio.get_running_loop().create_task(self._keeper(member))
        task.add_done_callback(_reraise)
        self._keepers.append(task)

    async def _keeper(self, member: Member) -> None:
        """Starts a worker again whenever it dies; slower and slower where it cannot be started."""
        pause = _RESTART_SECONDS
        while True:
            await member.ended
            self.members.remove(member)
            await self._reaped(member, 0.0)
            say(f"worker {member.process.pid} ended with status {member.process.returncode}: starting another")
            self._died()
            while True:
                try:
                    member = await self._begun()
                    break
                except (PackageError, WorkerGoneError, OSError) as error:
                    say(f"a worker cannot be started ({error or 'it died'}): trying again in {pause:g} s")
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _MOST_RESTART_SECONDS)
            pause = _RESTART_SECONDS
            self.members.append(member)

    async def _begun(self) -> Member:
        ours, theirs = socket.socketpair()
        listener = self._listener.fileno()
        process = subprocess.Popen(
            [
                "env", f"{METRICS_VARIABLE}={self._folder / 'metrics'}", "OMP_NUM_THREADS=1",
                sys.executable, "-m", "stack.serve.worker", str(listener), str(theirs.fileno()),
            ],
            pass_fds=(listener, theirs.fileno()),
            stdin=subprocess.PIPE,
            process_group=0,  # a Ctrl-C is for the supervisor, which lets them drain
        )  # fmt: skip
        theirs.close()
        begin = Begin(config=msgspec.to_builtins(self._config), cache_folder=str(self._folder / "cache"))
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(begin) + b"\n")
        process.stdin.close()
        member = Member(process, ours)
        await member.connect()
        try:
            await self._prepare(member)
        except BaseException:
            member.kill()
            await self._reaped(member, 0.0)
            raise
        return member

    async def _reaped(self, member: Member, seconds: float) -> None:
        """Waits for a process to end, so long; then kills it."""
        process = member.process
        deadline = asyncio.get_running_loop().time() + seconds
        while process.poll() is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
        multiprocess.mark_process_dead(process.pid, str(self._folder / "metrics"))  # type: ignore[no-untyped-call]


def _reraise(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error

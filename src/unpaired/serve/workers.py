"""The server's side of a worker process: starts it, gives it one job after the other, replaces it when it dies."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from unpaired.serve.messages import Header, Message, receive, send

TRIES = 3
PAUSES = (
    0.0,
    0.0,
    1.0,
    5.0,
    30.0,
)  # seconds before it is started again, the nth time it dies in a row


class Lost(Exception):
    """The worker died of this job, or with it."""


class TooLong(Exception):
    """The job took longer than it may; the worker was replaced."""


@dataclass
class Job:
    header: Header
    blobs: Sequence[bytes]
    begun: asyncio.Future[None] = field(default_factory=lambda: new_future())
    answer: asyncio.Future[Message] = field(default_factory=lambda: new_future())


def new_future() -> asyncio.Future:
    return asyncio.get_running_loop().create_future()


class Worker:
    """A process that answers one job at a time, in the order in which they came.

    command: a Python module and its arguments. fds: open files that it inherits. seconds: how long a job may take.
    hello: is told its first message, whenever it has started. hopeless: is called when it died `TRIES` times and was
    never ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        seconds: float,
        fds: Sequence[int] = (),
        threads: int | None = None,
        hello: Callable[[Header], Awaitable[None]] | None = None,
        hopeless: Callable[[], None] | None = None,
    ) -> None:
        self.command, self.seconds, self.fds, self.threads = command, seconds, fds, threads
        self.hello, self.hopeless = hello, hopeless
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.ready = False
        self.starts = 0
        self.process: Process | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self.live())

    async def stop(self) -> None:
        if self.task:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task

    async def call(
        self, header: Header, blobs: Sequence[bytes] = (), queue_seconds: float | None = None
    ) -> Message:
        """The worker's answer. Raises `Lost`, `TooLong`, and `TimeoutError` when the job's turn has not come within
        `queue_seconds`. A caller that is cancelled takes its job out of the queue."""
        job = Job(header, blobs)
        self.jobs.put_nowait(job)
        try:
            async with asyncio.timeout(queue_seconds):
                await job.begun
            return await job.answer
        finally:
            job.answer.cancel()  # nothing, where it is there

    async def live(self) -> None:
        deaths = 0
        try:
            while True:
                await asyncio.sleep(PAUSES[min(deaths, len(PAUSES) - 1)])
                try:
                    await self.run()
                except (asyncio.IncompleteReadError, ConnectionError):
                    pass
                except Exception:  # what a worker says may be anything
                    with suppress(OSError):  # nobody reads
                        traceback.print_exc()
                finally:
                    deaths = 1 if self.ready else deaths + 1
                    self.ready = False
                    await self.end()
                if deaths == self.starts == TRIES and self.hopeless:
                    self.hopeless()
        finally:
            while not self.jobs.empty():
                refuse(self.jobs.get_nowait())

    async def run(self) -> None:
        """One process, from its start until it dies."""
        env = {k: v for k, v in os.environ.items() if k != "UNPAIRED_TOKEN"}
        own = {"", os.getcwd()} & set(sys.path)  # else a json.py beside the user would be ours
        if self.threads:
            env |= {"OMP_NUM_THREADS": str(self.threads), "OPENBLAS_NUM_THREADS": str(self.threads)}
        self.starts += 1
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(() if own else ("-P",)),
            "-m",
            *self.command,
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=self.fds,
            env=env,
            start_new_session=True,  # Ctrl-C is for the server, which finishes what it has
            limit=1 << 20,
        )
        pipe_in, pipe_out = self.process.stdin, self.process.stdout
        assert pipe_in and pipe_out
        header, _ = await receive(pipe_out)
        if self.hello:
            await self.hello(header)
        self.ready = True
        while True:
            job = await self.next(self.process)
            if job.begun.done() or job.answer.done():
                continue  # its client has gone, or is about to: a cancelled wait is told in the next turn of the loop
            job.begun.set_result(None)
            try:
                async with asyncio.timeout(self.seconds):
                    await send(pipe_in, job.header, job.blobs)
                    answer = await receive(pipe_out)
            except TimeoutError:
                fail(job, TooLong())
                return
            except BaseException:
                fail(job, Lost())
                raise
            if not job.answer.done():
                job.answer.set_result(answer)

    async def next(self, process: Process) -> Job:
        """The next job. Raises `ConnectionError` when the process dies while there is none."""
        getting = asyncio.create_task(self.jobs.get())
        dying = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({getting, dying}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            raise ConnectionResetError("the worker died while it had nothing to do")
        finally:
            getting.cancel()
            dying.cancel()

    async def end(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.stdin:
            process.stdin.close()


def fail(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


def refuse(job: Job) -> None:
    if not job.begun.done():
        job.begun.set_result(None)
    fail(job, Lost())

"""Decodes every picture in a few guarded processes (`app.pictures.decoder`), so that none costs more than it may.

A picture first gets a little time and memory, which all but a few in a thousand photographs never use up. One that
does is costly: it goes on while nothing else waits, but when others do, all costly ones but one are ended and begin
again when it is quiet. So pictures that take long, whatever makes them so, hold up only each other.
Whose fault an end is, the kernel tells: a process out of its CPU time, or a decoder that crashed, is the picture's
doing; anything else is ours, is tried once more, and then says so. Everything here runs in the event loop.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import itertools
import json
import logging
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.errors import BrokenImage, DecoderFailed, Overloaded, ServiceError, TooCostly, of_image
from app.metrics import Metrics
from app.pictures import decoder
from app.settings import Settings
from model.config import PreprocessConfig
from model.images import FORMATS

logger = logging.getLogger("app.guard")

ROOT = Path(__file__).parents[2]  # where `app` is imported from
MEBIBYTE = 2**20
QUICK, QUICK_PER_BYTE = 0.1, 20e-9  # seconds of CPU after which a picture is costly
QUICK_SHARE = 4  # of the memory that a picture may take it has a quarter at first; one at a time may have all
SECONDS_PER_BYTE = 50e-9  # smaller files first: one of 20 MB lets those of the second after it pass
PICTURES = 1000  # after which a worker is replaced
PATIENCE = 6  # a picture may take that many times its CPU seconds; if it does, the machine is to blame
START_SECONDS = 60.0
CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture made ready for the encoder: `pixels` are (size, size, 3) RGB, `width` and `height` the file's own."""

    pixels: NDArray[np.uint8]
    width: int
    height: int
    format: str
    seconds: float  # that decoding took
    decorative: bool = False  # see `app.decorative`


@dataclass(eq=False, slots=True)
class Job:
    """A file on its way."""

    data: bytes
    future: asyncio.Future[Decoded]
    costly: bool = False  # used up what a picture gets at first
    large: bool = False  # needs more memory than that
    failures: int = 0  # of ours

    @property
    def wanted(self) -> bool:
        """False once its caller has gone or been answered."""
        return not self.future.done()


@dataclass(eq=False, slots=True)
class Worker:
    """A process that decodes, or one that is being forked (`pid` 0)."""

    channel: socket.socket
    file: int  # the memory shared with it; written as a file, which touches no pages here
    shared: mmap.mmap
    pid: int = 0
    job: Job | None = None
    begun: float = 0.0  # when the job did, by `time.monotonic`
    cpu: float = 0.0  # seconds that the process had used then
    served: int = 0
    timer: asyncio.TimerHandle | None = None  # when to look how far it is, or to lose patience
    ended: str | None = None  # why we ended it

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


@dataclass(slots=True)
class Guard:
    """The processes, and what waits for them.

    workers: how many decode at once, 2 or more: one of them may be busy with something costly. max_bytes: of a
    file. seconds, memory_mb: of CPU and of memory, for one picture. max_costly: how many costly ones may wait.
    fast_resize: see `model.preprocess.resize`.
    """

    preprocess: PreprocessConfig
    metrics: Metrics
    workers: int
    max_bytes: int
    max_pixels: int
    seconds: float
    memory_mb: int
    max_costly: int
    fast_resize: bool = False
    ready: bool = False  # whether pictures can be decoded
    _process: subprocess.Popen[bytes] | None = None  # that forks
    _control: socket.socket | None = None
    _errors: int = -1  # a file of what it wrote to stderr
    _warm: bool = False  # whether it has said that it is ready
    _running: list[Worker] = field(default_factory=list)
    _forking: deque[Worker] = field(default_factory=deque)
    _reaping: dict[int, Worker] = field(default_factory=dict)
    _fresh: list[tuple[float, int, Job]] = field(default_factory=list)  # a heap
    _costly: deque[Job] = field(default_factory=deque)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _failed_starts: int = 0
    _started: asyncio.Future[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _stopping: bool = False

    @classmethod
    def of(
        cls, settings: Settings, preprocess: PreprocessConfig, metrics: Metrics, workers: int, max_costly: int
    ) -> Guard:
        """With the service's limits."""
        return cls(
            preprocess, metrics, workers, max_costly=max_costly, max_bytes=settings.max_upload_bytes,
            max_pixels=settings.max_pixels, seconds=settings.decode_seconds, memory_mb=settings.decode_memory_mb,
            fast_resize=settings.resizer == "fast",
        )  # fmt: skip

    async def start(self) -> None:
        """Start the processes and wait until they can decode; raises `DecoderFailed` if they cannot be started."""
        self._stopping = False
        self._started = asyncio.get_running_loop().create_future()
        self._launch()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._started
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise DecoderFailed("the processes that decode pictures do not start") from error
            raise

    async def stop(self) -> None:
        """End the processes, whatever they are doing."""
        self._stopping, self.ready = True, False
        if self._timer:
            self._timer.cancel()
        jobs = [job for _, _, job in self._fresh] + list(self._costly)
        self._fresh.clear()
        self._costly.clear()
        for job in jobs + self._kill_all():
            _fail(job, DecoderFailed("the service is stopping"))

    async def read(self, data: bytes) -> Decoded:
        """The pixels of a picture; raises what `of_image` makes of `images.read`, `Overloaded` or `DecoderFailed`.

        A cancelled caller's picture is not begun any more, and ended if it is costly.
        """
        if not self.ready:
            self.metrics.rejected.labels("decoder_failed").inc()
            raise DecoderFailed("pictures cannot be decoded now")
        job = Job(data, asyncio.get_running_loop().create_future())
        self._push(job)
        self._dispatch()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        finally:
            del job  # its error holds this frame

    # --- what is to be done ----------------------------------------------------------------------

    def _push(self, job: Job) -> None:
        key = time.monotonic() + SECONDS_PER_BYTE * len(job.data)
        heapq.heappush(self._fresh, (key, next(self._numbers), job))

    def _withdraw(self, job: Job) -> None:
        """Take a picture that nobody waits for from the queues, which would keep its bytes while they stand still."""
        self._costly = deque(other for other in self._costly if other is not job)
        self._fresh = [entry for entry in self._fresh if entry[2] is not job]
        heapq.heapify(self._fresh)

    def _defer(self, job: Job, first: bool = False) -> None:
        """Let a costly picture wait for its turn, `first` if it has had a part of it."""
        job.costly = True
        self._costly = deque(other for other in self._costly if other.wanted)
        if len(self._costly) >= self.max_costly:
            self.metrics.rejected.labels("costly_pictures").inc()
            _fail(job, Overloaded("too many pictures that take long are waiting already"))
        elif first:
            self._costly.appendleft(job)
        else:
            self._costly.append(job)

    def _dispatch(self) -> None:
        """Give idle workers something to do, and make some idle if there are none for what should be quick."""
        while idle := next((w for w in self._running if w.job is None and w.pid and not w.ended), None):
            job = self._next_job()
            if job is None:
                return
            self._assign(idle, job)
        coming = self.workers - sum(1 for w in self._running if w.pid and not w.ended)
        costly = sorted((w for w in self._running if w.job and w.job.costly and not w.ended), key=lambda w: -w.begun)
        for worker in costly[: min(len(self._fresh) - coming, len(costly) - 1)] if len(self._fresh) > coming else ():
            self._end(worker, "preempted")

    def _next_job(self) -> Job | None:
        while self._fresh:
            _, _, job = heapq.heappop(self._fresh)
            if job.wanted:
                return job
        busy = any(worker.job and worker.job.large for worker in self._running)
        for job in [job for job in self._costly if job.wanted]:
            if not (job.large and busy):
                self._costly.remove(job)
                return job
        return None

    def _assign(self, worker: Worker, job: Job) -> None:
        worker.job, worker.begun, worker.cpu = job, time.monotonic(), worker.cpu_seconds()
        worker.served += 1
        try:
            os.pwrite(worker.file, job.data, 0)
        except OSError as error:
            logger.error("there is no memory for a picture: %s", error)
            worker.job = None
            self._retry(job, "memory")
            return
        memory = self.memory_mb * MEBIBYTE // (1 if job.large else QUICK_SHARE)
        try:
            worker.channel.send(decoder.REQUEST.pack(len(job.data), memory))
        except OSError:
            self._requeue(worker)
            return
        self._check_progress(worker)

    def _check_progress(self, worker: Worker) -> None:
        """See how far a picture is, until it is done or has not been quick."""
        job = worker.job
        if worker.ended or job is None:
            return
        left = worker.begun + PATIENCE * self.seconds - time.monotonic()
        more = QUICK + QUICK_PER_BYTE * len(job.data) - (worker.cpu_seconds() - worker.cpu)
        loop = asyncio.get_running_loop()
        if left <= 0:
            self._end(worker, "slow")
        elif more > 0 and not job.costly:
            worker.timer = loop.call_later(min(max(more, 0.01), left), self._check_progress, worker)
        else:  # from now on nothing but its end, its caller's or our patience's is of interest
            worker.timer = loop.call_later(left, self._check_progress, worker)
            job.future.add_done_callback(lambda _: self._unwanted(worker, job))
            if not job.costly:
                job.costly = True
                self._dispatch()

    def _unwanted(self, worker: Worker, job: Job) -> None:
        """The caller of a costly picture has gone or been answered."""
        if worker in self._running and worker.job is job and not worker.ended:
            self._end(worker, "unwanted")

    # --- the workers -----------------------------------------------------------------------------

    def _fork_workers(self) -> None:
        """Have workers forked until there are enough."""
        while not self._stopping and self._control and len(self._running) < self.workers:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            size = max(self.max_bytes, 3 * self.preprocess.size**2)
            file = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(file, size)
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
                worker = Worker(ours, file, mmap.mmap(file, size))
                socket.send_fds(self._control, [decoder.COMMAND.pack(decoder.FORK, 0)], [theirs.fileno(), file])
            except OSError:  # the process that forks has just ended; reading its socket tells
                ours.close()
                os.close(file)
                return
            finally:
                theirs.close()
            ours.setblocking(False)
            self._running.append(worker)
            self._forking.append(worker)

    def _end(self, worker: Worker, reason: str) -> None:
        worker.ended = reason
        _kill(worker.pid)

    def _on_reply(self, worker: Worker) -> None:
        try:
            reply = worker.channel.recv(decoder.MAX_MESSAGE)
        except OSError as error:
            # A reset is the kernel's word for a request that nobody has read.
            if isinstance(error, ConnectionResetError) and worker.job and not worker.ended:
                self._requeue(worker)
                self._dispatch()
                return
            reply = b""
        if len(reply) < decoder.REPLY.size or worker.job is None or worker.ended:
            self._replace(worker)
            return
        job, worker.job = worker.job, None
        if worker.timer:
            worker.timer.cancel()
        try:
            self._complete(worker, job, reply)
        except (struct.error, ValueError, LookupError) as error:  # no answer of ours: do not trust it any more
            logger.error("a decoder answered nonsense: %r", error)
            self._retry(job, "nonsense")
            worker.served = PICTURES
        if len(job.data) > MEBIBYTE:
            worker.shared.madvise(mmap.MADV_REMOVE)
        if job.costly or worker.served >= PICTURES:
            self._end(worker, "replaced")  # it may hold much
            self._replace(worker)
        self._dispatch()

    def _complete(self, worker: Worker, job: Job, reply: bytes) -> None:
        outcome, format, width, height, seconds, decorative = decoder.REPLY.unpack_from(reply)
        if outcome == decoder.DONE:
            side = self.preprocess.size
            pixels = np.frombuffer(worker.shared, np.uint8, 3 * side * side).reshape(side, side, 3).copy()
            decoded = Decoded(pixels, width, height, FORMATS[format], seconds, decorative)
            if job.wanted:
                job.future.set_result(decoded)
            return
        text = reply[decoder.REPLY.size :].decode(errors="replace")
        if outcome == decoder.FAILED:
            logger.error("decoding failed: %s", text)
            self._retry(job, "failed")
            return
        error = of_image(decoder.ERRORS[outcome - 1](text))
        if isinstance(error, TooCostly) and not job.large:
            job.large = True
            self._defer(job)
            return
        _fail(job, error)

    def _replace(self, worker: Worker) -> None:
        """The process has ended, or is ending; how, its status will tell."""
        self._close(worker)
        if worker.pid and self._control:
            _kill(worker.pid)  # were it to go on without its channel, reaping it would never end
            self._reaping[worker.pid] = worker
            self._command(decoder.REAP, worker.pid)
        elif worker.job:
            self._retry(worker.job, "lost")
        self._fork_workers()

    def _requeue(self, worker: Worker) -> None:
        """It has ended while it was idle: its picture never came to a decoder, and is for another."""
        job, worker.job = worker.job, None
        self._replace(worker)
        if job and job.costly:
            self._defer(job, first=True)
        elif job:
            self._push(job)

    def _close(self, worker: Worker) -> None:
        if worker in self._running:
            self._running.remove(worker)
        if worker.timer:
            worker.timer.cancel()
        asyncio.get_running_loop().remove_reader(worker.channel.fileno())
        worker.channel.close()
        worker.shared.close()
        os.close(worker.file)

    def _on_exit(self, worker: Worker, status: int) -> None:
        job, number = worker.job, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        reason = worker.ended or ("time" if number == signal.SIGPROF else "crash" if number in CRASHES else "killed")
        self.metrics.decoders_ended.labels(reason).inc()
        if reason in ("replaced", "unwanted") or (job and not job.wanted):
            pass
        elif job is None:
            logger.warning("an idle decoder ended with status %d", status)
        elif reason == "preempted":
            self._defer(job, first=True)
        elif reason == "time":
            _fail(job, TooCostly(f"the picture takes more than {self.seconds:g} seconds to decode"))
        elif reason == "crash" and not job.large:  # some libraries end so when memory runs out
            job.large = True
            self._defer(job)
        elif reason == "crash":
            logger.warning("a decoder crashed on a picture, by signal %d", number)
            _fail(job, BrokenImage("the picture is damaged: its decoder crashed"))
        else:
            logger.error("a decoder ended (%s, status %d)", reason, status)
            self._retry(job, reason)
        self._dispatch()

    def _retry(self, job: Job, reason: str) -> None:
        """What failed on our side is tried once more, alone with its like."""
        job.failures += 1
        if job.failures > 1 or reason == "slow":
            self.metrics.rejected.labels("decoder_failed").inc()
            _fail(job, DecoderFailed("the picture could not be decoded this time; try again"))
        else:
            self._defer(job, first=True)

    # --- the process that forks ------------------------------------------------------------------

    def _launch(self) -> None:
        """Start it; when it is ready, or has failed, its socket tells."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory, shared = self.memory_mb * MEBIBYTE, max(self.max_bytes, 3 * self.preprocess.size**2)
        limits = asdict(
            decoder.Limits(self.preprocess, self.max_pixels, self.seconds, memory, shared, self.fast_resize)
        )
        self._errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        # What stops the server comes to the whole group; held back until the process ignores it.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, decoder.STOPS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "app.pictures.decoder", str(theirs.fileno()), json.dumps(limits)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                cwd="/",
                # No secrets; and one thread for NumPy's linear algebra, whose buffers would count as memory.
                env={"PYTHONPATH": os.pathsep.join(import_path()), "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            logger.error("the process that decodes pictures cannot be started: %s", error)
            ours.close()
            os.close(self._errors)
            self._start_failed()
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
            theirs.close()
        ours.setblocking(False)
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_report)

    def _command(self, what: int, pid: int) -> None:
        assert self._control is not None
        with suppress(OSError):  # it may just have ended; reading its socket tells
            self._control.send(decoder.COMMAND.pack(what, pid))

    def _on_report(self) -> None:
        assert self._control is not None
        try:
            report = self._control.recv(decoder.REPORT.size)
        except OSError:
            report = b""
        if len(report) < decoder.REPORT.size:
            self._on_forker_exit()
            return
        what, pid, status = decoder.REPORT.unpack(report)
        if what == decoder.READY:
            self.ready = self._warm = True
            self._failed_starts = 0
            self._fork_workers()
        elif what == decoder.REAP:
            self._on_exit(self._reaping.pop(pid), status)
        elif pid < 0:
            worker = self._forking.popleft()
            logger.error("a process that decodes pictures cannot be forked")
            self._close(worker)
            self._timer = asyncio.get_running_loop().call_later(1, self._fork_workers)
            if not self._running:
                self._fail_waiting(DecoderFailed("the processes that decode pictures cannot be started"))
        else:
            worker = self._forking.popleft()
            worker.pid = pid
            asyncio.get_running_loop().add_reader(worker.channel.fileno(), self._on_reply, worker)
            if self._started and not self._started.done():
                self._started.set_result(None)
            self._dispatch()

    def _on_forker_exit(self) -> None:
        """The process that forks has ended, and its workers with it: start another."""
        was_warm, self._warm = self._warm, False
        jobs = self._kill_all()
        if self._stopping:
            return
        self.metrics.decoders_ended.labels("lost").inc()
        for job in jobs:
            self._retry(job, "lost")
        if was_warm:
            self._launch()  # what comes meanwhile waits for it
        else:
            self._start_failed()

    def _start_failed(self) -> None:
        """Try again later; what waits is told."""
        self.ready = False
        self._fail_waiting(DecoderFailed("the processes that decode pictures cannot be started"))
        if not self._stopping:
            self._failed_starts += 1
            self._timer = asyncio.get_running_loop().call_later(min(2**self._failed_starts, 60), self._launch)

    def _fail_waiting(self, error: DecoderFailed) -> None:
        """Fail all that waits, and the start."""
        if self._started and not self._started.done():
            self._started.set_exception(error)
        for job in [job for _, _, job in self._fresh] + list(self._costly):
            self.metrics.rejected.labels("decoder_failed").inc()
            _fail(job, error)
        self._fresh.clear()
        self._costly.clear()

    def _kill_all(self) -> list[Job]:
        """End the process that forks and so all workers; what they were at."""
        workers = [*self._running, *self._reaping.values()]
        for worker in list(self._running):
            self._close(worker)
        self._reaping.clear()
        self._forking.clear()
        if self._control:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._process:
            self._process.kill()
            status = self._process.wait()
            self._process = None
            start = max(os.fstat(self._errors).st_size - decoder.MAX_MESSAGE, 0)
            said = os.pread(self._errors, decoder.MAX_MESSAGE, start)
            os.close(self._errors)
            if not self._stopping:
                fields = {"status": status, "stderr": said.decode(errors="replace")}
                logger.error("the process that decodes pictures ended", extra={"fields": fields})
        return [worker.job for worker in workers if worker.job]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used: Linux numbers the clocks of processes so (clock_getcpuclockid)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # a system without them: then time is time
        return time.monotonic()


def import_path() -> list[str]:
    """Where the decoders import from: as this process does, but never from the folder that it was started in."""
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # it has been removed
        here = ""
    if here == str(ROOT):
        here = ""
    path = [entry for entry in sys.path if entry and os.path.isabs(entry) and os.path.realpath(entry) != here]
    return path if str(ROOT) in path else [*path, str(ROOT)]


def _kill(pid: int) -> None:
    """End a worker. It has not been reaped, so nobody else has its number; unless what forked it has gone."""
    assert pid > 0, "0 would be the server's own group, -1 everything"
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _fail(job: Job, error: ServiceError) -> None:
    if job.wanted:
        job.future.set_exception(error)

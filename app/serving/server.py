"""Runs the application under uvicorn: one or several workers, and a clean end.

uvicorn has no public means to be told when a worker serves, nor to start one before the others, so its supervisor is
extended in methods that are not documented; `tests/app/serving/test_server.py` names them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.metrics import MULTIPROCESS
from app.serving.logs import log_config
from app.serving.protocol import Config, Protocol
from app.settings import Settings, to_environment
from model.errors import CaptionModelError

WORKER_SECONDS = 30  # a worker that is silent for longer is replaced; one that imports on a busy machine takes some
FACTORY = "app.main:create_loaded_app"  # each worker imports and calls it; the settings are in the environment


class _Config(Config):
    def load(self) -> None:
        """Make the application, in the process that serves; a bad checkpoint is one line and not a traceback."""
        if self.workers == 1:
            super().load()  # whoever called `serve` hears of it
            return
        _end_with_supervisor()
        try:
            super().load()
        except CaptionModelError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(STARTUP_FAILURE)


class _Server(uvicorn.Server):
    """Says where it is once it can be reached."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets:
            announce(sockets[0])


class Supervisor(Multiprocess):
    """Restarts workers that die, and gives its own copy of the listening socket up on SIGTERM.

    The first worker starts alone, so that what is wrong with the checkpoint is said once; the address is told when
    all of them serve.
    """

    def init_processes(self) -> None:
        self._wanted, self.processes_num = self.processes_num, 1
        super().init_processes()
        self._announced = False

    def keep_subprocess_alive(self) -> None:
        ended = {process.exitcode for process in self.processes} - {None}
        if self._announced or (ended and STARTUP_FAILURE not in ended):
            super().keep_subprocess_alive()
            return
        if ended:
            self.should_exit.set()  # the worker has said why; another would fail the same way
            return
        if not all(process.is_ready(timeout=0.2) for process in self.processes):
            return
        if self._wanted > self.processes_num:
            for _ in range(self._wanted - self.processes_num):
                self.handle_ttin()
            return
        self._announced = True
        announce(self.sockets[0])

    def handle_term(self) -> None:
        for sock in self.sockets:
            sock.close()
        super().handle_term()


def _end_with_supervisor() -> None:
    """Stop this worker as SIGTERM does when its supervisor is gone, however that ended."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def watch() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def serve(settings: Settings, factory: str | Callable[[], Any] = FACTORY) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 0 after a clean stop.

    factory: makes the application; with several workers its import path. Raises `OSError` if the
    address cannot be listened on.
    """
    listener = listen(settings.host, settings.port)
    to_environment(settings)
    config = _Config(
        factory,
        factory=True,
        http=Protocol,
        ws="none",
        lifespan="on",
        workers=settings.workers,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=settings.grace,
        timeout_worker_healthcheck=WORKER_SECONDS,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=log_config(settings.log_level),
    )
    config.settings = settings
    if settings.workers == 1:
        # uvicorn raises the signal again when all is done; by then it means: everything went well.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        server = _Server(config)
        server.run([listener])
        return 0 if server.started else STARTUP_FAILURE
    with tempfile.TemporaryDirectory(prefix="caption-metrics-") as folder:
        os.environ[MULTIPROCESS] = folder  # numbers only: counters that the workers share
        supervisor = Supervisor(config, [listener])
        supervisor.run()
    failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    return STARTUP_FAILURE if failed else 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `::` is every interface, of IPv4 too.

    Raises `OSError` if the address is taken or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)


def _sample() -> Path:
    sample = Path(__file__).parents[1] / "static" / "sample.jpg"
    return Path(os.path.relpath(sample)) if sample.is_file() else Path("picture.jpg")


def announce(listener: socket.socket) -> None:
    """Print where the service is, and a command to try it."""
    host, port = listener.getsockname()[:2]
    if host == "::" and listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        host = "::1"
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Page      {url}/")
    print(f"API docs  {url}/docs")
    print(f"Try it    curl -F image=@{_sample()} {url}/caption", flush=True)

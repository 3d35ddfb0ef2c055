"""Live servers, each in a process of its own; and what a server takes from the package that it is built on."""

from __future__ import annotations

import ast
import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
FAKE = (
    "import sys; from app.serving.server import serve; from app.settings import Settings; "
    "sys.exit(serve(Settings(), 'tests.app.fakes:create_app'))"
)


@dataclass
class Server:
    """A running server and what it prints."""

    process: subprocess.Popen[str]
    url: str
    banner: list[str]
    lines: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def logs(self) -> list[dict[str, Any]]:
        """What it logged, each line of it JSON."""
        return [json.loads(line) for line in self.lines]

    def terminate(self) -> int:
        """Send SIGTERM and wait; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


Start = Callable[..., Server]


@contextmanager
def starting() -> Iterator[Start]:
    """Starts servers on free ports: around the fake engine, or by `command`; settings as CAPTION_* in lower case."""
    servers: list[tuple[Server, threading.Thread]] = []

    def run(command: list[str] | None = None, **settings: object) -> Server:
        environment = {**os.environ, "CAPTION_PORT": "0", "PYTHONWARNINGS": "error::ResourceWarning"}
        environment |= {("" if k.startswith("fake") else "CAPTION_") + k.upper(): str(v) for k, v in settings.items()}
        process = subprocess.Popen(
            [sys.executable, *(command or ["-c", FAKE])],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        server = Server(process, "", [])

        def collect() -> None:
            assert process.stderr is not None
            server.lines.extend(process.stderr)

        collector = threading.Thread(target=collect)
        collector.start()
        servers.append((server, collector))
        assert process.stdout is not None
        server.banner = [process.stdout.readline() for _ in range(3)]
        assert "http://" in server.banner[0], server.lines
        server.url = server.banner[0].split()[1].rstrip("/")
        return server

    yield run
    for server, collector in servers:
        children = psutil.Process(server.process.pid).children() if server.process.poll() is None else []
        for process in (server.process, *children):
            process.kill()
        server.process.wait()
        collector.join()
        for pipe in (server.process.stdout, server.process.stderr):
            assert pipe is not None
            pipe.close()


def inherited(cls: type) -> set[str]:
    """What a class overrides, and what its methods use of `self` that it does not have from itself."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    used = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    ]
    own = {node.attr for node in used if isinstance(node.ctx, ast.Store) and node.attr.startswith("_")}
    return ({node.attr for node in used} | vars(cls).keys()) - own - {name for name in vars(cls) if name[0] == "_"}

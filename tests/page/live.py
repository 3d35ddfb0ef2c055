"""The service itself on a free port, around an engine of the test's choice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from app.main import create_app
from app.serving.server import listen
from app.settings import Settings
from model.runtime.engine import CaptionEngine


@contextmanager
def serving(engine: CaptionEngine, settings: Settings | None = None, port: int = 0) -> Iterator[str]:
    """The URL of the service around `engine`, on a free port or the one given, until the block ends."""
    listener = listen("127.0.0.1", port)
    settings = settings or Settings(drain_delay=0)
    server = uvicorn.Server(uvicorn.Config(create_app(settings, engine), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    if not server.started:
        raise RuntimeError("the service did not start")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from tests.app.fakes import FakeEngine, FakeGuard


def test_what_start_up_made_is_spared_the_garbage_collector_while_the_service_runs() -> None:
    before = gc.get_freeze_count()
    with TestClient(create_app(engine=FakeEngine())) as client:
        assert client.get("/health/ready").status_code == 200
        assert gc.get_freeze_count() > before + 10_000
    assert gc.get_freeze_count() <= before


def test_threads_hand_the_interpreter_to_the_event_loop_soon_while_the_service_runs() -> None:
    before = sys.getswitchinterval()
    with TestClient(create_app(engine=FakeEngine())):
        assert sys.getswitchinterval() < before / 5
    assert sys.getswitchinterval() == before


def test_the_engine_warms_up_while_the_processes_that_decode_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = threading.Event(), FakeGuard.start

    async def start_and_tell(guard: FakeGuard) -> None:
        await start(guard)
        started.set()

    class Waiting(FakeEngine):
        warm: Sequence[int] | None = ()

        def warm_up(self, batch_sizes: Sequence[int] | None = None) -> None:
            assert started.wait(30)
            self.warm = batch_sizes

    monkeypatch.setattr(FakeGuard, "start", start_and_tell)
    engine = Waiting()
    with TestClient(create_app(engine=engine)):
        assert engine.warm == (1,)  # several at once wait for what they need, which may never be


def test_an_engine_that_cannot_warm_up_leaves_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    guards: list[FakeGuard] = []
    start = FakeGuard.start

    async def start_and_remember(guard: FakeGuard) -> None:
        guards.append(guard)
        await start(guard)

    class Broken(FakeEngine):
        def warm_up(self, batch_sizes: Sequence[int] | None = None) -> None:
            raise RuntimeError("no kernel")

    monkeypatch.setattr(FakeGuard, "start", start_and_remember)
    with pytest.raises(RuntimeError, match="no kernel"), TestClient(create_app(engine=Broken())):
        pass
    assert [guard.ready for guard in guards] == [False]

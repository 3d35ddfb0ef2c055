from __future__ import annotations

import gc
import sys

from starlette.testclient import TestClient

from app.main import create_app
from tests.app.fakes import FakeEngine


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

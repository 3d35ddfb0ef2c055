"""app/serving/server.py, on live servers around the fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import uvicorn
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app.serving.server import Supervisor
from app.settings import Settings
from benchmarks.pictures import many_scans
from tests.app.live import Server, Start, inherited
from tests.pictures import plain

GREEN = plain((16, 200, 40))
TIMEOUT = httpx.Timeout(60)


def post(server: Server, data: bytes = GREEN) -> httpx.Response:
    return httpx.post(f"{server.url}/caption", content=data, headers={"content-type": "image/png"}, timeout=TIMEOUT)


def request(data: bytes, path: str = "/caption", method: str = "POST", extra: str = "") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
    )
    return head.encode() + data


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port))


def until(condition: object, seconds: float = 60) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_uvicorn_has_what_is_taken_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    theirs = Multiprocess(uvicorn.Config(lambda: None, workers=2), [])
    assert [name for name in inherited(Supervisor) if not hasattr(theirs, name)] == []
    assert list(inspect.signature(Process.is_ready).parameters) == ["self", "timeout"]
    assert isinstance(Process.exitcode, property)
    assert list(inspect.signature(uvicorn.Server.startup).parameters) == ["self", "sockets"]


def test_it_says_where_it_is_and_what_to_try(start: Start) -> None:
    server = start()
    assert [line.split()[0] for line in server.banner] == ["Page", "API", "Try"]
    assert httpx.get(server.banner[1].split()[-1]).status_code == 200
    assert re.search(r"curl -F image=@\S+ http://127.0.0.1:\d+/caption$", server.banner[2].strip())
    assert post(server).status_code == 200
    assert server.terminate() == 0
    until(lambda: len(server.lines) >= 2)
    assert [(line["path"], line["status"]) for line in server.logs()] == [("/docs", 200), ("/caption", 200)]


def test_sigterm_unready_first_then_drained_then_exit_0(start: Start) -> None:
    server = start(fake_seconds=2, drain_delay=4)
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(post, server) for _ in range(3)]
        until(lambda: "caption_admitted_pictures 3.0" in httpx.get(f"{server.url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/health/ready", timeout=TIMEOUT).status_code == 503)
        late = pool.submit(post, server)  # still accepted: whoever sends has not noticed yet
        assert [answer.result().status_code for answer in (*accepted, late)] == [200] * 4
    assert server.process.wait(timeout=60) == 0
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_ctrl_c_ends_it_too(start: Start) -> None:
    server = start()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=60) == 0


def test_work_that_outlives_the_grace_time_is_cut_off(start: Start) -> None:
    server = start(fake_seconds=30, drain_delay=0, grace=1)
    with connect(server) as connection:
        connection.sendall(request(GREEN))
        until(lambda: "caption_admitted_pictures 1.0" in httpx.get(f"{server.url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "not_ready"


def test_killing_one_of_two_workers(start: Start) -> None:
    server = start(workers=2, fake_seconds=0.02)
    parent = psutil.Process(server.process.pid)

    def workers() -> set[int]:
        found = set()
        for child in parent.children():
            with contextlib.suppress(psutil.Error):  # one that has just died
                if "spawn_main" in " ".join(child.cmdline()):
                    found.add(child.pid)
        return found

    until(lambda: len(workers()) == 2)
    until(lambda: answers(server))
    before, stop = workers(), threading.Event()
    outcomes: list[list[bool]] = [[] for _ in range(4)]

    def client(mine: list[bool]) -> None:
        while not stop.is_set():
            try:
                mine.append(post(server).status_code == 200)
            except httpx.TransportError:
                mine.append(False)

    with ThreadPoolExecutor(4) as pool:
        for mine in outcomes:
            pool.submit(client, mine)
        try:
            until(lambda: all(len(mine) > 3 for mine in outcomes))
            os.kill(min(before), signal.SIGKILL)
            until(lambda: len(workers()) == 2 and workers() != before)
            counts = [len(mine) for mine in outcomes]
            until(lambda: all(len(mine) > count + 3 for mine, count in zip(outcomes, counts, strict=True)))
        finally:
            stop.set()
    # A client loses at most what it had with the dead worker: one request, and one connection in its queue.
    assert all(mine.count(False) <= 2 for mine in outcomes)
    assert all(mine[-1] for mine in outcomes)
    assert max(before) in workers()
    assert server.terminate() == 0
    assert not psutil.pid_exists(max(before))


def answers(server: Server) -> bool:
    try:
        return post(server).status_code == 200
    except httpx.TransportError:
        return False


def test_a_slow_body_is_timed_out(start: Start) -> None:
    server = start(body_timeout=0.5)
    with connect(server) as connection:
        connection.sendall(request(GREEN)[:-20])
        answer = b""
        while b"body_timeout" not in answer:
            chunk = connection.recv(65536)
            assert chunk
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("chunked", [True, False])
def test_200_mb_are_refused_and_the_client_learns_why(start: Start, chunked: bool) -> None:
    server = start()
    sent = 0

    def pieces() -> object:
        nonlocal sent
        for _ in range(2000):
            sent += 100_000
            yield bytes(100_000)

    headers = {"content-type": "image/png"} | ({} if chunked else {"content-length": "200000000"})
    answer = httpx.post(f"{server.url}/caption", content=pieces(), headers=headers, timeout=TIMEOUT)  # type: ignore[arg-type]
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"
    assert answer.headers["connection"] == "close"
    assert sent < 200_000_000
    assert post(server).status_code == 200


def test_a_file_too_large_keeps_its_connection(start: Start) -> None:
    server = start()
    headers = {"content-type": "image/png"}

    async def client() -> None:
        # An asyncio client loses the answer if the server closes while it still sends.
        async with httpx.AsyncClient(base_url=server.url, timeout=60, headers=headers) as http:
            for _ in range(3):
                for size in (20_200_000, 60_000_000):
                    assert (await http.post("/caption", content=bytes(size))).status_code == 413
                assert (await http.post("/caption", content=GREEN)).status_code == 200

    asyncio.run(client())


def test_expect_100_continue_is_refused_before_the_body(start: Start) -> None:
    server = start()
    with connect(server) as connection:
        connection.sendall(request(b"", extra="Expect: 100-continue\r\n").replace(b"Length: 0", b"Length: 60000000"))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_a_connection_is_kept_for_longer_than_proxies_keep_theirs() -> None:
    assert Settings().keep_alive > 120  # Caddy's two minutes; nginx has 60 seconds, Go and Traefik 90


def test_workers_end_when_their_supervisor_is_killed(start: Start) -> None:
    server = start(workers=2)
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert sum("spawn_main" in " ".join(child.cmdline()) for child in children) == 2
    server.process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_the_address_is_told_once_every_worker_serves(start: Start) -> None:
    server = start(workers=2)
    workers = [c for c in psutil.Process(server.process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    assert len(workers) == 2
    with ThreadPoolExecutor(8) as pool:  # nobody waits for a worker that is still loading
        assert [a.status_code for a in pool.map(lambda _: post(server), range(16))] == [200] * 16
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "caption_model_info" in metrics


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_every_interface_is_those_of_ipv4_too(start: Start) -> None:
    server = start(host="::", trusted_proxies="127.0.0.1", keep_alive=1)
    assert server.url.startswith("http://localhost:")
    for host in ("127.0.0.1", "[::1]"):
        forwarded = {"X-Forwarded-For": "192.0.2.7"}
        assert httpx.get(f"http://{host}:{server.port}/health/live", headers=forwarded).status_code == 200
    assert server.terminate() == 0
    until(lambda: len(server.lines) == 2)
    assert [line["client"] for line in server.logs()] == ["192.0.2.7", "::1"]


def test_sigterm_to_the_whole_group_fails_nothing_and_ends_in_time_whatever_is_decoded(start: Start) -> None:
    server = start(drain_delay=1, grace=2)
    hostile = many_scans(2000, 50_000)  # minutes
    with ThreadPoolExecutor(5) as pool:
        slow = [pool.submit(_answer_or_none, server, hostile) for _ in range(4)]
        until(lambda: "caption_admitted_pictures 4.0" in httpx.get(f"{server.url}/metrics", timeout=TIMEOUT).text)
        family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        assert len(family) >= 4  # the server, what forks, the workers
        for process in reversed(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        assert pool.submit(post, server).result().status_code == 200  # accepted before the end
        assert server.process.wait(timeout=120) == 0  # the pictures themselves would have taken longer
        assert all(answer.result() in (None, 500, 503, 504) for answer in slow)
    assert not psutil.wait_procs(family[1:], timeout=60)[1]


def _answer_or_none(server: Server, data: bytes) -> int | None:
    try:
        return post(server, data).status_code
    except httpx.TransportError:
        return None

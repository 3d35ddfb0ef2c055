"""app/serving/protocol.py, on live servers around the fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.serving.middleware import SECURITY_HEADERS
from app.serving.protocol import Protocol
from tests.app.live import Server, Start, inherited
from tests.app.serving.test_server import answers, connect, post, read_all, request, until
from tests.pictures import plain

GREEN = plain((16, 200, 40))
TIMEOUT = httpx.Timeout(60)


def test_uvicorn_has_what_is_taken_from_it() -> None:
    loop = asyncio.new_event_loop()
    theirs = HttpToolsProtocol(uvicorn.Config(lambda scope, receive, send: None), ServerState(), {}, loop)
    theirs.on_message_begin()
    loop.close()
    assert [name for name in inherited(Protocol) if not hasattr(theirs, name)] == []
    cycle = inspect.getsource(RequestResponseCycle)
    for name in ("disconnected", "message_event", "response_complete", "response_started"):
        assert f"self.{name} = " in cycle, name


def test_a_slow_header_is_timed_out(start: Start) -> None:
    server = start(header_timeout=0.5)
    for beginning in (b"", b"POST /capt", b"\r\n", request(b"", "/health/live", "GET") + b"GET /hea"):
        with connect(server) as connection:
            connection.sendall(beginning)
            answer = read_all(connection)  # ends, because the server closes
            assert b"408 Request Timeout" in answer or beginning.startswith(b"POST /caption HTTP") or b" 200 " in answer


def test_headers_without_end_are_refused(start: Start) -> None:
    server = start()
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(100):
                connection.sendall(b"a" * 10_000)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (problem["status"], problem["code"]) == (431, "headers_too_large")
    assert post(server).status_code == 200


def talk(server: Server, data: bytes) -> tuple[bytes, dict[str, str], bytes]:
    """The first line, headers and body of what comes back for `data` until the server closes."""
    with connect(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        head, _, rest = read_all(connection).partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return first, {k.lower(): v for k, _, v in (line.decode().partition(": ") for line in lines)}, rest


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_refused_below_the_application_is_answered_like_the_rest(start: Start, workers: int) -> None:
    server = start(workers=workers, header_timeout=3)
    for data, status, code, name in (
        (b"\x16\x03\x01 is this TLS?\r\n\r\n", 400, "bad_request", None),
        (request(b"", "a:1", "CONNECT"), 400, "bad_request", None),
        (request(b"0\r\n\r\n", extra="Transfer-Encoding: chunked\r\n"), 400, "bad_request", None),
        (
            request(b"", extra=f"X-Request-ID: large\r\nX: {'a' * 70_000}\r\n"),
            431,
            "headers_too_large",
            "large",
        ),  # in one read
        (request(b"", extra="X-Request-ID: slow\r\nX: ")[:-4], 408, "header_timeout", "slow"),
    ):
        first, headers, rest = talk(server, data)
        problem = json.loads(rest)
        assert first.startswith(b"HTTP/1.1 %d " % status)
        assert (problem["status"], problem["code"]) == (status, code)
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-request-id"] == problem["request_id"]
        assert {header.lower() for header in SECURITY_HEADERS} <= set(headers)
        if name:
            assert problem["request_id"] == name
        until(lambda id=problem["request_id"]: any(id in line for line in server.lines))  # type: ignore[misc]
        [line] = [line for line in server.logs() if line["request_id"] == problem["request_id"]]
        assert (line["status"], line["code"], line["client"]) == (status, code, "127.0.0.1")
    metrics = httpx.get(f"{server.url}/metrics").text
    for status, count in ((400, 3), (408, 1), (431, 1)):
        labels = f'method="other",route="other",status="{status}"'
        assert f"caption_http_requests_total{{{labels}}} {count}.0" in metrics


@pytest.mark.parametrize("extra", ["", "Transfer-Encoding: chunked\r\n"])
def test_a_request_to_upgrade_is_ignored_and_the_body_is_the_body(start: Start, extra: str) -> None:
    server = start()
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    asked = request(GREEN, extra=upgrade + extra)
    if extra:
        asked = asked.replace(b"Content-Length: %d\r\n" % len(GREEN), b"")
        asked = asked.replace(GREEN, b"%x\r\n%b\r\n0\r\n\r\n" % (len(GREEN), GREEN))
    last = request(b"", "/health/live", "GET", "Connection: close\r\n")
    with connect(server) as connection:
        connection.sendall(asked + asked)
        for byte in asked:  # and in the smallest pieces
            connection.sendall(bytes([byte]))
        connection.sendall(last)
        answer = read_all(connection).decode()
    caption = post(server).json()["caption"]
    assert re.findall(r'\{"caption":"([^"]+)"', answer) == [caption] * 3
    assert answer.count("HTTP/1.1 200 OK") == 4
    # A body that looks like a request is not one.
    with connect(server) as connection:
        connection.sendall(request(last, extra=upgrade.replace("Upgrade, ", "Upgrade, close, ")))
        answer = read_all(connection).decode()
    assert answer.count("HTTP/1.1 ") == answer.count("HTTP/1.1 415 ") == 1


def test_a_refusal_waits_for_the_answer_before_it(start: Start) -> None:
    server = start(fake_seconds=0.2)
    _, _, rest = talk(server, request(GREEN) + b"\x16\x03\x01 is this TLS?\r\n\r\n")
    assert rest.index(b'{"caption":') < rest.index(b"HTTP/1.1 400 ")


def test_trailers_are_bounded(start: Start) -> None:
    server = start()
    head = b"POST /caption HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    first, _, _ = talk(server, head + b"X: " + b"a" * 400_000)
    assert first.startswith(b"HTTP/1.1 431 ")


def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    server = start()
    colours = [(16, 200, 40), (200, 16, 40), (40, 16, 200)]
    alone = [post(server, plain(colour)).json()["caption"] for colour in colours]
    with connect(server) as connection:
        connection.sendall(b"".join(request(plain(colour)) for colour in colours[:-1]))
        connection.sendall(request(plain(colours[-1]), extra="Connection: close\r\n"))
        answer = read_all(connection).decode()
    assert re.findall(r'\{"caption":"([^"]+)"', answer) == alone


def test_connections_are_bounded(start: Start) -> None:
    server = start(max_connections=3)
    held = [connect(server) for _ in range(3)]
    with connect(server) as fourth:
        answer = read_all(fourth)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after" in answer
    for connection in held:
        connection.close()
    until(lambda: answers(server))


def test_an_idle_connection_makes_room_for_a_new_one(start: Start) -> None:
    server = start(max_connections=2)
    held = [connect(server) for _ in range(2)]
    for connection in held:
        connection.sendall(request(b"", "/health/live", "GET"))
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += connection.recv(65536)
        until(lambda: len(server.lines) > held.index(connection))  # noqa: B023  # run at once
    assert httpx.get(f"{server.url}/health/live", timeout=TIMEOUT).status_code == 200
    assert read_all(held[0]) == b""
    held[1].sendall(request(b"", "/health/live", "GET", "Connection: close\r\n"))
    assert read_all(held[1]).startswith(b"HTTP/1.1 200 ")
    for connection in held:
        connection.close()


def test_garbage_and_hang_ups_leave_it_well(start: Start) -> None:
    server = start()
    for i in range(30):
        with connect(server) as connection:
            connection.sendall((b"\x16\x03\x01" + bytes(range(256)), request(GREEN)[: 60 + i], request(GREEN))[i % 3])
    assert post(server).status_code == 200
    until(lambda: "caption_admitted_pictures 0.0" in httpx.get(f"{server.url}/metrics").text)
    assert server.terminate() == 0
    assert not [line for line in server.logs() if line["level"] in ("error", "critical")]

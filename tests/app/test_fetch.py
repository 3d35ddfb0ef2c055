"""Pictures by URL, from a hostile server on this machine, whose address the tests let pass for a public one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.errors import FetchFailed, ServiceError, TooLarge, UrlRefused
from app.fetch import Fetcher, is_public
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine
from tests.pictures import plain

GREEN = plain((16, 200, 40))
OK = b"HTTP/1.1 200 OK\r\n"
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def server(*answers: bytes | None, trickle: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answers each connection with the next of `answers`, None with silence; its port and the requests it got."""
    left, requests = list(answers), list[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        data = left.pop(0)
        try:
            if data is None:
                await asyncio.sleep(60)
            elif trickle:
                for byte in data:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.05)
            else:
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], requests


def found(body: bytes, headers: bytes = b"") -> bytes:
    return OK + b"Content-Length: %d\r\n" % len(body) + headers + b"\r\n" + body


def moved(to: str) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + to.encode() + b"\r\nContent-Length: 0\r\n\r\n"


def get(
    *answers: bytes | None,
    url: str = "http://pub.example:PORT/a.png?b=c",
    hosts: tuple[str, ...] = ("pub.example:PORT", "*.pub.example:PORT"),
    addresses: dict[str, list[str]] | None = None,
    seconds: float = 60,
    trickle: bool = False,
) -> tuple[bytes | ServiceError, list[bytes], int, list[str]]:
    """What is fetched, or the error; the requests, the bytes that were counted and the names that were looked up."""
    counted, resolved = 0, list[str]()

    async def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return (addresses or {}).get(host, ["127.0.0.1"])

    def reserve(count: int) -> None:
        nonlocal counted
        counted += count

    async def run() -> tuple[bytes | ServiceError, list[bytes]]:
        async with server(*answers, trickle=trickle) as (port, requests):
            allowed = [host.replace("PORT", str(port)) for host in hosts]
            # An address of this machine stands for a public one; others are judged as they are.
            fetcher = Fetcher(allowed, 10_000, seconds, resolve, lambda a: a == "127.0.0.1" or is_public(a))
            try:
                return await fetcher.get(url.replace("PORT", str(port)), reserve), requests
            except ServiceError as error:
                return error, requests

    got, requests = asyncio.run(run())
    return got, requests, counted, resolved


def test_a_picture_is_fetched_and_counted() -> None:
    got, [request], counted, resolved = get(found(GREEN))
    assert (got, counted, resolved) == (GREEN, len(GREEN), ["pub.example"])
    assert request.startswith(b"GET /a.png?b=c HTTP/1.1\r\nHost: pub.example:")
    assert b"identity" in request


def test_names_below_an_allowed_one_are_allowed() -> None:
    assert get(found(GREEN), url="http://a.b.pub.example:PORT/")[0] == GREEN


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example:PORT/",
        "http://xpub.example:PORT/",
        "http://pub.example.evil.example:PORT/",
        "http://pub.example/",  # another port
        "http://user:password@pub.example:PORT/",
        "http://pub.example:PORT@evil.example/",
        "http://pub.example:PORT\\@evil.example/",
        "http://127.0.0.1:PORT/",
        "http://[::1]:PORT/",
        "http://2130706433:PORT/",
        "http://0x7f.1:PORT/",
        "http://pub.example.:PORT/",
        "http://pub.example:PORT/a b",
        "http://püb.example:PORT/",
        "ftp://pub.example:PORT/",
        "http://pub.example:99999/",
        "http:///etc/passwd",
    ],
)
def test_other_places_are_not_asked(url: str) -> None:
    got, requests, _, resolved = get(found(GREEN), url=url)
    assert isinstance(got, UrlRefused)
    assert (requests, resolved) == ([], [])


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "198.18.0.1",
        "192.0.2.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1",
        "2001:db8::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::1",
        "2002:808:808::1", "2001:0:1::1", "127.1", "0x7f000001", "nonsense",
    ],
)  # fmt: skip
def test_no_address_but_public_ones_is_connected_to(address: str) -> None:
    assert not is_public(address)
    for addresses in ([address], ["127.0.0.1", address]):  # one good address does not make the name good
        got, requests, _, _ = get(found(GREEN), addresses={"pub.example": addresses})
        assert isinstance(got, UrlRefused)
        assert requests == []


def test_public_addresses_are_public() -> None:
    assert all(map(is_public, ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "2001:4860:4860::8888")))
    assert not is_public("127.0.0.1")


def follow(*locations: str, **given: Any) -> tuple[bytes | ServiceError, list[bytes], list[str]]:
    """As `get` of a server that sends on to each of `locations` and then has the picture; PORT is its port."""
    counted: list[int] = []
    resolved: list[str] = []

    async def run() -> tuple[bytes | ServiceError, list[bytes]]:
        port_known: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        left = list(locations)
        requests: list[bytes] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            port = str(await port_known)
            writer.write(moved(left.pop(0).replace("PORT", port)) if left else found(GREEN))
            writer.close()

        async def resolve(host: str, port: int) -> list[str]:
            resolved.append(host)
            if "in_turn" in given:
                return given["in_turn"].pop(0)
            return given.get("addresses", {}).get(host, ["127.0.0.1"])

        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            port_known.set_result(port)
            hosts = [f"pub.example:{port}", f"also.example:{port}", f"inside.example:{port}"]
            fetcher = Fetcher(hosts, 10_000, 60, resolve, lambda a: a == "127.0.0.1" or is_public(a))
            try:
                return await fetcher.get(f"http://pub.example:{port}/first", counted.append), requests
            except ServiceError as error:
                return error, requests

    got, requests = asyncio.run(run())
    return got, requests, resolved


def test_redirects_are_followed_to_allowed_hosts_alone() -> None:
    got, requests, resolved = follow("/second", "http://also.example:PORT/third")
    assert (got, resolved) == (GREEN, ["pub.example", "pub.example", "also.example"])  # each hop is looked up anew
    assert [request.split()[1] for request in requests] == [b"/first", b"/second", b"/third"]
    for location in (
        "http://evil.example/",
        "http://127.0.0.1:PORT/",
        "file:///etc/passwd",
        "//evil.example/",
        "gopher:x",
    ):
        got, requests, _ = follow(location)
        assert isinstance(got, UrlRefused)
        assert len(requests) == 1
    got, requests, _ = follow("http://inside.example:PORT/", addresses={"inside.example": ["10.0.0.1"]})
    assert isinstance(got, UrlRefused)
    assert len(requests) == 1
    got, requests, _ = follow(*["/again"] * 9)
    assert isinstance(got, FetchFailed)
    assert len(requests) == 4


def test_a_name_that_changes_its_address_gains_nothing() -> None:
    """DNS rebinding: what was checked is what is connected to, and a redirect is checked anew."""
    inside = ["169.254.169.254"]
    got, _, resolved = follow(in_turn=[["127.0.0.1"], inside])
    assert (got, resolved) == (GREEN, ["pub.example"])
    got, requests, resolved = follow("/second", in_turn=[["127.0.0.1"], inside])
    assert isinstance(got, UrlRefused)
    assert (len(requests), resolved) == (1, ["pub.example"] * 2)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (found(bytes(10_001)), TooLarge),
        (OK + b"\r\n" + bytes(30_000), TooLarge),  # of a length that nobody stated
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + bytes(4096) + b"\r\nffff\r\n" + bytes(9000), TooLarge),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", FetchFailed),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", FetchFailed),
        (found(b"x", b"Content-Encoding: gzip\r\n"), FetchFailed),
        (b"SSH-2.0-OpenSSH\r\n", FetchFailed),
        (b"", FetchFailed),
        (OK + b"Content-Length: 100\r\n\r\nshort", FetchFailed),
        (OK + b"X: " + b"x" * 500_000 + b"\r\n\r\n", FetchFailed),
    ],
)  # fmt: skip
def test_what_a_hostile_server_answers_is_an_error(answer: bytes, error: type[ServiceError]) -> None:
    got, _, counted, _ = get(answer)
    assert type(got) is error
    assert counted <= 10_000


@pytest.mark.parametrize("answers", [(None,), (found(GREEN) + bytes(100),)])
def test_silence_and_trickles_end(answers: tuple[bytes | None]) -> None:
    got, _, _, _ = get(*answers, seconds=0.3, trickle=True)
    assert isinstance(got, FetchFailed)
    assert "0.3 seconds" in got.detail


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(found(GREEN))[0] == GREEN


def test_the_service_fetches_for_every_way_in(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(create_app(Settings(fetch_hosts="pub.example"), engine)) as client:  # type: ignore[arg-type]
        fetcher = client.app.state.service.fetcher  # type: ignore[attr-defined]

        async def hop(self: Fetcher, parts: Any, reserve: Callable[[int], None]) -> tuple[bytes, None]:
            reserve(len(GREEN))
            return GREEN, None

        monkeypatch.setattr(Fetcher, "_hop", hop)
        alone = client.post("/caption", content=GREEN).json()["caption"]
        assert client.post("/caption", json={"image": "https://pub.example/a"}).json()["caption"] == alone
        many = client.post("/captions", json={"images": ["HTTPS://pub.example/a", "http://other.example/"]}).json()
        assert many["results"][0]["result"]["caption"] == alone
        assert many["results"][1]["error"]["code"] == "url_refused"
        assert isinstance(fetcher, Fetcher)


NO_SOCKETS = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        print(event, arguments, file=sys.stderr, flush=True)
        os._exit(3)

sys.addaudithook(watch)
from starlette.testclient import TestClient
from app.main import create_app
import app.serving.service
from tests.app.fakes import FakeEngine, FakeGuard
from app.settings import Settings
app.serving.service.Guard = FakeGuard
url = "http://pub.example/a.png"
with TestClient(create_app(Settings(), FakeEngine())) as client:
    assert client.post("/caption", json={"image": url}).json()["code"] == "url_refused"
    assert "url_refused" in client.post("/captions", json={"images": [url]}).text
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    asked = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
    assert "CAPTION_FETCH_HOSTS" in client.post("/v1/chat/completions", json=asked).text
    assert "CAPTION_FETCH_HOSTS" in client.post("/computervision/imageanalysis:analyze?features=caption",
                                                json={"url": url}).text
print(*[name for name in ("httpcore", "httpx", "ssl", "opentelemetry.sdk", "mcp") if name in sys.modules
        and name not in ALREADY])
"""


def test_without_hosts_no_socket_goes_out_and_nothing_for_it_is_imported() -> None:
    # The test client itself imports some of them.
    program = NO_SOCKETS.replace(
        "from app.main", "import starlette.testclient\nALREADY = set(sys.modules)\nfrom app.main", 1
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "hosts", ["127.0.0.1", "[::1]", "*", "https://a.example", "a.example/x", "0x7f.1", "a.example:x"]
)
def test_hosts_are_names(hosts: str) -> None:
    with pytest.raises(ValueError, match="no host name"):
        Settings(fetch_hosts=hosts)  # type: ignore[arg-type]

"""Pictures by URL, for operators who allow hosts by name: to public addresses alone, within bytes and time.

Whoever may ask the service may make it ask those hosts, and no others (server-side request forgery). So a name is
resolved once, every address that it has must be public, and the connection goes to such an address and not to the
name again; that is done anew at every redirect. Proxies of the environment are not asked.
Imported only where hosts are allowed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import certifi
import httpcore

from app.errors import FetchFailed, TooLarge, UrlRefused
from app.settings import FETCH_HOST

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

HOPS = 3  # redirects that are followed
AT_ONCE = 16  # fetches; others wait, which counts as their time
PORTS = {"http": 80, "https": 443}
URL = re.compile(r"https?://[!-~]{1,4000}", re.IGNORECASE)
# IPv6 that stands for an IPv4 address behind some gateway: compatible, mapped, translated, 6to4, Teredo.
FOR_IPV4 = [
    ip_network(n) for n in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
]


def is_public(address: str) -> bool:
    """Whether an address, as a resolver gives it, is one of the internet and says so itself."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and (ip.scope_id or ip.is_site_local or any(ip in network for network in FOR_IPV4)):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


async def resolve(host: str, port: int) -> list[str]:
    """Every address of `host`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Backend(httpcore.AnyIOBackend):
    """Connects to addresses that were checked."""

    def __init__(self, resolve: Resolve, allowed: Callable[[str], bool]) -> None:
        self.resolve, self.allowed = resolve, allowed

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self.resolve(host, port)
        if not addresses or not all(map(self.allowed, addresses)):
            raise UrlRefused(f"{host} has an address that is not a public one")
        for address in addresses[:-1]:
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await super().connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


class Fetcher:
    """Gets pictures from `hosts`: `name`, `*.name` for all below, `name:port`; without a port the scheme's own.

    limit: bytes of a picture. seconds: for all of it, redirects included.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        limit: int,
        seconds: float,
        resolve: Resolve = resolve,
        allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self.hosts = {host.lower() for host in hosts}
        self.limit, self.seconds = limit, seconds
        self._backend = _Backend(resolve, allowed)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tls = ssl.create_default_context()
        self._tls.load_verify_locations(certifi.where())

    async def get(self, url: str, reserve: Callable[[int], None]) -> bytes:
        """The bytes at `url`, each counted by `reserve`; raises `UrlRefused`, `FetchFailed` or `TooLarge`."""
        try:
            async with asyncio.timeout(self.seconds), self._slots:
                for _ in range(HOPS + 1):
                    data, location = await self._hop(self._checked(url), reserve)
                    if location is None:
                        return data
                    following = urljoin(url, location)
                    if url[:6].lower() == "https:" and following[:6].lower() != "https:":
                        raise UrlRefused("the URL is redirected from https to something else")
                    url = following
        except TimeoutError as error:
            raise FetchFailed(f"the picture did not come within {self.seconds:g} seconds") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise FetchFailed("the host of the picture's URL cannot be reached, or does not answer properly") from error
        raise FetchFailed(f"the URL is redirected more than {HOPS} times")

    def _checked(self, url: str) -> SplitResult:
        """The parts of a URL whose host is allowed."""
        try:
            parts = urlsplit(url) if URL.fullmatch(url) else None
            port = parts.port if parts else None
        except ValueError:
            parts = port = None
        if parts is None or parts.username is not None or not FETCH_HOST.fullmatch(host := parts.hostname or ""):
            raise UrlRefused("the URL must be http://HOST/... or https://HOST/..., with a name and no password")
        ending = "" if port in (None, PORTS[parts.scheme]) else f":{port}"
        above = [host.split(".", n)[-1] for n in range(1, host.count(".") + 1)]
        if not self.hosts.intersection({host + ending, *(f"*.{name}{ending}" for name in above)}):
            raise UrlRefused(
                f"pictures are not fetched from {(host + ending)[:100]}; CAPTION_FETCH_HOSTS has the hosts"
            )
        return parts

    async def _hop(self, parts: SplitResult, reserve: Callable[[int], None]) -> tuple[bytes, str | None]:
        """The body of the answer, or where it is said to be instead."""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.hostname or ""
        url = httpcore.URL(scheme=parts.scheme, host=host, port=parts.port, target=target)
        headers: dict[str | bytes, str | bytes] = {
            "Host": host if parts.port is None else f"{host}:{parts.port}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        }
        made = bytearray()
        async with (
            httpcore.AsyncConnectionPool(self._tls, max_connections=1, network_backend=self._backend) as pool,
            pool.stream("GET", url, headers=headers) as answer,
        ):
            got = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
            if answer.status in (301, 302, 303, 307, 308) and b"location" in got:
                return b"", got[b"location"]
            if answer.status != 200:
                raise FetchFailed(f"{host} answered with status {answer.status}")
            if got.get(b"content-encoding", "identity") != "identity":
                raise FetchFailed(f"{host} sent the picture compressed, which it was not asked for")
            length = got.get(b"content-length", "")
            if length.isdigit() and int(length) > self.limit:
                raise TooLarge(f"the picture has {length} bytes; the limit is {self.limit}")
            async for chunk in answer.aiter_stream():
                if len(made) + len(chunk) > self.limit:
                    raise TooLarge(f"the picture is larger than {self.limit} bytes")
                reserve(len(chunk))
                made += chunk
        return bytes(made), None

"""`python -m benchmarks.soak`: drive a live server with good, broken, oversize, lying and hostile pictures.

Starts a server on a free loopback port, sends a tenth of `--requests` and then all from `--clients` clients, and checks
what must hold whatever comes: every answer is the one its picture deserves, no 5xx but 503 and 504, the server's
counters equal the clients', and its memory stays flat. Exit status 1 if not.
Then it times good pictures beside 16 hostile ones.
Pictures are drawn on the spot; nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image

from benchmarks.load import end_with_parent
from benchmarks.pictures import hostile
from benchmarks.timing import percentile

SHARES = {"broken": 0.02, "oversize": 0.01, "hang-up": 0.01, "bomb": 0.01, "hostile": 0.002}
EXPECTED = {"good": {200}, "broken": {422}, "oversize": {413}, "bomb": {413}, "hostile": {200, 422}}
ALWAYS = {503, 504}
LARGEST_MB = 20  # that a file may have
FORMATS = ("JPEG", "JPEG", "JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")
COUNTER = re.compile(
    r'^caption_http_requests_total\{method="POST",route="/caption",status="(\d+)"\} (\S+)', re.MULTILINE
)


@dataclass
class Tally:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    hang_ups: int = 0
    wrong: list[str] = field(default_factory=list)
    captions: dict[bytes, str] = field(default_factory=dict)  # of each picture, the first time
    memory: list[float] = field(default_factory=list)  # MB, while requests of all kinds are on their way
    settled: list[float] = field(default_factory=list)  # MB, after good pictures alone: at first, at the end
    seconds: list[float] = field(default_factory=list)  # that good pictures took, from then on
    beside: list[float] = field(default_factory=list)  # that they took beside hostile ones


def draw(seed: int) -> bytes:
    """A picture of coloured boxes; the same seed draws the same file."""
    rng = random.Random(seed)
    image = Image.new("RGB", (rng.randrange(160, 640), rng.randrange(120, 480)), _colour(rng))
    for _ in range(6):
        left, top = rng.randrange(image.width), rng.randrange(image.height)
        image.paste(_colour(rng), (left, top, left + rng.randrange(9, 200), top + rng.randrange(9, 200)))
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[seed % len(FORMATS)])
    return buffer.getvalue()


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels by its header."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1_000_000))), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


async def soak(url: str, pid: int, requests: int, clients: int, tally: Tally) -> None:
    """Send it all; see the module's docstring."""
    rng = random.Random(0)
    good = [draw(seed) for seed in range(64)]
    kinds = rng.choices([*SHARES, "good"], [*SHARES.values(), 1 - sum(SHARES.values())], k=requests)
    work = iter(enumerate(kinds))
    files = {"oversize": bytes(21_000_000), "bomb": bomb()}
    costly = list(hostile().values())

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            for number, kind in work:
                choice = rng.randrange(len(good))
                if kind == "hang-up":
                    await hang_up(url, good[choice], rng.random() * 0.05)
                    tally.hang_ups += 1
                    continue
                by_number = {
                    "good": good[choice],
                    "broken": good[choice][:200],
                    "hostile": costly[choice % len(costly)],
                }
                data = (files | by_number)[kind]
                start = time.perf_counter()
                try:
                    answer = await http.post("/caption", files={"image": data})
                except httpx.TransportError as error:
                    tally.wrong.append(f"{kind}: {error!r}")
                    continue
                tally.statuses[answer.status_code] += 1
                if kind == "good":
                    tally.seconds.append(time.perf_counter() - start)
                if answer.status_code not in EXPECTED[kind] | ALWAYS:
                    tally.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
                elif answer.status_code == 200:
                    caption = answer.json()["caption"]
                    if caption != tally.captions.setdefault(data, caption):
                        tally.wrong.append(f"{kind} picture: {caption!r} is not {tally.captions[data]!r}")
                if number % max(requests // 50, 1) == 0:
                    tally.memory.append(resident_mb(pid))

    await asyncio.gather(*(client() for _ in range(clients)))


async def settle(url: str, pid: int, tally: Tally, pictures: int = 256, clients: int = 16) -> None:
    """Send good pictures alone, then note what memory the process holds: no upload of 20 MB is on its way."""
    work = iter([draw(seed) for seed in range(64)] * (pictures // 64))

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            for data in work:
                tally.statuses[(await http.post("/caption", files={"image": data})).status_code] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    tally.settled.append(resident_mb(pid))


async def beside(url: str, tally: Tally, pictures: int, clients: int = 16) -> None:
    """Good pictures, one after the other, while so many clients ask for hostile ones all the time."""
    kinds = hostile()
    good, over = draw(0), asyncio.Event()

    async def attacker(http: httpx.AsyncClient, kind: str) -> None:
        while not over.is_set():
            try:
                answer = await http.post("/caption", files={"image": kinds[kind]})
            except httpx.TransportError as error:
                tally.wrong.append(f"{kind}: {error!r}")
                continue
            tally.statuses[answer.status_code] += 1
            if answer.status_code not in EXPECTED["hostile"] | ALWAYS:
                tally.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
            if answer.status_code == 503:
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)))

    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        attackers = [asyncio.create_task(attacker(http, kind)) for kind in (*kinds,) * (clients // len(kinds))]
        await asyncio.sleep(1)
        for _ in range(pictures):
            start = time.perf_counter()
            answer = await http.post("/caption", files={"image": good})
            tally.beside.append(time.perf_counter() - start)
            tally.statuses[answer.status_code] += 1
            if answer.status_code != 200:
                tally.wrong.append(f"good, beside hostile ones: {answer.status_code} {answer.text[:200]}")
        over.set()
        await asyncio.gather(*attackers)


async def hang_up(url: str, data: bytes, seconds: float) -> None:
    """Send a request, or half of one, and leave."""
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Type: image/*\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data[: None if seconds < 0.025 else len(data) // 2])
    await writer.drain()
    await asyncio.sleep(seconds)
    writer.close()


def resident_mb(pid: int) -> float:
    """Megabytes that the process holds, without its children."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def check(tally: Tally, served: dict[int, int]) -> list[str]:
    """What does not hold."""
    wrong = tally.wrong[:20]
    wrong += [f"status {s} was answered" for s in served if s >= 500 and s not in ALWAYS]
    # A client that hung up is a 499, or an answer nobody read if it was ready first.
    unread = sum(served.values()) - sum(tally.statuses.values())
    if any(served.get(status, 0) < count for status, count in tally.statuses.items()) or unread > tally.hang_ups:
        wrong.append(f"the counters do not add up: {dict(tally.statuses)} seen, {served} counted")
    first, last = tally.settled
    if last > 1.05 * first + LARGEST_MB:  # the last large file may stay until another comes
        wrong.append(f"memory grew from {first:.0f} to {last:.0f} MB")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; 0 if everything held."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--beside", type=int, default=300, help="good pictures that are timed beside 16 hostile ones")
    given = parser.parse_args(arguments)
    server = subprocess.Popen(
        [sys.executable, "-m", "app", "--host", "127.0.0.1", "--port", "0", "--device", "cpu"],
        env={**os.environ, "CAPTION_LOG_LEVEL": "warning", "CAPTION_WORKERS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent,
    )
    tally = Tally()
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1].rstrip("/")
        asyncio.run(soak(url, server.pid, given.requests // 10, given.clients, tally))  # allocators settle
        asyncio.run(settle(url, server.pid, tally))
        tally.seconds.clear()
        asyncio.run(soak(url, server.pid, given.requests, given.clients, tally))
        asyncio.run(beside(url, tally, given.beside))
        asyncio.run(settle(url, server.pid, tally))
        served = {int(status): int(float(n)) for status, n in COUNTER.findall(httpx.get(f"{url}/metrics").text)}
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait()
    wrong = check(tally, served)
    if status:
        wrong.append(f"the server ended with status {status}")
    print(f"{given.requests} requests, {given.clients} clients, {tally.hang_ups} hang-ups")
    print(f"answers by status: {dict(sorted(tally.statuses.items()))}; counted by the server: {served}")
    for what, seconds in (("good pictures", tally.seconds), ("beside 16 hostile ones at once", tally.beside)):
        if seconds:
            print(f"{what}: {percentile(seconds, 99):.3f} s at the 99th percentile, {max(seconds):.3f} s at worst")
    first, last = tally.settled
    most = max(tally.memory)
    print(f"resident memory: {first:.0f} MB, {last:.0f} at the end, at most {most:.0f} with uploads on their way")
    print(*(f"WRONG: {line}" for line in wrong), sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

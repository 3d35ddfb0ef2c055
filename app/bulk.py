"""`caption-bulk`: captions for millions of pictures, as Parquet, on Ray Data: one machine or a cluster.

A worker for each core takes a shard (`app.bulk_plan`), decodes its pictures in processes with limits as the service
does, captions them in batches, and writes one file of answers; so memory does not grow with the library. A run that
was stopped, or lost workers, goes on with the shards that have no answers yet.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from app.bulk_plan import SHARD, BulkError, Item, Place, Plan, Shard, find, read
from app.errors import ServiceError
from app.metrics import Metrics
from app.pictures.guard import Decoded, Guard
from app.settings import DEFAULT_MODEL, SettingsError, from_environment
from caption_client.alt_text import AltText, AltTextError
from caption_client.options import positive
from model.caption import Caption
from model.checkpoint import open_checkpoint
from model.errors import CaptionModelError
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine

BATCH = 16  # pictures that are decoded, and captioned, together
READERS = 8  # threads that wait for files, which may be far away
TRIES = 3  # to read a file
LIKELY = 0.5  # tags of at least this probability are written
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit statuses, as of `caption`
ANSWERS = pa.schema(
    [
        ("name", pa.string()),
        ("caption", pa.string()),
        ("confidence", pa.float32()),
        ("tags", pa.list_(pa.string())),
        ("review", pa.bool_()),  # as in the answers of the service
        ("error", pa.string()),
    ]
)


class Job(NamedTuple):
    """What every worker is told."""

    output: str
    model: str
    device: str
    threads: int
    column: str | None
    sidecars: bool


class Worker:
    """An actor of Ray Data: an engine, and decoders that a hostile picture may kill without harm."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.settings = from_environment()
        self.engine = load_engine(Path(job.model), job.device, threads=job.threads)  # type: ignore[arg-type]
        self.engine.warm_up()
        self.plan = Plan(Place(job.output))
        self.loop = asyncio.new_event_loop()
        self.readers = ThreadPoolExecutor(READERS)
        self.guard = Guard.of(self.settings, self.engine.config.preprocess, Metrics(), workers=2, max_costly=BATCH)
        self.loop.run_until_complete(self.guard.start())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Caption a shard and write its answers; what comes back is what the summary counts."""
        shard = Shard(row["plan"], int(row["group"]), int(row["pictures"]))
        answers = self.loop.run_until_complete(self.caption(self.plan.items(shard)))
        with (self.plan.output / shard.answers).written() as stream:
            pq.write_table(pa.Table.from_pylist(answers, ANSWERS), stream)
        return {
            "pictures": len(answers),
            "review": sum(answer["review"] for answer in answers),
            "errors": [answer["error"] for answer in answers if answer["error"]],
        }

    async def caption(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """A row for each: while a batch is captioned, the next is read and decoded."""
        reads = read(items, self.job.column)
        answers: list[dict[str, Any]] = []
        coming = asyncio.create_task(self._decoded(list(islice(reads, BATCH))))
        while batch := await coming:
            coming = asyncio.create_task(self._decoded(list(islice(reads, BATCH))))
            answers += await asyncio.to_thread(self._answers, batch)
        return answers

    async def _decoded(self, batch: Sequence[tuple[Item, Callable[[], bytes]]]) -> list[tuple[Item, Decoded | str]]:
        """Each decoded, or what is wrong with it."""

        async def one(item: Item, content: Callable[[], bytes]) -> tuple[Item, Decoded | str]:
            try:
                data = await self.loop.run_in_executor(self.readers, _read_with_retry, content)
                if len(data) > self.settings.max_upload_bytes:
                    return item, f"the file is larger than {self.settings.max_upload_bytes} bytes"
                return item, await self.guard.read(data)
            except (ServiceError, OSError, CaptionModelError) as error:
                return item, getattr(error, "strerror", None) or str(error)

        return await asyncio.gather(*(one(*each) for each in batch))

    def _answers(self, batch: Sequence[tuple[Item, Decoded | str]]) -> list[dict[str, Any]]:
        found = iter(captioned(self.engine, [one.pixels for _, one in batch if not isinstance(one, str)]))
        rows = []
        for item, decoded in batch:
            row = empty(item.name)
            said = decoded if isinstance(decoded, str) else next(found)
            if isinstance(said, str) or isinstance(decoded, str):
                row["error"] = said
            else:
                caption, tags = said
                row |= {"caption": caption.text, "confidence": caption.confidence, "tags": tags}
                row["review"] = decoded.decorative or self.engine.wants_review(caption)
                if self.job.sidecars:
                    row["error"] = _beside(item, caption.text)
            rows.append(row)
        return rows


def captioned(engine: CaptionEngine, pixels: Sequence[NDArray[np.uint8]]) -> list[tuple[Caption, list[str]] | str]:
    """Caption and tags of each picture; of one that the engine fails on, which must not fail its neighbours, why."""
    names = engine.config.tags
    made: list[tuple[Caption, list[str]] | str] = []
    for answer in engine.answers(pixels):
        if isinstance(answer, Exception):
            made.append(f"the model failed on this picture: {answer}")
            continue
        captions, likely = answer
        made.append((captions[0], [names[g] for g in np.argsort(-likely) if likely[g] >= LIKELY]))
    return made


def empty(name: str) -> dict[str, Any]:
    """A row of `ANSWERS` that says nothing yet."""
    return {"name": name, "caption": None, "confidence": None, "tags": [], "review": False, "error": None}


def _read_with_retry(content: Callable[[], bytes]) -> bytes:
    """Read, trying again after an error of a store that is far away, but not where the file is missing."""
    for tried in range(1, TRIES + 1):
        try:
            return content()
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except OSError:
            if tried == TRIES:
                raise
            time.sleep(tried)
    raise AssertionError


def _beside(item: Item, text: str) -> str | None:
    """Write the caption to PICTURE.jpg.txt; returns what went wrong, None where nothing did."""
    if item.offset >= 0 or item.row >= 0 or "://" in item.file:
        return "only pictures in local files can have a text beside them"
    try:
        with AltText("sidecar") as place:
            kept = place.read(Path(item.file))
            place.write(Path(item.file), text)  # a person's text, or that of this run's first try, stays
        return None if kept is None or kept else "another text is there"
    except (AltTextError, OSError) as error:
        return str(error)


# --- the command -------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 if any picture failed, 2 if it could not start."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("caption-bulk: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    except (BulkError, CaptionModelError, SettingsError, OSError) as error:
        print(f"caption-bulk: {error}", file=sys.stderr)
        return USAGE


def _run(options: argparse.Namespace) -> int:
    from_environment()  # says what is wrong before workers do
    model: Path = (options.model or DEFAULT_MODEL).resolve()
    checkpoint = open_checkpoint(model)
    plan = Plan(Place(options.output))
    plan.check(
        {
            "model": f"{checkpoint.config.name} {checkpoint.config.version}",
            "digests": dict(checkpoint.digests),
            "column": options.column,
        }
    )
    unseen: list[tuple[str, str]] = []
    added = plan.extend(find(options.pictures, options.column, lambda *trouble: unseen.append(trouble)), options.shard)
    for name, why in unseen:
        print(f"caption-bulk: not looked into: {name}: {why}", file=sys.stderr)
    left = plan.left()
    total, todo = sum(shard.pictures for shard in plan.shards()), sum(shard.pictures for shard in left)
    if not total:
        print("caption-bulk: no pictures found", file=sys.stderr)
        return USAGE
    print(f"caption-bulk: {total} pictures, {added} of them new; {todo} to do", file=sys.stderr)
    if not left:
        return FAILED if unseen else OK
    location = options.output if "://" in options.output else os.path.abspath(options.output)
    job = Job(location, str(model), options.device, options.cpus, options.column, options.sidecars)
    began = time.monotonic()
    review, errors, workers = caption_all(job, left, options)
    seconds = time.monotonic() - began
    print(
        f"caption-bulk: {todo} pictures in {seconds:.0f} s by {workers} workers, {todo / seconds:.1f} a second; "
        f"{review} for a person to look at, {sum(errors.values())} failed"
    )
    for why, count in errors.most_common(10):
        print(f"  {count} x {why}")
    return FAILED if errors or unseen else OK


def caption_all(job: Job, left: Sequence[Shard], options: argparse.Namespace) -> tuple[int, Counter[str], int]:
    """Caption the shards; how many captions want a look, what failed how often, and how many workers there were."""
    import ray
    import ray.data

    # A machine that is busy takes longer to start Ray than Ray waits by default.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
    os.environ.setdefault("RAY_worker_niceness", "0")  # its default, 15, is for what runs beside one's own work
    address = options.address or os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {} if address else {"num_cpus": options.workers and options.workers * options.cpus}
    if not address:
        local |= {"include_dashboard": False, "object_store_memory": 200_000_000}  # answers go to files, not there
    # "local": without it Ray joins whatever cluster was started on this machine last, even one that has ended.
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **local)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our own bar tells it
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    gpus = 1 if job.device == "cuda" else 0
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    most = options.workers or max(int(cpus) // job.threads, 1)
    workers = min(most, len(left))
    rows = [shard._asdict() for shard in left]
    shards = ray.data.from_items(rows, override_num_blocks=len(rows))
    results = shards.map(
        Worker,  # type: ignore[arg-type]  # each actor makes one, and calls it
        fn_constructor_args=[job],
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=job.threads,
        num_gpus=gpus,
    )
    review, errors = 0, Counter[str]()
    interval = 1 if sys.stderr.isatty() else 30
    with tqdm(total=sum(shard.pictures for shard in left), unit=" pictures", mininterval=interval) as bar:
        for row in results.iter_rows():
            review += row["review"]
            errors.update(row["errors"])
            bar.update(row["pictures"])
    ray.shutdown()
    return review, errors, workers


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caption-bulk",
        description="Captions for a library of pictures, as Parquet files. The same command again goes on with a run "
        "that was stopped, and takes in what has come since.",
        epilog="Exit status: 0 when every picture got its caption, 1 when any failed, 2 when nothing could start. "
        "Limits of pictures are the service's: CAPTION_MAX_PIXELS, CAPTION_MAX_UPLOAD_MB, CAPTION_DECODE_SECONDS.",
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURES", help="a folder, a glob in quotes, a tar (WebDataset), a Parquet "
        "table of pictures or paths, or a URL of any of them (s3://, gs://, ... )")  # fmt: skip
    add("-o", "--output", required=True, metavar="FOLDER", help="where the answers go; a folder or URL of its own")
    add("--column", metavar="NAME", help="of Parquet tables: the column with pictures or paths")
    add("--sidecars", action="store_true", help="also write PICTURE.jpg.txt beside local pictures that have none")
    add("--model", type=Path, metavar="FOLDER", help="checkpoint; default: the one inside")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cuda: each worker takes a GPU")
    add("--workers", type=positive, metavar="N", help="default: one for each core")
    add("--cpus", type=positive, default=1, metavar="N", help="cores of a worker (1)")
    add("--shard", type=positive, default=SHARD, metavar="N", help=f"pictures in a file of answers ({SHARD})")
    add("--address", metavar="ADDRESS", help="of a Ray cluster, or auto; default: $RAY_ADDRESS, or this machine alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())

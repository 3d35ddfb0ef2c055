"""What the service counts, in Prometheus' format and by its naming conventions."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # set by app.serving.server when there are several workers
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The service's instruments; each application has its own registry, workers share files."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "caption_http_requests", "Requests answered, by status; 499 is a client that hung up.",
            ["method", "route", "status"], registry=r,
        )  # fmt: skip
        self.duration = Histogram(
            "caption_http_request_duration_seconds", "From a request's headers to the end of its answer.",
            ["route"], buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.stages = Histogram(
            "caption_stage_duration_seconds", "Time in a stage; encode and generate are a batch's.",
            ["stage"], buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.pictures = Counter("caption_pictures", "Pictures captioned.", ["format"], registry=r)
        self.batch_size = Histogram(
            "caption_batch_size_pictures", "Pictures searched for captions at once.", buckets=PICTURES, registry=r
        )
        self.admitted = Gauge(
            "caption_admitted_pictures", "Pictures accepted and not yet answered.",
            multiprocess_mode="livesum", registry=r,
        )  # fmt: skip
        self.upload_bytes = Gauge(
            "caption_upload_bytes", "Memory held by request bodies.", multiprocess_mode="livesum", registry=r
        )
        self.rejected = Counter("caption_rejected", "Requests refused under load, by reason.", ["reason"], registry=r)
        self.decoders_ended = Counter(
            "caption_decoders_ended", "Processes that decode pictures that ended, by reason.", ["reason"], registry=r
        )
        self.model = Gauge(
            "caption_model_info", "1, labelled with the model being served.",
            ["name", "version", "engine", "device"], multiprocess_mode="max", registry=r,
        )  # fmt: skip
        if folder := os.environ.get(MULTIPROCESS):
            Path(folder, f"{os.getpid()}.pid").touch()
            self.registry = CollectorRegistry()
            MultiProcessCollector(self.registry)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=r)

    def stage(self, name: str, seconds: float) -> None:
        self.stages.labels(name).observe(seconds)

    def render(self) -> bytes:
        """Everything, as Prometheus scrapes it; gauges of workers that died are dropped first."""
        if folder := os.environ.get(MULTIPROCESS):
            for worker in Path(folder).glob("*.pid"):
                if not Path("/proc", worker.stem).exists():
                    mark_process_dead(int(worker.stem))  # type: ignore[no-untyped-call]
                    worker.unlink(missing_ok=True)  # others render too
        return generate_latest(self.registry)

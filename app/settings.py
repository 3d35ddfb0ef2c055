"""Every setting of the service, each read from an environment variable `CAPTION_<NAME>`.

`python -m app.settings` prints the table in docs/configuration.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.runtime.engine import Device

DEFAULT_MODEL = Path(__file__).parent.parent / "model" / "weights" / "default"
MEGABYTE = 1_000_000


class Settings(BaseSettings):
    """How the service runs; an unknown or impossible value is an error at start."""

    model_config = SettingsConfigDict(env_prefix="CAPTION_", frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    workers: int = Field(1, ge=1, le=64, description="Server processes; each loads the model. A dead one is replaced.")
    model: Path = Field(DEFAULT_MODEL, description="Checkpoint folder to serve.")
    device: Device = Field("auto", description="`auto`, `cpu` or `cuda`.")
    engine: Literal["auto", "torch", "openvino"] = Field("auto", description="Which engine runs the model.")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 takes as many as the CPU quota allows.")

    max_upload_mb: float = Field(20, gt=0, description="Largest picture file, in megabytes; larger gets 413.")
    max_batch_mb: float = Field(64, gt=0, description="Largest body of `POST /captions`, in megabytes.")
    max_images: int = Field(16, ge=1, description="Most pictures in one `POST /captions`.")
    max_pixels: int = Field(50_000_000, ge=1, description="Most pixels in a picture, read from its header.")
    upload_memory_mb: float = Field(
        256, gt=0, description="Memory for all request bodies held at once, in megabytes; beyond it, 503."
    )
    body_timeout: float = Field(20, gt=0, description="Seconds a client has to send a request's body; then 408.")
    header_timeout: float = Field(10, gt=0, description="Seconds a client has to send a request's headers.")
    keep_alive: int = Field(5, ge=0, description="Seconds an idle connection is kept open.")
    max_connections: int = Field(1000, ge=1, description="Open connections a worker keeps; more are refused with 503.")

    decode_workers: int = Field(
        3, ge=2, le=64, description="Processes that decode pictures; one of them may be busy with one that takes long."
    )
    decode_seconds: float = Field(
        10, gt=0, description="Seconds of CPU that decoding one picture may take; then 422 `too_costly`."
    )
    decode_memory_mb: int = Field(
        1024,
        ge=256,
        description="Memory that decoding one picture may take, in megabytes; one at a time may, the others a quarter.",
    )
    batch_size: int = Field(
        16,
        ge=1,
        description="Most pictures that a thread of the engine takes at once; torch works on them together.",
    )
    batch_wait: float = Field(
        0.005,
        ge=0,
        description="With torch: most seconds a batch waits for pictures that are being decoded; without any, none.",
    )
    queue_size: int = Field(64, ge=1, description="Pictures accepted and not yet answered; more get 503 at once.")
    deadline: float = Field(30, gt=0, description="Seconds from a read body to its answer; then 504.")
    hang: float = Field(
        60,
        gt=0,
        description="Seconds the engine may take for one batch; then `/health/live` fails.",
    )
    drain_delay: float = Field(
        0.5, ge=0, description="Seconds after SIGTERM in which the service is not ready but still accepts."
    )
    grace: int = Field(20, ge=1, description="Seconds after that for accepted requests to finish.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Comma-separated keys; if set, captions, `/model` and `/metrics` need one."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Comma-separated web origins that may call the API from a browser."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_images > self.queue_size:
            raise ValueError("max_images must be at most queue_size, or a full POST /captions could never be accepted")
        if max(self.max_upload_mb, self.max_batch_mb) > self.upload_memory_mb:
            raise ValueError("upload_memory_mb must be at least max_upload_mb and max_batch_mb")
        if any(not key.get_secret_value().isascii() for key in self.api_keys):
            raise ValueError("api_keys must be ASCII: a header carries them")
        return self

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload_mb` in bytes."""
        return int(self.max_upload_mb * MEGABYTE)

    @property
    def max_batch_bytes(self) -> int:
        """`max_batch_mb` in bytes."""
        return int(self.max_batch_mb * MEGABYTE)


def markdown() -> str:
    """The settings as the Markdown table in docs/configuration.md."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if default == DEFAULT_MODEL:
            default = "model/weights/default"
        shown = "" if default == () else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        rows.append(f"| `CAPTION_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def to_environment(settings: Settings) -> None:
    """Write `settings` into this process's environment, from where worker processes read them."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, tuple):
            value = ",".join(v.get_secret_value() if isinstance(v, SecretStr) else v for v in value)
        os.environ[f"CAPTION_{name.upper()}"] = str(value)


if __name__ == "__main__":
    print(markdown())

"""Every setting of the service, each read from an environment variable `CAPTION_<NAME>`.

`python -m app.settings` prints the table in docs/configuration.md.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from functools import cached_property
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.runtime.engine import Device

DEFAULT_MODEL = Path(__file__).parent.parent / "model" / "weights" / "default"
MEGABYTE = 1_000_000
COMPOSE_ONLY = frozenset({"CAPTION_CPUS", "CAPTION_PUBLISH"})  # read by docker-compose.yml, not by the service
KEY = re.compile(r"[!-~]+")  # what a header carries
HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
# A name, never an address in any of its forms: its last part is no number.
FETCH_HOST = re.compile(r"([a-z0-9_-]+\.)*(?!0x|[0-9]+$)[a-z0-9_-]+", re.IGNORECASE)
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
PROTOCOLS = ("huggingface", "openai", "ollama", "photoprism", "azure", "oip")  # modules of app.compat
Words = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """How the service runs; an impossible value is an error at start, an empty variable is none."""

    model_config = SettingsConfigDict(env_prefix="CAPTION_", frozen=True, extra="ignore", env_ignore_empty=True)

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; `0.0.0.0` for every interface, `::` for those of IPv6 too.",
    )
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
    body_timeout: float = Field(20, gt=0, description="Seconds a client may be silent while it sends a body; then 408.")
    body_rate_kb: float = Field(
        16, ge=0, description="Kilobytes a second that a body must come at, once `body_timeout` has passed; else 408."
    )
    header_timeout: float = Field(10, gt=0, description="Seconds a client has to send a request's headers.")
    keep_alive: int = Field(
        130, ge=0, description="Seconds an idle connection is kept open; more than a proxy in front keeps its own."
    )
    max_connections: int = Field(
        1000, ge=1, description="Open connections a worker keeps; for more, idle ones are closed, else 503."
    )

    decode_workers: int = Field(
        3, ge=2, le=64, description="Processes that decode pictures; one of them may be busy with one that takes long."
    )
    decode_seconds: float = Field(
        10, gt=0, description="Seconds of CPU that decoding one picture may take; then 422 `too_costly`."
    )
    decode_memory_mb: int = Field(
        1024,
        ge=256,
        description="Memory that decoding one picture may take, in MiB; one at a time may, the others a quarter.",
    )
    resizer: Literal["exact", "fast"] = Field(
        "exact",
        description="`exact`: pictures are resized as they were when the model was measured. `fast`: by SIMD, which "
        "takes an eighth off the CPU of a caption; a sixth of the captions are worded otherwise, as good ones.",
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
    api_keys_file: Path | None = Field(
        None, description="File of more keys, one a line, `#` before a remark: a Docker secret, say."
    )
    cors_origins: Words = Field((), description="Comma-separated web origins that may call the API from a browser.")
    allowed_hosts: Words = Field(
        (),
        description="Comma-separated names that the service is called by, `*.example.org` for all below one, `*` for "
        "any; others get 421. Addresses and `localhost` always work. Default: without keys and on a loopback address "
        "names of local networks, else any.",
    )
    trusted_proxies: Words = Field(
        (),
        description="Comma-separated addresses and networks of proxies whose `X-Forwarded-For`, `-Proto` and "
        "`-Prefix` are believed; `*` for any.",
    )
    root_path: str = Field(
        "", description="Path under which a proxy shows the service, and which it removes: `/captions`, say."
    )
    compat: Words = Field(
        PROTOCOLS,
        description="Comma-separated protocols of other services that are answered (docs/clients.md); `none` for none.",
    )
    fetch_hosts: Words = Field(
        (),
        description="Comma-separated hosts that pictures given by URL may be fetched from: names, `*.example.org` for "
        "all below one, `:PORT` behind it for another port than the scheme's. Default: none, and no picture is "
        "fetched.",
    )
    fetch_seconds: float = Field(10, gt=0, description="Seconds that fetching one picture may take.")
    log_health: bool = Field(True, description="Whether health checks that pass are in the access log.")
    commit: str = Field(
        "", pattern="^[0-9A-Za-z._-]*$", description="Commit that the service was built from, for `GET /model`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")

    @field_validator(
        "api_keys", "cors_origins", "allowed_hosts", "trusted_proxies", "compat", "fetch_hosts", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("resizer")
    @classmethod
    def _is_there(cls, resizer: str) -> str:
        if resizer == "fast" and find_spec("cykooz_resizer") is None:
            raise ValueError("fast needs the package cykooz.resizer, of which there is none for Linux on ARM")
        return resizer

    @field_validator("api_keys")
    @classmethod
    def _fit_a_header(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(KEY.fullmatch(key.get_secret_value()) for key in keys):
            raise ValueError("a key must be visible ASCII without spaces: a header carries it")
        return keys

    @field_validator("api_keys_file")
    @classmethod
    def _has_keys(cls, path: Path | None) -> Path | None:
        if path is not None and not cls._fit_a_header(_keys(path)):
            raise ValueError(f"there is no key in {path}")
        return path

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name != "*" and not HOST_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no host name; without a scheme, a port and a path")
        return names

    @field_validator("compat")
    @classmethod
    def _are_protocols(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(names) - {*PROTOCOLS, "none"}:
            raise ValueError(f"{min(unknown)!r} is none of {', '.join(PROTOCOLS)}")
        if "none" in names and len(names) > 1:
            raise ValueError("none stands alone")
        return names

    @field_validator("fetch_hosts")
    @classmethod
    def _can_be_fetched_from(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            name, colon, port = host.removeprefix("*.").partition(":")
            if not FETCH_HOST.fullmatch(name) or (colon and not port.isdigit()):
                raise ValueError(f"{host!r} is no host name; without a scheme and a path, and no address")
        return hosts

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(network if network == "*" else str(ip_network(network, strict=False)) for network in networks)

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, path: str) -> str:
        path = path.rstrip("/")
        if not ROOT_PATH.fullmatch(path):
            raise ValueError("must be a path such as /captions")
        return path

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_images > self.queue_size:
            raise ValueError("max_images must be at most queue_size, or a full POST /captions could never be accepted")
        if max(self.max_upload_mb, self.max_batch_mb) > self.upload_memory_mb:
            raise ValueError("upload_memory_mb must be at least max_upload_mb and max_batch_mb")
        return self

    @cached_property
    def keys(self) -> tuple[SecretStr, ...]:
        """The keys of `api_keys` and of the file; none leaves the service open."""
        return self.api_keys + (_keys(self.api_keys_file) if self.api_keys_file else ())

    @property
    def protocols(self) -> tuple[str, ...]:
        """Those of `compat` that are answered, in their own order."""
        return tuple(name for name in PROTOCOLS if name in self.compat)

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * MEGABYTE)

    @property
    def max_batch_bytes(self) -> int:
        return int(self.max_batch_mb * MEGABYTE)

    @property
    def upload_memory_bytes(self) -> int:
        return int(self.upload_memory_mb * MEGABYTE)


def _keys(path: Path) -> tuple[SecretStr, ...]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    return tuple(SecretStr(line.strip()) for line in lines if line.strip() and not line.startswith("#"))


def from_environment(**given: object) -> Settings:
    """The settings of this process, `given` first.

    Raises `SettingsError`, also for a variable that is none of them: misspelt, it would be left out in silence.
    """
    if wrong := unknown_variables(os.environ):
        raise SettingsError("\n".join(wrong))
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = "".join(f"CAPTION_{str(part).upper()}: " for part in problem["loc"][:1])
            lines.append(f"{name}{problem['msg'].removeprefix('Value error, ')}")
        raise SettingsError("\n".join(lines)) from None  # pydantic's own message shows what was given, keys too


class SettingsError(ValueError):
    """The service cannot run with what it is told; a line for each fault."""


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A line for each `CAPTION_...` in `environment` that is no setting, with the one that may be meant."""
    lines = []
    for name in sorted(environment):
        prefix, found, rest = name.lower().partition("caption_")
        if prefix or not found or rest in Settings.model_fields or name.upper() in COMPOSE_ONLY:
            continue
        meant = difflib.get_close_matches(rest, Settings.model_fields, 1)
        lines.append(f"{name} is no setting of the service" + (f"; CAPTION_{meant[0].upper()} is" if meant else ""))
    return lines


def markdown() -> str:
    """The settings as the Markdown table in docs/configuration.md."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if default == DEFAULT_MODEL:
            default = "model/weights/default"
        if isinstance(default, tuple):
            default = ",".join(default)
        shown = "" if default in ("", None) else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        rows.append(f"| `CAPTION_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def to_environment(settings: Settings) -> None:
    """Write `settings` into this process's environment, from where worker processes read them."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if value is None:
            os.environ.pop(f"CAPTION_{name.upper()}", None)
            continue
        if isinstance(value, tuple):
            value = ",".join(v.get_secret_value() if isinstance(v, SecretStr) else v for v in value)
        os.environ[f"CAPTION_{name.upper()}"] = str(value)


if __name__ == "__main__":
    print(markdown())

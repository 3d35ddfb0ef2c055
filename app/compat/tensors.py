"""The Open Inference Protocol's tensors: in JSON, or by the binary extension behind it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import Field
from pydantic_core import from_json
from starlette.responses import Response

from app.compat import protocol
from app.errors import BadJson, BadParameter, NotSupported, ServiceError
from app.incoming import Incoming
from app.json_body import SMALL, JsonBody
from app.schemas import CaptionResponse

LENGTH = "Inference-Header-Content-Length"  # bytes of JSON before the tensors of the binary extension
INPUT, OUTPUTS = "image", {"caption": "BYTES", "confidence": "FP32"}


class Tensor(protocol.Body):
    """Pictures: `data` as base64, or `binary_data_size` bytes behind the JSON, each picture after its length."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Output(protocol.Body):
    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Asked(protocol.Body):
    """A tensor `image`; `parameters` may hold those of `POST /captions`."""

    id: str | None = None
    inputs: list[Tensor]
    outputs: list[Output] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


def _tensor(asked: Asked) -> Tensor:
    if len(asked.inputs) != 1 or asked.inputs[0].name != INPUT:
        raise BadParameter(f"inputs: one tensor is needed, named {INPUT!r}")
    tensor = asked.inputs[0]
    if tensor.datatype != "BYTES":
        raise NotSupported(f"inputs: {INPUT!r} must be BYTES, pictures as files, and not {tensor.datatype[:20]} pixels")
    return tensor


def _fits(tensor: Tensor, count: int) -> None:
    size = math.prod(tensor.shape)
    if size != count or not count:
        raise BadParameter(f"inputs: the shape of {INPUT!r} is for {size} pictures, and {count} came")


async def from_json_body(received: Incoming) -> tuple[Asked, list[bytes | ServiceError]]:
    body = await received.json(received.settings.max_batch_bytes)
    asked = protocol.read(Asked, body)
    tensor = _tensor(asked)
    texts = [one for one in tensor.data or () if isinstance(one, str)]
    if len(texts) != len(tensor.data or ()):
        raise BadParameter(f"inputs: the data of {INPUT!r} must be a list of pictures as base64")
    _fits(tensor, len(texts))
    return asked, await received.pictures(body, texts)


async def from_binary(received: Incoming, length: str) -> tuple[Asked, list[bytes | ServiceError]]:
    data = await received.raw(received.settings.max_batch_bytes + SMALL)
    if not length.isdigit() or int(length) > min(len(data), SMALL):
        raise BadParameter(f"{LENGTH}: must be the bytes of JSON before the tensors, at most {SMALL}")
    try:
        value = from_json(data[: int(length)], allow_inf_nan=False)
    except ValueError as error:
        raise BadJson(f"the JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadJson("the JSON must be an object")
    asked = protocol.read(Asked, JsonBody(value))
    tensor = _tensor(asked)
    if tensor.parameters.get("binary_data_size") != len(data) - int(length):
        raise BadParameter("inputs: binary_data_size is not the number of bytes behind the JSON")
    files: list[bytes | ServiceError] = list(islice(_split(data, int(length)), received.settings.max_images + 1))
    if len(files) > received.settings.max_images:
        raise BadParameter(f"at most {received.settings.max_images} pictures in one request")
    _fits(tensor, len(files))
    return asked, files


def _split(data: bytes, at: int) -> Iterator[bytes]:
    """The elements of a BYTES tensor: each after its length, four bytes, the low ones first."""
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            raise BadParameter(f"inputs: {INPUT!r} is cut off")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def response(head: dict[str, Any], names: list[str], binary: set[str], answers: list[CaptionResponse]) -> Response:
    values: dict[str, list[Any]] = {
        "caption": [a.caption for a in answers],
        "confidence": [a.confidence for a in answers],
    }
    outputs, tensors = [], b""
    for name in names:
        output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": [len(answers)]}
        if name in binary:
            raw = _packed(values[name])
            output["parameters"] = {"binary_data_size": len(raw)}
            tensors += raw
        else:
            output["data"] = values[name]
        outputs.append(output)
    text = json.dumps({**head, "outputs": outputs}).encode()
    if not binary:
        return Response(text, media_type="application/json")
    return Response(text + tensors, headers={LENGTH: str(len(text))}, media_type="application/octet-stream")


def _packed(values: list[Any]) -> bytes:
    """A tensor as the binary extension has it."""
    if all(isinstance(value, float) for value in values):
        return struct.pack(f"<{len(values)}f", *values)
    texts = [str(value).encode() for value in values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)

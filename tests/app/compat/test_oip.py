"""The Open Inference Protocol, with `tritonclient`."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

from tests.app.compat.conftest import CAPTION, GREEN, KEY
from tests.pictures import plain


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


def headers(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}  # anew each time: the client writes into it


def infer(client: Any, files: list[bytes], binary: bool, model: str = "fake", **given: Any) -> Any:
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    data = files if binary else [base64.b64encode(file) for file in files]
    tensor.set_data_from_numpy(np.array(data, np.object_), binary_data=binary)
    return client.infer(model, [tensor], headers=headers(), **given)


def test_the_server_and_its_model_are_described(client: Any) -> None:
    assert client.is_server_live(headers())
    assert client.is_server_ready(headers())
    assert client.is_model_ready("fake", headers=headers())
    assert client.is_model_ready("fake", "1", headers=headers())
    assert not client.is_model_ready("other", headers=headers())
    assert client.get_server_metadata(headers())["extensions"] == ["binary_tensor_data"]
    about = client.get_model_metadata("fake", headers=headers())
    assert about["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("outputs", [None, [("caption", True), ("confidence", False)], [("caption", False)]])
def test_pictures_are_captioned(client: Any, binary_in: bool, outputs: Any) -> None:
    wanted = outputs and [triton.InferRequestedOutput(name, binary_data=binary) for name, binary in outputs]
    answer = infer(client, [GREEN, plain((200, 10, 10))], binary_in, outputs=wanted, request_id="7")
    said = [text.decode() if isinstance(text, bytes) else text for text in answer.as_numpy("caption")]
    assert said == [CAPTION, "Light red red beam3 0."]
    if outputs is None or len(outputs) == 2:
        assert answer.as_numpy("confidence") == pytest.approx([0.9, 0.9])
    about = answer.get_response()
    assert (about["id"], about["model_name"], about["model_version"]) == ("7", "fake", "1")


def test_parameters_are_those_of_the_service(client: Any) -> None:
    answer = infer(client, [GREEN], True, parameters={"beam_size": 1})
    assert answer.as_numpy("caption")[0] == CAPTION.replace("beam3", "beam1").encode()


@pytest.mark.parametrize(
    ("files", "given", "status", "words"),
    [
        ([GREEN], {"model": "other"}, 404, "'fake' is served"),
        ([GREEN], {"model_version": "9"}, 404, "fake:9"),
        ([GREEN, b"text"], {}, 415, "picture 1: not a picture"),
        ([bytes(21_000_000)], {}, 413, "20000000"),
        ([GREEN] * 17, {}, 400, "at most 16"),
        ([GREEN], {"parameters": {"beam_size": 99}}, 400, "beam_size"),
        ([GREEN], {"outputs": [triton.InferRequestedOutput("logits")]}, 400, "logits"),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_errors_are_the_clients_own(
    client: Any, files: list[bytes], given: dict[str, Any], status: int, words: str, binary: bool
) -> None:
    with pytest.raises(InferenceServerException) as error:
        infer(client, files, binary, **given)
    assert error.value.status() == str(status)
    assert words in error.value.message()


def test_pixels_and_bad_base64_and_a_wrong_key_are_refused(client: Any) -> None:
    pixels = triton.InferInput("image", [1, 2, 2, 3], "UINT8")
    pixels.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.uint8))
    text = triton.InferInput("image", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"!!!!"], np.object_), binary_data=False)
    for tensor, key, words in ((pixels, KEY, "must be BYTES"), (text, KEY, "base64"), (text, "wrong", "API key")):
        with pytest.raises(InferenceServerException, match=words):
            client.infer("fake", [tensor], headers=headers(key))


def test_what_else_triton_has_is_said_not_to_be_here(client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"^.404. GET /v2/models/fake/config is not among") as raised:
        client.get_model_config("fake", headers=headers())
    assert raised.value.status() == "404"

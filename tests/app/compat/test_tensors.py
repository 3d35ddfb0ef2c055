"""Tensors of the Open Inference Protocol come back as they were packed."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.compat import tensors
from app.errors import BadParameter
from app.schemas import CaptionResponse

PICTURES = st.lists(st.binary(max_size=20), max_size=5)


def packed(pictures: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures)


@settings(deadline=None)
@given(PICTURES, st.binary(max_size=9))
def test_pictures_are_told_apart_by_their_lengths(pictures: list[bytes], head: bytes) -> None:
    assert list(tensors._split(head + packed(pictures), len(head))) == pictures


@settings(deadline=None)
@given(PICTURES.filter(bool), st.data())
def test_what_is_cut_off_is_never_taken_for_whole(pictures: list[bytes], data: st.DataObject) -> None:
    whole = packed(pictures)
    cut = data.draw(st.integers(0, len(whole) - 1))
    ends = {len(packed(pictures[:n])): pictures[:n] for n in range(len(pictures))}
    if cut in ends:
        assert list(tensors._split(whole[:cut], 0)) == ends[cut]
    else:
        with pytest.raises(BadParameter, match="cut off"):
            list(tensors._split(whole[:cut], 0))


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=9), st.floats(0, 1, width=32)), min_size=1, max_size=4))
@pytest.mark.parametrize("binary", [set(), {"caption"}, {"confidence"}, {"caption", "confidence"}])
def test_answers_say_the_same_in_json_and_in_bytes(binary: set[str], said: list[tuple[str, float]]) -> None:
    answers = [CaptionResponse.model_construct(caption=text, confidence=sure) for text, sure in said]
    made = tensors.response({"id": "7"}, ["caption", "confidence"], binary, answers)
    length = int(made.headers.get(tensors.LENGTH, len(made.body)))
    head, rest = json.loads(bytes(made.body)[:length]), bytes(made.body)[length:]
    assert head["id"] == "7"
    for output in head["outputs"]:
        assert output["shape"] == [len(said)]
        size = output.get("parameters", {}).get("binary_data_size", 0)
        mine, rest = rest[:size], rest[size:]
        assert bool(size) == (output["name"] in binary)
        if output["name"] == "caption":
            found = [text.decode() for text in tensors._split(mine, 0)] if size else output["data"]
            assert found == [caption for caption, _ in said]
        else:
            found = list(struct.unpack(f"<{len(said)}f", mine)) if size else output["data"]
            assert found == [confidence for _, confidence in said]
    assert rest == b""

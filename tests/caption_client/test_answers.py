from __future__ import annotations

from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest
from pydantic import BaseModel

from app import schemas
from caption_client import answers, files
from model import images

PAIRS = [
    (answers.Alternative, schemas.AlternativeOut), (answers.Attention, schemas.AttentionOut),
    (answers.Token, schemas.TokenOut), (answers.Caption, schemas.CaptionOut), (answers.Model, schemas.ModelRef),
    (answers.Image, schemas.ImageOut), (answers.Timing, schemas.Timing), (answers.Answer, schemas.CaptionResponse),
    (answers.Tag, schemas.TagOut), (answers.Problem, schemas.Problem),
    (answers.Result, schemas.Result), (answers.Results, schemas.CaptionsResponse),
]  # fmt: skip


def test_the_client_looks_for_what_the_service_reads() -> None:
    assert set(files.SUFFIXES) == set(images.SUFFIXES)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda kind: kind.__name__)
def test_the_client_knows_every_field_that_the_service_sends(ours: type, theirs: type[BaseModel]) -> None:
    assert [field.name for field in fields(ours)] == list(theirs.model_fields)
    required = [field.name for field in fields(ours) if field.default is MISSING]
    assert required == [name for name, field in theirs.model_fields.items() if field.is_required()]
    assert get_type_hints(ours).keys() == theirs.model_fields.keys()


@pytest.mark.parametrize(
    "value", [None, [], {"name": "fake"}, {"name": 3, "version": "1"}, {"name": "fake", "version": None}], ids=repr
)
def test_what_is_no_answer_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"in it|where .* is expected"):
        answers.read(answers.Model, value)


def test_what_a_newer_service_adds_is_passed_over() -> None:
    assert answers.read(answers.Model, {"name": "a", "version": "1", "more": 2}) == answers.Model("a", "1")
    token = answers.read(answers.Token, {"text": "dog", "probability": 1, "gates": [{"input": 1}]})
    assert token == answers.Token("dog", 1.0, gates=[{"input": 1.0}])
    assert answers.plain(token) == {"text": "dog", "probability": 1.0, "gates": [{"input": 1.0}]}

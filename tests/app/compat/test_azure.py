"""Azure Image Analysis 4, with `azure-ai-vision-imageanalysis`."""

from __future__ import annotations

from typing import Any

import pytest
from azure.ai.vision.imageanalysis import ImageAnalysisClient
from azure.ai.vision.imageanalysis.models import VisualFeatures
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

from tests.app.compat.conftest import CAPTION, GREEN, KEY

CAPTIONS = [VisualFeatures.CAPTION]


def client(url: str, key: str = KEY) -> ImageAnalysisClient:
    return ImageAnalysisClient(url, AzureKeyCredential(key), retry_total=0)


def test_a_picture_is_captioned(url: str) -> None:
    with client(url) as azure:
        found = azure.analyze(GREEN, CAPTIONS, language="en", gender_neutral_caption=False, model_version="latest")
    assert found.caption is not None
    assert (found.caption.text, found.caption.confidence) == (CAPTION, pytest.approx(0.9))
    assert (found.metadata.width, found.metadata.height, found.model_version) == (24, 16, "1")
    assert found.tags is None


@pytest.mark.parametrize(
    ("data", "given", "code", "inner"),
    [
        (GREEN, {"visual_features": [VisualFeatures.READ]}, "InvalidRequest", "NotSupportedFeature"),
        (GREEN, {"visual_features": [VisualFeatures.TAGS]}, "InvalidRequest", "NotSupportedFeature"),  # has none
        (GREEN, {"language": "fr"}, "InvalidRequest", "NotSupportedFeature"),
        (GREEN, {"model_version": "2023-10-01"}, "NotFound", "NotFound"),
        (b"text", {}, "InvalidImageFormat", "InvalidImageFormat"),
        (bytes(21_000_000), {}, "InvalidImageSize", "InvalidImageSize"),
    ],
)
def test_errors_are_the_clients_own(url: str, data: bytes, given: dict[str, Any], code: str, inner: str) -> None:
    with client(url) as azure, pytest.raises(HttpResponseError) as error:
        azure.analyze(data, **{"visual_features": CAPTIONS, **given})
    assert error.value.error is not None
    assert (error.value.error.code, error.value.error.innererror["code"]) == (code, inner)  # type: ignore[attr-defined]
    assert error.value.status_code == (404 if code == "NotFound" else 400)


def test_a_url_and_a_wrong_key_are_refused(url: str) -> None:
    with client(url) as azure, pytest.raises(HttpResponseError, match="InvalidImageUrl"):
        azure.analyze_from_url("https://a.example/b.png", CAPTIONS)
    with client(url, "wrong") as azure, pytest.raises(ClientAuthenticationError):
        azure.analyze(GREEN, CAPTIONS)

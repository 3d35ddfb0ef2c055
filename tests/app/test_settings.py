from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import DEFAULT_MODEL, Settings, markdown, to_environment

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_documentation_is_current() -> None:
    assert markdown() in DOCS.read_text()


def test_every_setting_is_explained() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_PORT", "9000")
    monkeypatch.setenv("CAPTION_API_KEYS", "a, b,,")
    monkeypatch.setenv("CAPTION_CORS_ORIGINS", "https://x.example")
    settings = Settings()
    assert settings.port == 9000
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "b"]
    assert settings.cors_origins == ("https://x.example",)
    assert settings.model == DEFAULT_MODEL


def test_workers_read_the_same_settings_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    settings = Settings(port=9, api_keys="a,b", max_upload_mb=3.5, model=Path("/x"))  # type: ignore[arg-type]
    to_environment(settings)
    assert Settings() == settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"port": "x"},
        {"workers": 0},
        {"device": "tpu"},
        {"deadline": 0},
        {"max_images": 65},
        {"max_upload_mb": 300},
        {"api_keys": "ключ"},
        {"log_level": "loud"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import (
    COMPOSE_ONLY,
    DEFAULT_MODEL,
    Settings,
    SettingsError,
    from_environment,
    markdown,
    to_environment,
    unknown_variables,
)

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


def test_keys_come_from_a_file_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("# of the page\nfirst\n\n second \r\n")
    settings = Settings(api_keys="zeroth", api_keys_file=file)  # type: ignore[arg-type]
    assert [key.get_secret_value() for key in settings.keys] == ["zeroth", "first", "second"]
    monkeypatch.setattr(os, "environ", dict(os.environ))
    to_environment(settings)
    assert not [value for value in os.environ.values() if "second" in value]  # a child's environment can be read
    assert Settings().keys == settings.keys
    file.write_text("# none yet\n")
    with pytest.raises(ValidationError, match="there is no key in"):  # or the service would be open
        Settings(api_keys_file=file)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "HOST", "API_KEYS_FILE", "ROOT_PATH", "ALLOWED_HOSTS"):  # as Compose passes what is not set
        monkeypatch.setenv(f"CAPTION_{name}", "")
    assert Settings() == Settings(port=8000)


def test_unknown_variables_are_named_with_what_may_be_meant() -> None:
    known = {f"CAPTION_{name.upper()}": "1" for name in Settings.model_fields}
    assert unknown_variables({**known, **dict.fromkeys(COMPOSE_ONLY, "1"), "caption_port": "1", "HOME": "/"}) == []
    assert unknown_variables({"CAPTION_API_KEY": "x", "CAPTION_ZZZZZZ": "x"}) == [
        "CAPTION_API_KEY is no setting of the service; CAPTION_API_KEYS is",
        "CAPTION_ZZZZZZ is no setting of the service",
    ]


def test_what_compose_reads_itself_is_known() -> None:
    named = set(re.findall(r"CAPTION_[A-Z_]+", (DOCS.parent.parent / "docker-compose.yml").read_text()))
    assert unknown_variables(dict.fromkeys(named, "")) == []


def test_a_fault_names_the_variable_and_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_API_KEYS", "ключ")
    with pytest.raises(SettingsError) as fault:
        from_environment(port=-1)
    assert "ключ" not in str(fault.value)
    assert [line.partition(": ")[0] for line in str(fault.value).splitlines()] == ["CAPTION_PORT", "CAPTION_API_KEYS"]


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
        {"api_keys": "two words"},
        {"api_keys_file": "/nowhere"},
        {"host": ""},
        {"allowed_hosts": "https://a.example"},
        {"allowed_hosts": "a.example:80"},
        {"trusted_proxies": "a.example"},
        {"root_path": "captions"},
        {"root_path": "/../x y"},
        {"log_level": "loud"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_a_fast_resizer_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.find_spec", lambda name: None)
    assert from_environment().resizer == "exact"
    with pytest.raises(SettingsError, match=r"(?i)resizer.*fast needs the package cykooz\.resizer"):
        from_environment(resizer="fast")

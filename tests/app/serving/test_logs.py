from __future__ import annotations

import json
import logging
import logging.config

import pytest

from app.serving.logs import JsonFormatter, log_config


def test_a_record_is_one_line_of_json() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"name": "app.x", "levelname": "ERROR", "msg": "a\n%s", "args": ("b",), "fields": {"status": 200}}
        )
        record.exc_info = (ValueError, error, error.__traceback__)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"], line["status"]) == ("error", "app.x", "a\nb", 200)
    assert "ValueError: two" in line["exception"]
    assert line["time"].endswith("+00:00")


@pytest.mark.parametrize(("level", "expected"), [("info", logging.INFO), ("error", logging.ERROR)])
def test_the_level_is_the_one_asked_for(level: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = log_config(level)
    config["root"]["handlers"] = []  # leave pytest's own in place
    logging.config.dictConfig(config)
    try:
        assert logging.getLogger("app.access").getEffectiveLevel() == expected
        assert logging.getLogger("uvicorn.error").getEffectiveLevel() == logging.WARNING
    finally:
        for name in ("app", "uvicorn"):
            logging.getLogger(name).setLevel(logging.NOTSET)

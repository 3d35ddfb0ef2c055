"""`caption mcp`, with the protocol's own client over standard input and output, around the embedded model."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from app.settings import DEFAULT_MODEL
from tests.pictures import plain

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "app" / "static" / "sample.jpg"
COMMAND = [sys.executable, "-m", "caption_client", "mcp", "--device", "cpu"]


@asynccontextmanager
async def assistant(**settings: str) -> AsyncIterator[Client]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    async with Client(StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=env, cwd=ROOT)) as client:
        yield client


@pytest.mark.skipif(not DEFAULT_MODEL.is_dir(), reason="no embedded model")
def test_an_assistant_sees_pictures_and_folders(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a.jpg").write_bytes(SAMPLE.read_bytes())
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "below" / "c.png").write_bytes(plain((9, 200, 90)))
    (tmp_path / "text.txt").write_text("x")
    url = "data:image/jpeg;base64," + base64.b64encode(SAMPLE.read_bytes()).decode()

    async def ask() -> list[Any]:
        async with assistant() as client:
            tools = await client.list_tools()
            return [
                {tool.name for tool in tools.tools},
                *[
                    await client.call_tool(name, arguments)
                    for name, arguments in (
                        ("caption_picture", {"picture": str(tmp_path / "a.jpg")}),
                        ("caption_picture", {"picture": url, "num_captions": 2}),
                        ("caption_folder", {"folder": str(tmp_path)}),
                        ("caption_folder", {"folder": str(tmp_path), "most": 1}),
                        ("caption_picture", {"picture": str(tmp_path / "b.png")}),
                        ("caption_picture", {"picture": "/dev/zero"}),
                        ("caption_picture", {"picture": "https://a.example/b.png"}),
                        ("caption_picture", {"picture": "data:image/png;base64,!!"}),
                        ("caption_folder", {"folder": str(tmp_path / "a.jpg")}),
                    )
                ],
            ]

    names, picture, data, folder, first, *wrong = asyncio.run(ask())
    assert names == {"caption_picture", "caption_folder"}
    [caption] = picture.structured_content["captions"]
    assert caption.endswith(".")
    assert 0 < picture.structured_content["confidence"] < 1
    assert data.structured_content["captions"][0] == caption
    assert len(set(data.structured_content["captions"])) == 2
    seen = folder.structured_content["pictures"]
    assert [Path(one["name"]).name for one in seen] == ["a.jpg", "b.png", "c.png"]
    assert [one["captions"][:1] for one in seen[:2]] == [[caption], []]
    assert "not a picture" in seen[1]["error"]
    assert (len(first.structured_content["pictures"]), first.structured_content["left_out"]) == (1, 2)
    assert all(answer.is_error for answer in wrong)
    for answer, words in zip(wrong, ("not a picture", "no such file", "CAPTION_FETCH_HOSTS", "base64", "no folder"),
                             strict=True):  # fmt: skip
        assert words in answer.content[0].text


def test_a_bad_setting_is_one_line() -> None:
    env = {**os.environ, "CAPTION_PRT": "1"}
    done = subprocess.run(COMMAND, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: CAPTION_PRT is no setting of the service; CAPTION_PORT is\n"

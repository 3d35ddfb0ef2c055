"""`uv pip install ...` with what pip is configured with, of which uv reads nothing: python scripts/uv_pip.py ...

uv itself must be installed beside this Python. Where it lacks a setting it fails, and the caller asks pip.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

SETTINGS = {  # pip's -> uv's, and what stands between several values of the latter
    "cert": ("SSL_CERT_FILE", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "no-index": ("UV_NO_INDEX", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}


def settings(listed: str) -> dict[str, str]:
    """uv's environment for what `pip config list` printed: lines SECTION.NAME='VALUE'."""
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # later ones come first with pip
        for line in listed.splitlines():
            key, equals, value = line.partition("=")
            where, _, name = key.rpartition(".")
            if equals and where == section and name in SETTINGS:
                variable, between = SETTINGS[name]
                found[variable] = between.join(str(ast.literal_eval(value)).split())
    return found


def main() -> None:
    """Become uv."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    # As pip chooses: the best version of all indexes, not the first index that has any.
    environment = {"UV_INDEX_STRATEGY": "unsafe-best-match", **settings(listed), **os.environ}
    uv = str(Path(sys.executable).with_name("uv"))
    os.execve(uv, [uv, "pip", "install", "--python", sys.executable, *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()

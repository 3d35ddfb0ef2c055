"""`python -m app`: serve captions. Every setting has an environment variable; the most used have a flag."""

from __future__ import annotations

import argparse
import os
import sys

from app import __version__
from app.main import create_app
from app.serving.server import FACTORY, serve
from app.serving.service import open_engine
from app.settings import SettingsError, from_environment
from model.errors import CaptionModelError


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m app", description="Serve image captions over HTTP.")
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for every interface")
    parser.add_argument("--port", type=int, help="port to listen on; 0 picks a free one")
    parser.add_argument("--model", help="checkpoint folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--workers", type=int, help="server processes")
    parser.add_argument("--version", action="version", version=_version())
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        settings = from_environment(**given)
    except SettingsError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    try:
        if settings.workers > 1:
            return serve(settings, FACTORY)
        # Loaded here, before the server runs, a bad checkpoint is one line and not a traceback.
        return serve(settings, lambda: create_app(settings, open_engine(settings)))
    except CaptionModelError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        # A name that cannot be looked up has a number below 0, which is none of the system's.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        print(f"error: cannot listen on {settings.host} port {settings.port}: {reason}", file=sys.stderr)
    return 1


def _version() -> str:
    """The service's version, and the commit that it was built from where that is known."""
    commit = os.environ.get("CAPTION_COMMIT", "")
    return f"caption-service {__version__}" + (f" ({commit})" if commit else "")


if __name__ == "__main__":
    sys.exit(main())

"""GET / (the page), its files under /static, and GET /docs without anything from the internet."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.types import Scope

STATIC = Path(__file__).parent.parent / "static"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"  # a package's copy of Swagger UI


class Files(StaticFiles):
    """A folder whose files browsers keep, and ask each time whether they have changed.

    By their content: a new version of the service may come with the old one's file times and sizes.
    """

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file, or 304 for who has it."""
        headers = {"ETag": _etag(Path(full_path), stat_result.st_mtime_ns), "Cache-Control": "no-cache"}
        response = FileResponse(full_path, status_code, headers, stat_result=stat_result)
        del response.headers["last-modified"]
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return Response(status_code=304, headers=headers)
        return response


@lru_cache(256)
def _etag(path: Path, changed: int) -> str:
    return f'"{hashlib.sha256(path.read_bytes()).hexdigest()[:32]}"'


def install(app: FastAPI) -> None:
    router = APIRouter(include_in_schema=False)
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url="docs/static/swagger-ui-bundle.js",
        swagger_css_url="docs/static/swagger-ui.css",
        swagger_favicon_url="docs/static/favicon.png",
    ).body
    policy = {"Content-Security-Policy": _docs_policy(bytes(html).decode()), "Cache-Control": "no-cache"}
    files = Files(directory=STATIC, check_dir=False)

    @router.get("/docs")
    async def docs() -> Response:
        """Swagger UI over /openapi.json."""
        return HTMLResponse(html, headers=policy)

    @router.get("/")
    async def page(request: Request) -> Response:
        """The page, or the documentation where no page is installed."""
        index = STATIC / "index.html"
        return files.file_response(index, index.stat(), request.scope) if index.is_file() else RedirectResponse("docs")

    app.include_router(router)
    app.mount("/docs/static", Files(directory=SWAGGER))
    app.mount("/static", files)


def _docs_policy(html: str) -> str:
    """A content security policy for exactly the inline scripts of `html`; Swagger UI styles inline."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

"""GET / (the page), its files under /static, and GET /docs without anything from the internet."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).parent.parent / "static"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"  # a package's copy of Swagger UI


def install(app: FastAPI) -> None:
    """Add the page and the documentation to `app`."""
    router = APIRouter(include_in_schema=False)
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url="docs/static/swagger-ui-bundle.js",
        swagger_css_url="docs/static/swagger-ui.css",
        swagger_favicon_url="docs/static/favicon.png",
    ).body
    policy = {"Content-Security-Policy": _docs_policy(bytes(html).decode())}

    @router.get("/docs")
    async def docs() -> Response:
        """Swagger UI over /openapi.json."""
        return HTMLResponse(html, headers=policy)

    @router.get("/")
    async def page() -> Response:
        """The page, or the documentation where no page is installed."""
        index = STATIC / "index.html"
        return FileResponse(index) if index.is_file() else RedirectResponse("docs")

    app.include_router(router)
    app.mount("/docs/static", StaticFiles(directory=SWAGGER))
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False))


def _docs_policy(html: str) -> str:
    """A content security policy for exactly the inline scripts of `html`; Swagger UI styles inline."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

"""Optional API keys."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.errors import Unauthorized

KeyHeader = Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
# Where the clients of other services' protocols put it (app.compat).
AzureHeader = Annotated[str | None, Depends(APIKeyHeader(name="Ocp-Apim-Subscription-Key", auto_error=False))]
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


def require_key(keys: tuple[SecretStr, ...]) -> Callable[..., Awaitable[None]]:
    """A dependency that raises `Unauthorized` unless the request carries one of `keys`.

    In `X-API-Key: <key>`, `Ocp-Apim-Subscription-Key: <key>` or `Authorization: Bearer <key>`. Every key is
    compared with all that are given, each in constant time.
    """
    known = [key.get_secret_value().encode() for key in keys]

    # async: FastAPI would send a plain one to a thread
    async def check(key: KeyHeader, azure: AzureHeader, bearer: Bearer) -> None:
        given = [text.encode() for text in (key, azure, bearer.credentials if bearer else None) if text]
        matches = [hmac.compare_digest(text, k) for text in given for k in known]
        if not any(matches):
            raise Unauthorized("an API key is needed: X-API-Key, or Authorization: Bearer")

    return check

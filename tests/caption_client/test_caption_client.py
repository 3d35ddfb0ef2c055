from __future__ import annotations

import pytest

import caption_client


def test_everything_public_is_there() -> None:
    for name in caption_client.__all__:
        assert getattr(caption_client, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        caption_client.nothing  # noqa: B018

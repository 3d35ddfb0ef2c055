"""Forms as they stream in."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.pictures import plain

GREEN = plain((16, 200, 40))


def test_a_form_without_the_file(client: TestClient) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    text = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--b--\r\n'
    assert "filename" in client.post("/caption", content=text, headers=boundary).json()["detail"]
    empty = client.post("/caption", content=b"--b--\r\n", headers=boundary)
    assert (empty.status_code, "missing" in empty.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=b", b"x", 400),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--', 400),
        ("multipart/form-data; boundary=" + "b" * 1000, b"x", 400),
        ("application/x-www-form-urlencoded", b"image=x", 415),
        ("application/json", b"{}", 422),
        ("text/plain", b"hello", 415),
        ("", b"hello", 415),
        ("multipart/related; boundary=b", GREEN, 415),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx', 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_upload(client: TestClient, content_type: str, content: bytes, status: int) -> None:
    assert client.post("/caption", content=content, headers={"content-type": content_type}).status_code == status


def test_hundreds_of_parts_are_refused(client: TestClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'
    answer = client.post(
        "/caption", content=part * 500 + b"--b--\r\n", headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert (answer.status_code, answer.json()["detail"]) == (422, "more than 14 parts in the form")

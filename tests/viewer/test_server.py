"""Who may ask the server, what its answers forbid, and what it answers where nothing has changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from drift.viewer.library import Library
from drift.viewer.server import make_app

TOKEN = "a-long-token"


@pytest.fixture
def client(run: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Library(run), TOKEN), base_url="http://127.0.0.1:8000") as client:
        yield client


def test_only_who_has_the_address_is_answered(client: TestClient) -> None:
    for path in ("", "list", "viewer.css", "viewer.js", "conversation?id=none", "report"):
        allowed = client.get(f"/{TOKEN}/{path}")
        assert allowed.status_code == (404 if path.startswith("conversation") else 200)
        policy = allowed.headers["content-security-policy"]
        assert "default-src 'none'" in policy and ("unsafe" not in policy or policy.startswith("sandbox;"))
        assert allowed.headers["referrer-policy"] == "no-referrer" and allowed.headers["cache-control"] == "no-store"
        for token in ("", "a-long-tokem", TOKEN.upper(), TOKEN + "x", "é"):
            assert client.get(f"/{token}/{path}").status_code == 404
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
            assert client.get(f"/{TOKEN}/{path}", headers={"Host": host}).status_code == 421
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert client.request(method, f"/{TOKEN}/{path}").status_code == 405
    for host in ("localhost:1234", "[::1]:8000", "127.0.0.1"):
        assert client.get(f"/{TOKEN}/list", headers={"Host": host}).status_code == 200


def test_a_page_is_sent_again_only_when_it_changes(client: TestClient) -> None:
    first = client.get(f"/{TOKEN}/list")
    while "data-unfinished" in first.text:
        first = client.get(f"/{TOKEN}/list")
    again = client.get(f"/{TOKEN}/list", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(f"/{TOKEN}/list?success=no", headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200 and other.text != first.text


def test_what_cannot_be_is_said_on_a_page(client: TestClient) -> None:
    for path, words in (("list?sort=hue", "sort"), ("tree?prompt=none", "group_id"), ("compare", "evaluated")):
        answer = client.get(f"/{TOKEN}/{path}")
        assert answer.status_code == 404 and words in answer.text and "<nav>" in answer.text

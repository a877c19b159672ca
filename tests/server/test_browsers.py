"""Web pages of other origins: what they may ask, and what they may not whatever is allowed."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from server.app import create_app
from server.settings import Settings
from server.state import Server
from tests.server.test_bad_input import CHAT, HELLO, error_of

PAGE = "https://chat.example.com"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def browsing(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
def open_app(fake_server: Server) -> FastAPI:
    keys = {"allowed_origins": (PAGE,), "api_keys": ("k",)}
    fake_server.settings = fake_server.settings.model_copy(update=keys)
    return create_app(fake_server)


async def test_by_default_no_other_origin_is_answered(web: httpx.AsyncClient) -> None:
    answer = await web.options(CHAT, headers=ASKS)
    assert answer.status_code == 405
    answer = await web.post(CHAT, json=HELLO, headers={"origin": PAGE})
    assert "access-control-allow-origin" not in answer.headers


async def test_an_allowed_page_may_ask_and_read_the_answer(open_app: FastAPI) -> None:
    async with browsing(open_app) as web:
        answer = await web.options(CHAT, headers=ASKS)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
        for headers, status in (({"authorization": "Bearer k"}, 200), ({}, 401)):
            answer = await web.post(CHAT, json=HELLO, headers={"origin": PAGE, **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_another_page_may_not(open_app: FastAPI) -> None:
    async with browsing(open_app) as web:
        answer = await web.options(CHAT, headers={**ASKS, "origin": "https://evil.example"})
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", [PAGE, "null", "http://192.168.0.2", "http://localhost.evil.com"]
)
async def test_no_page_from_elsewhere_is_this_machine(web: httpx.AsyncClient, origin: str) -> None:
    """Its own browser sends the request, from loopback, with Host localhost."""
    for path in ("/admin/stats", "/v1/files"):
        error = error_of(await web.get(path, headers={"origin": origin}), 403)
        assert error["code"] == "loopback_only"


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:8000"]
)
async def test_a_page_of_this_machine_is(web: httpx.AsyncClient, origin: str) -> None:
    assert (await web.get("/admin/stats", headers={"origin": origin})).status_code == 200


@pytest.mark.parametrize("text", ["chat.example.com", "https://a.example/path", "https://"])
def test_what_is_no_origin_stops_the_start(text: str) -> None:
    with pytest.raises(ValidationError, match="write origins as"):
        Settings(allowed_origins=text)


def test_origins_are_separated_by_commas() -> None:
    given = Settings(allowed_origins=f"{PAGE}, http://localhost:3000")
    assert given.allowed_origins == (PAGE, "http://localhost:3000")

"""Two kinds of keys and the loopback rule, over every route that there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from server.app import ROUTES, create_app
from server.auth import require_admin, require_infer
from server.middleware import guard_of
from server.settings import Settings
from server.state import Server

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny-base", "messages": [{"role": "user", "content": "hi"}]}
OPEN = {
    "/health/live",
    "/health/ready",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
    "/openapi.json",
}


def web(
    app: FastAPI, key: str | None = None, peer: str = "127.0.0.1", **headers: str
) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(peer, 1234))
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


def with_keys(server: Server, api_keys: str = "", admin_keys: str = "") -> FastAPI:
    given: dict[str, Any] = {"api_keys": api_keys, "admin_keys": admin_keys}
    server.settings = Settings(home=server.settings.home, **given)
    return create_app(server)


async def infer(app: FastAPI, key: str | None, peer: str = "10.0.0.1") -> int:
    async with web(app, key, peer) as client:
        return (await client.post(CHAT, json=HELLO)).status_code


async def admin(app: FastAPI, key: str | None, peer: str = "10.0.0.1", **headers: str) -> int:
    async with web(app, key, peer, **headers) as client:
        return (await client.get("/admin/stats")).status_code


async def test_without_keys_inference_is_open_and_admin_is_local(fake_server: Server) -> None:
    app = with_keys(fake_server)
    assert await infer(app, None) == 200
    assert await infer(app, "sk-whatever") == 200
    assert await admin(app, None) == 403
    assert await admin(app, None, "127.0.0.1") == 200
    assert await admin(app, None, "::1") == 200
    assert await admin(app, None, "::ffff:127.0.0.1") == 200


async def test_a_proxy_or_a_foreign_host_name_is_not_local(fake_server: Server) -> None:
    app = with_keys(fake_server)
    for headers in ({"x-forwarded-for": "127.0.0.1"}, {"forwarded": "for=::1"}):
        assert await admin(app, None, "127.0.0.1", **headers) == 403
    for host, status in (
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("localhost", 200),
    ):
        assert await admin(app, None, "127.0.0.1", host=host) == status


async def test_with_both_kinds_of_keys(fake_server: Server) -> None:
    app = with_keys(fake_server, "user-1, user-2", "root-1")
    for key, infer_status, admin_status in (
        (None, 401, 401),
        ("wrong", 401, 401),
        ("user-1", 200, 403),
        ("user-2", 200, 403),
        ("user-1, user-2", 401, 401),
        ("root-1", 200, 200),
    ):
        assert await infer(app, key) == infer_status
        assert await admin(app, key) == admin_status
        assert await admin(app, key, "127.0.0.1") == admin_status


async def test_inference_keys_alone_close_inference_and_leave_admin_local(
    fake_server: Server,
) -> None:
    app = with_keys(fake_server, "user-1")
    assert await infer(app, None, "127.0.0.1") == 401
    assert await infer(app, "user-1") == 200
    assert await admin(app, "user-1") == 403
    assert await admin(app, "user-1", "127.0.0.1") == 200


async def test_admin_keys_alone_leave_inference_open(fake_server: Server) -> None:
    app = with_keys(fake_server, admin_keys="root-1")
    assert await infer(app, None) == 200
    assert await admin(app, None, "127.0.0.1") == 401
    assert await admin(app, "root-1") == 200


async def test_a_refusal_is_openais(fake_server: Server) -> None:
    app = with_keys(fake_server, "user-1", "root-1")
    async with web(app, "wrong") as client:
        response = await client.post(CHAT, content=b"not even json")
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "wrong" not in response.text
    assert response.headers["www-authenticate"] == "Bearer"


def flat_routes(router: APIRouter) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            yield from flat_routes(route.original_router)  # type: ignore[attr-defined]


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return [(method.upper(), path) for path, verbs in paths.items() for method in verbs]


async def test_no_route_stays_open_with_keys_set(fake_server: Server) -> None:
    app = with_keys(fake_server, "user-1", "root-1")
    routes = routes_of(app)
    assert ("POST", CHAT) in routes
    assert ("GET", "/metrics") in routes
    async with web(app) as client:
        for method, path in routes:
            if path in OPEN:
                continue
            url = path.replace("{", "").replace("}", "")
            assert (await client.request(method, url)).status_code == 401, (method, path)


async def test_a_strangers_body_is_never_read(fake_server: Server) -> None:
    app = with_keys(fake_server, "user-1", "root-1")
    num_read = 0

    async def upload() -> AsyncIterator[bytes]:
        nonlocal num_read
        for _ in range(1000):
            num_read += 1
            yield b"x" * 1000

    for path, key in ((CHAT, "wrong"), ("/v1/files", "user-1"), ("/admin/adapters/train", None)):
        async with web(app, key) as client:
            headers = {"content-type": "application/json"}
            response = await client.post(path, content=upload(), headers=headers)
            assert response.status_code in (401, 403)
    assert num_read == 0


def test_the_early_check_and_the_routes_agree() -> None:
    routes = [route for module in ROUTES for route in flat_routes(module.router)]
    assert len(routes) > 20
    for route in routes:
        guards = {d.call for d in route.dependant.dependencies} & {require_infer, require_admin}
        early = guard_of(route.path)
        assert guards == ({early} if early else set()), route.path


async def test_no_admin_or_training_route_takes_an_inference_key(fake_server: Server) -> None:
    app = with_keys(fake_server, "user-1", "root-1")
    guarded = ("/admin/", "/v1/fine_tuning", "/v1/files", "/v1/load_lora", "/v1/unload_lora")
    async with web(app, "user-1") as client:
        for method, path in routes_of(app):
            if path.startswith(guarded):
                url = path.replace("{", "").replace("}", "")
                assert (await client.request(method, url)).status_code == 403, (method, path)


@pytest.mark.parametrize("value", ["", " , ,"])
def test_empty_keys_are_no_keys(tmp_path: Path, value: str) -> None:
    given: dict[str, Any] = {"api_keys": value}
    assert Settings(home=tmp_path, **given).api_keys == ()


def test_keys_are_not_shown(tmp_path: Path) -> None:
    given: dict[str, Any] = {"api_keys": "hidden-1", "admin_keys": "hidden-2"}
    assert "hidden" not in repr(Settings(home=tmp_path, **given))

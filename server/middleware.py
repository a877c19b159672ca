"""What happens to every request before its body is read: id, key, size. Plain ASGI."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.auth import Caller, require_admin, require_infer
from server.errors import ApiError, error_response, unforeseen
from server.settings import Settings

Guard = Callable[[Request], Awaitable[Caller]]
UPLOAD_PATH = "/v1/files"
BODY_IDLE_S = 60.0  # without a byte of a body that has begun
GUARDS: tuple[tuple[str, Guard], ...] = (  # the first prefix that fits
    ("/admin/", require_admin),
    (UPLOAD_PATH, require_admin),
    ("/v1/fine_tuning/", require_admin),
    ("/v1/load_lora_adapter", require_admin),
    ("/v1/unload_lora_adapter", require_admin),
    ("/v1/", require_infer),
    ("/metrics", require_infer),
    ("/tokenize", require_infer),
    ("/detokenize", require_infer),
)
SHOWN_HEADERS = (  # to a page of another origin
    "x-request-id",
    "x-loraloop-adapter",
    "x-loraloop-experiment",
    "x-loraloop-arm",
    "retry-after",
)
_CLIENT_ID = re.compile(rb"^[A-Za-z0-9._-]{1,128}$")


class RequestIdMiddleware:
    """Sets ``request.state.request_id`` (the client's own, if harmless) and ``.received_at``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _given_id(scope) or f"req_{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["received_at"] = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("x-request-id", request_id)
            await send(message)

        await self.app(scope, receive, send_with_id)


class LastResort:
    """A 500 in OpenAI's shape for what nobody foresaw; the connection and the server go on.

    A panic in the tokenizer's Rust is no ``Exception``; without this nobody would answer it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if scope["type"] != "http" or has_begun:
                raise  # a cut connection is all that is left to say
            await unforeseen(Request(scope), error)(scope, receive, send)


class KeyMiddleware:
    """Checks the key before a byte of the body is read: a stranger can make us store nothing.

    The routes' own dependencies decide again; a path missing in GUARDS is only checked later.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (guard := guard_of(scope["path"])) is not None:
            request = Request(scope)
            try:
                await guard(request)
            except ApiError as error:
                await error_response(error, request)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def guard_of(path: str) -> Guard | None:
    """Who may ask this path; None for what is open."""
    return next((guard for prefix, guard in GUARDS if path.startswith(prefix)), None)


class BodyLimitMiddleware:
    """413 for a body that is, or turns out to be, larger than the settings allow; 408 for one that
    stops coming."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._max_body_bytes = settings.max_body_bytes
        self._max_upload_bytes = settings.max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = scope["path"].startswith(UPLOAD_PATH)
        limit = self._max_upload_bytes if is_upload else self._max_body_bytes
        if _announced_bytes(scope) > limit:
            await _refuse(limit, scope)(scope, receive, send)
            return
        num_bytes, is_complete = 0, False

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_complete
            if is_complete:  # from here on it waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout(BODY_IDLE_S):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, headers={"Connection": "close"}) from None
            is_complete = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise HTTPException(413)  # FastAPI lets this type through while it reads a body
            return message

        await self.app(scope, receive_limited, send)


def browser_rules(settings: Settings) -> dict[str, Any]:
    """For Starlette's CORSMiddleware. Keys travel in a header, so no cookie is ever needed."""
    return {
        "allow_origins": settings.allowed_origins,
        "allow_methods": ("GET", "POST", "PUT", "DELETE"),
        "allow_headers": ("*",),
        "expose_headers": SHOWN_HEADERS,
    }


def _refuse(limit: int, scope: Scope) -> Response:
    message = f"The request body is larger than the {limit} bytes that this server accepts."
    return error_response(ApiError(413, message, code="request_too_large"), Request(scope))


def _announced_bytes(scope: Scope) -> int:
    value = Headers(scope=scope).get("content-length", "")
    return int(value) if value.isdigit() else 0


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _CLIENT_ID.match(value):
            return str(value, "ascii")
    return None

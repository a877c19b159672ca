"""Every failure as OpenAI's error body, from one table. Knows HTTP; knows nothing of any route.

``{"error": {"message", "type", "param", "code"}}`` is the only error shape that leaves the
server, so that OpenAI's client raises the exception that its users expect. FastAPI's
``{"detail"}`` never does.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from artifacts import errors as artifact_errors
from artifacts.storage import storage_error
from server.endpoints import describe_unknown
from server.engine import errors as engine_errors
from server.request_errors import explain
from server.resolve import UnknownModel

log = logging.getLogger("loraloop.server")

INVALID = "invalid_request_error"
CLIENT_CLOSED_REQUEST = 499  # nginx's word; nobody is there to read it


class ApiError(Exception):
    """An answer other than 2xx, said in OpenAI's words. ``param`` names the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type or _TYPES.get(status, INVALID if status < 500 else "server_error")
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The whole JSON body."""
        return error_body(self.message, type=self.type, param=self.param, code=self.code)


_TYPES = {
    401: INVALID,
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}

# Error class → (status, code); the most specific class of the raised error's MRO wins.
_TABLE: dict[type[Exception], tuple[int, str | None]] = {
    artifact_errors.InvalidInput: (400, "invalid_value"),
    artifact_errors.InvalidName: (400, "invalid_name"),
    artifact_errors.InvalidChat: (400, "invalid_messages"),
    artifact_errors.InvalidData: (400, "invalid_training_data"),
    artifact_errors.AdapterRejected: (400, "adapter_rejected"),
    artifact_errors.NotFound: (404, "not_found"),
    UnknownModel: (404, "model_not_found"),
    artifact_errors.Conflict: (409, "conflict"),
    artifact_errors.Corrupt: (500, "corrupt"),
    artifact_errors.StorageError: (503, "storage_failed"),
    artifact_errors.StorageBusy: (503, "storage_busy"),
    artifact_errors.StorageReadOnly: (507, "storage_read_only"),
    artifact_errors.StorageFull: (507, "storage_full"),
    engine_errors.EngineOverloaded: (429, "engine_overloaded"),
    engine_errors.EngineClosed: (503, "engine_closed"),
    engine_errors.RequestTooLong: (400, "context_length_exceeded"),
    engine_errors.UnknownAdapter: (404, "model_not_found"),
    engine_errors.AdapterInUse: (409, "adapter_in_use"),
    engine_errors.OutOfMemory: (503, "out_of_memory"),
    engine_errors.AdapterMemoryFull: (503, "adapter_memory_full"),
    engine_errors.UnsupportedModel: (500, "unsupported_model"),
    engine_errors.GrammarTooComplex: (400, "grammar_too_complex"),
}
RETRY_AFTER_S = 2  # for answers that say "not now" without knowing for how long


def error_body(
    message: str,
    *,
    type: str,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def to_api_error(error: Exception) -> ApiError | None:
    """The HTTP answer for an error of ours; None for one that nobody foresaw."""
    if isinstance(error, ApiError):
        return error
    for cls in type(error).__mro__:
        if cls in _TABLE:
            status, code = _TABLE[cls]
            break
    else:
        return None
    headers = {}
    if status == 507:
        # OpenAI's client repeats whatever is 500 or above; no disk empties itself meanwhile.
        headers["x-should-retry"] = "false"
    if status in (429, 503):
        wait_s = getattr(error, "retry_after_s", RETRY_AFTER_S)
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    if isinstance(error, artifact_errors.AdapterRejected):
        code = error.reason
    return ApiError(
        status, str(error), code=code, param=getattr(error, "param", None), headers=headers
    )


def error_response(error: ApiError, request: Request | None = None) -> Response:
    """``error`` as bytes; text that is not valid Unicode is replaced, never a second failure."""
    headers = dict(error.headers)
    if error.status == 401:
        headers.setdefault("WWW-Authenticate", "Bearer")
    if request is not None and (request_id := getattr(request.state, "request_id", None)):
        headers["x-request-id"] = request_id
    text = json.dumps(error.body(), ensure_ascii=False).encode("utf-8", "replace")
    return Response(text, error.status, headers, media_type="application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of ``app`` that somebody foresaw answer in OpenAI's shape.

    ``server.middleware.LastResort`` answers the others.
    """
    app.add_exception_handler(ApiError, _known)
    app.add_exception_handler(artifact_errors.LoraloopError, _known)
    app.add_exception_handler(engine_errors.EngineError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OSError, _disk)
    app.add_exception_handler(ClientDisconnect, _gone)


async def _known(request: Request, error: Exception) -> Response:
    api_error = to_api_error(error)
    if api_error is None:
        return unforeseen(request, error)
    if api_error.status == 500 or isinstance(error, artifact_errors.StorageError):
        request_id = getattr(request.state, "request_id", "unknown")
        log.error("%s %s (%s): %s", request.method, request.url.path, request_id, error)
    return error_response(api_error, request)


async def _disk(request: Request, error: Exception) -> Response:
    """A disk that failed where nobody expected it."""
    assert isinstance(error, OSError)
    return await _known(request, storage_error(error) or error)


async def _gone(request: Request, error: Exception) -> Response:
    """The client left before its body had come; nobody reads this."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = explain(list(error.errors()), request.headers.get("content-type"), error.body)
    api_error = ApiError(400, problem.message, param=problem.param, code=problem.code)
    return error_response(api_error, request)


_HTTP_CODES = {
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code = str(error.detail), _HTTP_CODES.get(error.status_code)
    if error.status_code == 404:
        message, code = describe_unknown(request.method, request.url.path)
    elif error.status_code == 405:
        message = f"{request.method} is not allowed on {request.url.path}."
    elif error.status_code == 408:
        message = "The request's body stopped coming before its end: send it again."
    elif error.status_code == 413:
        message = "The request body is larger than this server accepts (LORALOOP_MAX_BODY_BYTES)."
    elif error.status_code == 400 and message == "There was an error parsing the body":
        message = "The request body is not valid JSON in UTF-8."
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    api_error = ApiError(error.status_code, message, code=code, headers=headers)
    return error_response(api_error, request)


def _methods(request: Request) -> set[str]:
    """All methods of the path; Starlette names those of the first route that fits."""
    scope = dict(request.scope)

    def fits(method: str) -> bool:
        asked = {**scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in request.app.routes)

    return {method for method in ("GET", "POST", "PUT", "DELETE") if fits(method)}


def unforeseen(request: Request, error: BaseException) -> Response:
    """The answer to a mistake of ours, which the log has whole."""
    request_id = getattr(request.state, "request_id", "unknown")
    log.error("request %s failed", request_id, exc_info=error)
    message = f"The server failed on this request. Its operator finds the cause under {request_id}."
    return error_response(ApiError(500, message, code="internal_error"), request)

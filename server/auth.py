"""Who may call what: two kinds of keys and the loopback rule. Knows no route.

- ``LORALOOP_API_KEYS``: inference. None set: inference is open.
- ``LORALOOP_ADMIN_KEYS``: everything. None set: admin and training routes answer to this machine
  only, and only when no proxy stands in between (it would make everybody look local), the Host
  header names this machine (a web page that rebinds its own name to 127.0.0.1 does not), and no
  web page from elsewhere asks, which this machine's own browser would do for it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from fastapi import Request

from server.errors import ApiError
from server.settings import Settings

Scope = Literal["infer", "admin"]
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent the request. ``key_id`` tells callers apart without revealing a key."""

    scope: Scope
    key_id: str | None


def key_id_of(key: str) -> str:
    """Tells keys apart without revealing them."""
    return _digest(key)[:12]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


async def require_infer(request: Request) -> Caller:
    """The caller of an inference route, or 401."""
    settings = _settings(request)
    if caller := _keyholder(request, settings):
        return caller
    if not settings.api_keys:
        return Caller("infer", None)
    raise _unauthorized(request)


async def require_admin(request: Request) -> Caller:
    """The caller of an admin or training route, or 401 / 403."""
    settings = _settings(request)
    caller = _keyholder(request, settings)
    if caller is not None and caller.scope == "admin":
        return caller
    if settings.admin_keys:
        if caller is None:
            raise _unauthorized(request)
        message = "This key is for inference only; this route needs one of LORALOOP_ADMIN_KEYS."
        raise ApiError(403, message, code="insufficient_permissions")
    if not is_local(request):
        message = (
            "Without LORALOOP_ADMIN_KEYS this route answers only to direct connections from this "
            "machine. Set LORALOOP_ADMIN_KEYS and send one of them as a bearer token."
        )
        raise ApiError(403, message, code="loopback_only")
    return Caller("admin", caller.key_id if caller else None)


def is_local(request: Request) -> bool:
    """Whether the request comes straight from a program on this machine."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    origin = urlsplit(request.headers.get("origin", "http://localhost"))
    if not _is_loopback(_host_name(origin.netloc)):
        return False
    peer = request.client.host if request.client else ""
    return _is_loopback(peer) and _is_loopback(_host_name(request.headers.get("host", "")))


def _keyholder(request: Request, settings: Settings) -> Caller | None:
    token = _bearer(request)
    if token is None:
        return None
    given = _digest(token)
    scopes: tuple[tuple[Scope, tuple[str, ...]], ...] = (
        ("admin", settings.admin_keys),
        ("infer", settings.api_keys),
    )
    found: Scope | None = None
    for scope, keys in scopes:
        for key in keys:  # every key is compared, so that time tells nothing about which one fits
            if hmac.compare_digest(_digest(key), given) and found is None:
                found = scope
    return Caller(found, key_id_of(token)) if found else None


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token else None


def _unauthorized(request: Request) -> ApiError:
    if _bearer(request) is None:
        message = "No API key given. Send it as 'Authorization: Bearer YOUR_KEY'."
    else:
        message = "Incorrect API key provided."
    return ApiError(401, message, code="invalid_api_key")


def _settings(request: Request) -> Settings:
    settings = request.app.state.server.settings
    assert isinstance(settings, Settings)
    return settings


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

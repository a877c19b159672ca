"""Uploads that break off, stall, or find no disk: nothing of them stays, nobody else notices."""

from __future__ import annotations

import errno
import logging
import os
import socket
import tempfile
import time
from typing import Any

import pytest

from server import middleware
from server.paging import Paging
from tests.faults.conftest import Site, error_of
from tests.faults.storage import failing_disk
from tests.server.conftest import wait_until

BORDER = "xxBORDERxx"
HEAD = (
    f'--{BORDER}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    f"--{BORDER}\r\n"
    'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
).encode()


def begin(site: Site, num_bytes: int, announced: int = 4 << 20) -> socket.socket:
    """An upload of which ``num_bytes`` have been sent."""
    host, port = site.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    header = (
        f"POST /v1/files HTTP/1.1\r\nHost: {host}\r\nContent-Length: {announced}\r\n"
        f"Content-Type: multipart/form-data; boundary={BORDER}\r\n\r\n"
    )
    client.sendall(header.encode() + HEAD + b" " * num_bytes)
    return client


def nothing_is_left(site: Site) -> None:
    def is_clean() -> bool:
        return not [*site.home.tmp.iterdir(), *site.home.files.iterdir()]

    wait_until(is_clean)
    assert site.server.files.page(Paging()).items == []
    assert site.upload().status_code == 200


@pytest.mark.parametrize("num_bytes", [0, 3 << 20])  # in memory; beyond what is kept there
@pytest.mark.parametrize("is_reset", [True, False])
def test_an_upload_cut_off_leaves_nothing(
    site: Site, num_bytes: int, is_reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with site.traffic(site.base, "good"):
        client = begin(site, num_bytes)
        time.sleep(0.1)
        if is_reset:
            linger = b"\x01\0\0\0\0\0\0\0"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        client.close()
        time.sleep(0.2)
        nothing_is_left(site)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_an_upload_that_stalls_is_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_IDLE_S", 0.3)
    with site.traffic(site.base, "good"), begin(site, 2 << 20) as client:
        client.settimeout(10)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "request_timeout"' in answer
        assert b"send it again" in answer
        nothing_is_left(site)


def test_a_body_that_comes_slowly_but_comes_is_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "BODY_IDLE_S", 0.4)
    end = f"\r\n--{BORDER}--\r\n".encode()
    rows = b'{"messages": []}\n' * 8
    with begin(site, 0, len(HEAD) + len(rows) + len(end)) as client:
        client.settimeout(10)
        for start in range(0, len(rows), 17):
            client.sendall(rows[start : start + 17])
            time.sleep(0.15)
        client.sendall(end)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "storage_full"),
        (errno.EROFS, "storage_read_only"),
        (errno.EIO, "storage_failed"),
    ],
)
def test_an_upload_that_finds_no_disk_leaves_nothing(site: Site, number: int, code: str) -> None:
    with site.traffic(site.base, "good"), failing_disk(site.home.root, number):
        message = error_of(site.upload(), 503 if code == "storage_failed" else 507, code)
        assert str(site.home.files) in message
    nothing_is_left(site)


def test_a_full_temporary_folder_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a large upload waits until it is whole; not a place below the home."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    message = error_of(site.upload(b" " * (2 << 20)), 507, "storage_full")
    assert tempfile.gettempdir() in message

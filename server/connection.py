"""The TCP connection under a request, for what ASGI has no words for. Knows no answers.

ASGI's ``send`` waits until the client has read enough of what went before, for ever if need be, and
nothing in ASGI ends that. `Line` does.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Mapping
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINE = "loraloop.line"  # the key among a scope's extensions
NUM_PROBES = 3
BESIDE_S = 15.0  # later than the server's own patience with a stream, which can say why


class Line:
    """The connection that one request came on."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Line | None:
        """The line of a request, None where the server is not ours (a test in memory)."""
        line = scope.get("extensions", {}).get(LINE)
        assert line is None or isinstance(line, Line)
        return line

    def unread_bytes(self) -> int:
        """What was sent and has not reached the client: ours, and the kernel's for this socket."""
        transport = self._protocol.transport
        if transport.is_closing():
            return 0
        number = transport.get_extra_info("socket").fileno()
        queued = struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, b"\0" * 4))[0]
        return int(queued) + transport.get_write_buffer_size()

    def let_go(self, linger_s: float) -> None:
        """No ``send`` waits for the client any more, and the connection ends after this response:
        when the client has read it, or after ``linger_s``, whichever comes first."""
        self._protocol.resume_writing()
        self._protocol.shutdown()
        asyncio.get_running_loop().call_later(linger_s, self._protocol.transport.abort)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, with a `Line` in each request's scope."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = cast(Any, {LINE: Line(self)})


def notice_silence(listener: socket.socket, stall_s: float) -> None:
    """Give up accepted connections whose other end says nothing, soon after ``stall_s``.

    A laptop that is closed sends no farewell. Linux hands these options of a listening socket down
    to the sockets it accepts: probes where nothing is under way, and a limit for what was sent and
    is not acknowledged, or cannot be sent because the other end reads nothing.
    """
    after_s = stall_s + BESIDE_S
    every_s = max(1, round(after_s / (NUM_PROBES + 1)))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every_s)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, NUM_PROBES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(after_s * 1000))

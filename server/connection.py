"""The TCP connection under a request, for what ASGI has no words for. Knows no answers.

ASGI's ``send`` waits until the client has read enough of what went before, for ever if need be, and
nothing in ASGI ends that. `Line` does.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Mapping
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

LINE = "loraloop.line"  # the key among a scope's extensions
NUM_PROBES = 3
_INT, _LINGER = struct.Struct("i"), struct.Struct("ii")
MAX_UNSENT_BYTES = 128 * 1024
LATER = 1.5  # than the server itself drops a stream, which it can explain


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
        num_bytes = transport.get_write_buffer_size()
        if sys.platform == "linux":
            number = transport.get_extra_info("socket").fileno()
            queued = fcntl.ioctl(number, termios.TIOCOUTQ, bytes(_INT.size))
            num_bytes += int(_INT.unpack(queued)[0])
        return num_bytes

    def let_go(self, linger_s: float) -> None:
        """No ``send`` waits for the client any more, and the connection ends after this response:
        when the client has read it, or after ``linger_s``, whichever comes first."""
        self._protocol.resume_writing()
        self._protocol.shutdown()
        asyncio.get_running_loop().call_later(linger_s, self._cut)

    def _cut(self) -> None:
        transport = self._protocol.transport
        if not transport.is_closing() or transport.get_write_buffer_size():
            # Without this the kernel would go on trying to deliver what it has.
            its_socket = transport.get_extra_info("socket")
            its_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
            transport.abort()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, with a `Line` in each request's scope."""

    _cycles: tuple[RequestResponseCycle, ...] = ()  # one, or more if the client pipelines

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._cycles = (*(each for each in self._cycles if not each.response_complete), self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # tells the last request of the connection only
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = cast(Any, {LINE: Line(self)})


def limit_connections(listener: socket.socket, stall_s: float) -> None:
    """Bound what one connection may hold, and for how long. Linux hands these options of a
    listening socket down to the sockets it accepts.

    The kernel would queue megabytes for a client that does not read. And a laptop that is closed
    says no farewell: it is gone when probes, or what was sent, stay without an answer.
    """
    silence_s = stall_s * LATER
    probe_s = max(1, round(silence_s / (NUM_PROBES + 1)))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_NOTSENT_LOWAT": MAX_UNSENT_BYTES,
        "TCP_USER_TIMEOUT": round(silence_s * 1000),
        "TCP_KEEPIDLE": probe_s,
        "TCP_KEEPINTVL": probe_s,
        "TCP_KEEPCNT": NUM_PROBES,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has them all
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

"""Sends one request and says how it ended. Everything the soak does goes through here.

A completion is *answered* if it is complete, by the right version and says what this version says;
*refused* if the status is legal for it; *left* if we meant to leave; anything else is *lost*.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from types import TracebackType
from typing import Any

import httpx

from loadtests.soak.answers import Answer, Broken, ErrorEvent, read_body, read_stream
from loadtests.soak.asks import CHAT, GIVEN_UP, NOT_NOW, Ask, Call, Seen, check_refusal, subject_of
from loadtests.soak.world import BASE, World

JSON = dict[str, Any]
TIMEOUT_S = 90.0  # a request that takes longer hangs
# The server closes idle connections after 5 s; one that it closes while we send is nobody's fault.
KEEPALIVE_S = 2.0
# What the system takes in for a slow reader. With less than a segment of the loopback the kernel
# drops and repeats for seconds, and the server must take the client for gone.
SLOW_BUFFER = 32 * 1024
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset
SMALL_BUFFER = [(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)]
ABRUPT = [(socket.SOL_SOCKET, socket.SO_LINGER, RESET)]


class Left(Exception):
    """We went away, as planned."""


class Client:
    """All connections to one server. Use as an async context manager."""

    def __init__(self, url: str, world: World, timeout_s: float = TIMEOUT_S) -> None:
        self.world = world
        self.book = world.book
        self._timeout_s = timeout_s
        self._url = url
        self._https = self._dial()

    def _dial(self) -> dict[str, httpx.AsyncClient]:
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_S)
        kinds = {"plain": None, "slow": SMALL_BUFFER, "abrupt": ABRUPT}
        return {
            kind: httpx.AsyncClient(
                base_url=self._url,
                timeout=None,  # one deadline for the whole request, here
                transport=httpx.AsyncHTTPTransport(limits=limits, socket_options=options),
            )
            for kind, options in kinds.items()
        }

    async def hang_up(self) -> None:
        """Close all connections, which are idle; the next request opens new ones."""
        for http in self._https.values():
            await http.aclose()
        self._https = self._dial()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for http in self._https.values():
            await http.aclose()

    # --- completions ----------------------------------------------------------------------------

    async def ask(self, ask: Ask) -> Answer | None:
        """Send it and book its end. The answer, if it was answered."""
        number, seen = self.book.begin(ask.kind, ask.model), Seen(time.monotonic())
        try:
            await self._receive(ask, seen)
            return self._judge(number, ask, seen)
        except Left:
            self.book.leave(number)
        except ErrorEvent as error:
            if ask.given_up is None or error.code != ask.given_up:
                self._lose(number, ask, seen, str(error))
            else:
                self.book.refuse(number, GIVEN_UP)
        except Broken as error:
            self._lose(number, ask, seen, str(error))
        except TimeoutError:
            self._lose(number, ask, seen, f"no end within {self._timeout_s:g} s")
        except (httpx.HTTPError, ValueError, KeyError) as error:
            if ask.stall_s and isinstance(error, httpx.TransportError):
                self.book.refuse(number, GIVEN_UP)  # dropped: there was no room for the event
            else:
                self._lose(number, ask, seen, f"{type(error).__name__}: {error}")
        return None

    async def _receive(self, ask: Ask, seen: Seen) -> None:
        """Everything up to the end, or up to our leaving. Raises Left, TimeoutError, HTTPError."""
        kind = "abrupt" if ask.is_abrupt else "slow" if ask.is_slow else "plain"
        http = self._https[kind]
        patience_s = self._timeout_s if ask.leave_after_s is None else ask.leave_after_s
        try:
            async with (
                asyncio.timeout(patience_s),
                http.stream("POST", ask.path, json=ask.body, headers=ask.headers) as response,
            ):
                seen.status, seen.headers = response.status_code, response.headers
                await self._read(ask, seen, response)
        except TimeoutError:
            if ask.leave_after_s is None:
                raise
            raise Left from None

    async def _read(self, ask: Ask, seen: Seen, response: httpx.Response) -> None:
        num_events = 0
        async for piece in response.aiter_raw():
            seen.pieces.append(piece)
            num_events += piece.count(b"\n\n")
            if seen.first_token_s is None and num_events > 1:  # the first one names the role
                seen.first_token_s = time.monotonic()
            if ask.leave_after_events is not None and num_events >= ask.leave_after_events:
                raise Left
            if ask.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / ask.bytes_per_s)
            if len(seen.pieces) == 1:
                await asyncio.sleep(ask.stall_s)

    def _judge(self, number: int, ask: Ask, seen: Seen) -> Answer | None:
        """Book what came whole. Raises Broken."""
        now = time.monotonic()
        if seen.status != 200:
            self._check_refusal(ask, seen)
            assert seen.status is not None
            self.book.refuse(number, seen.status)
            return None
        is_stream = bool(ask.body.get("stream"))
        if is_stream:
            answer = read_stream(seen.pieces, ask.body)
        else:
            answer = read_body(json.loads(b"".join(seen.pieces)), ask.body)
        version = seen.headers["x-loraloop-adapter"]
        experiment, arm = (seen.headers.get(f"x-loraloop-{key}") for key in ("experiment", "arm"))
        self._check_version(ask, seen, answer, version, now)
        self.book.answer(number, version, arm and f"{experiment}/{arm}")
        if ask.path == CHAT and seen.first_token_s is not None and not ask.is_slow:
            self.book.first_token(seen.first_token_s - seen.sent_s)
        return answer

    def _check_version(
        self, ask: Ask, seen: Seen, answer: Answer, version: str, now: float
    ) -> None:
        """Raises Broken unless the right version said what it says."""
        world = self.world
        named = world.base_id if version == BASE else version
        if answer.head["model"] != named:
            raise Broken(f"the header says {version}, the body {answer.head['model']}")
        problem = (
            world.wrong_version(ask.model, version, seen.sent_s, now)
            or world.sayings.other_fingerprint(version, answer.head["system_fingerprint"])
            or world.sayings.differing(version, ask.path, ask.body, answer.texts)
        )
        if problem is None:
            problem = self._moved(ask, seen, now)
        if problem is not None:
            raise Broken(problem)

    def _moved(self, ask: Ask, seen: Seen, now: float) -> str | None:
        """Why this user cannot meet this arm of the experiment; None if they can."""
        meaning, user = self.world.meanings.get(ask.model), ask.body.get("user")
        arm = seen.headers.get("x-loraloop-arm")
        if meaning is None or user is None or arm is None:
            return None
        if not meaning.is_steady(seen.sent_s, now):
            return None
        return self.world.stickiness.moved(user, arm)

    def _check_refusal(self, ask: Ask, seen: Seen) -> None:
        is_gone = self.world.may_be_gone(ask.model, seen.sent_s)
        legal = NOT_NOW | ({404} if is_gone else frozenset())
        legal |= {GIVEN_UP} if ask.deadline_s is not None else frozenset()
        check_refusal(seen, legal)

    def _lose(self, number: int, ask: Ask, seen: Seen, why: str) -> None:
        self.book.lose(number, why, ask.report(), seen.report(), self.world.age_s)

    # --- everything else ------------------------------------------------------------------------

    async def call(self, call: Call) -> JSON | None:
        """Send it and book its end. Its JSON, or None if it was refused or lost."""
        number, seen = self.book.begin(call.kind), Seen(time.monotonic())
        sent = {"json": call.body} if isinstance(call.body, dict) else {"content": call.body}
        try:
            async with asyncio.timeout(self._timeout_s):
                http = self._https["plain"]
                response = await http.request(call.method, call.path, **sent)
            seen.status, seen.headers = response.status_code, response.headers
            seen.pieces = [response.content]
            if not response.is_success:
                is_gone = self.world.may_be_gone(call.version, seen.sent_s)
                check_refusal(seen, call.legal | ({404} if is_gone else frozenset()))
                self.book.refuse(number, response.status_code)
                return None
            if call.is_wrong:
                raise Broken("was taken, though it is wrong")
            is_json = response.headers["content-type"].startswith("application/json")
            found: JSON = response.json() if is_json else {"text": response.text}
        except TimeoutError:
            why = f"no end within {self._timeout_s:g} s"
        except (Broken, httpx.HTTPError, ValueError, KeyError) as error:
            why = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
        else:
            action = None if call.action is None else (call.action, subject_of(found))
            self.book.done(number, action)
            return found
        self.book.lose(number, why, call.report(), seen.report(), self.world.age_s)
        return None

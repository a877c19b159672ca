"""What is measured of one server: first-token time alone, and whole requests at several streams.

One `Target` per server. `Target.run` is one short measurement; who alternates between servers and
takes medians is the caller (`loadtests.bench`, `loadtests.peers`).
"""

from __future__ import annotations

import http.client
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from loadtests.client import (
    BadAnswer,
    Endpoint,
    Recording,
    get_json,
    parse,
    parse_url,
    post_json,
    record,
)
from loadtests.prompts import PromptMaker, calibrate
from loadtests.sse import Answer

JSON = dict[str, Any]
# Asked for where the server accepts it; the first that it takes is kept.
EXTRAS: tuple[JSON, ...] = (
    {"ignore_eos": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
    {},
)
REFUSED = (400, 422)
FIRST_TOKEN_REPEATS = 3


@dataclass(frozen=True)
class Load:
    """One row: how many requests at once, of what length. One stream of few tokens clocks TTFT."""

    key: str
    title: str
    num_streams: int
    num_prompt: int
    num_new: int
    is_first_token: bool = False

    @property
    def unit(self) -> str:
        return "ms" if self.is_first_token else "tok/s"


@dataclass(frozen=True)
class Sample:
    """One measurement: milliseconds to the first token, or output tokens per second."""

    value: float
    ttft_ms: tuple[float, ...]
    prompt_tokens: tuple[int, ...]  # as the server counted them, one per request
    new_tokens: tuple[int, ...]
    is_counted: bool  # new_tokens are from usage, not from counting events


def loads(
    streams: tuple[int, ...], num_prompt: int = 128, num_new: int = 128, num_long: int = 512
) -> tuple[Load, ...]:
    """The rows of the comparison; ``num_long`` is the prompt of the first-token row."""
    first = Load("ttft", f"TTFT, {num_long}-token prompt, alone", 1, num_long, 4, True)
    return (first, *(Load(f"streams_{n}", _title(n), n, num_prompt, num_new) for n in streams))


def _title(num_streams: int) -> str:
    return f"{num_streams} stream{'s' if num_streams > 1 else ''}, whole requests"


class Target:
    """One server, its accepted options and its prompts.

    Raises, on construction: BadAnswer, Uncountable, OSError.
    """

    def __init__(self, name: str, endpoint: Endpoint, seed: int) -> None:
        self.name = name
        self._random = random.Random(seed)
        model = endpoint.model or str(get_json(endpoint, "/models")["data"][0]["id"])
        self.endpoint = replace(endpoint, model=model)
        self.extras = self._accepted_extras()
        self.prompts: PromptMaker = calibrate(self._count)

    def run(self, load: Load) -> Sample:
        """Measure once. All requests of a load start together, on open connections."""
        repeats = FIRST_TOKEN_REPEATS if load.is_first_token else 1
        answers: list[Answer] = []
        seconds = 0.0
        for _ in range(repeats):
            bodies = [self.body(load) for _ in range(load.num_streams)]
            recordings = self._all_at_once(bodies)
            seconds += max(r.ended for r in recordings) - min(r.started for r in recordings)
            answers.extend(parse(recording) for recording in recordings)
            self._refuse_echoes(bodies, answers[-len(bodies) :])
        ttfts = [a.ttft_s * 1e3 for a in answers if a.ttft_s is not None]
        if len(ttfts) < len(answers):
            raise BadAnswer(200, f"{self.name}: an answer of {load.key} carried no token")
        new_tokens = tuple(a.num_tokens for a in answers)
        rate = sum(new_tokens) / seconds
        return Sample(
            value=statistics.median(ttfts) if load.is_first_token else rate,
            ttft_ms=tuple(ttfts),
            prompt_tokens=tuple(a.num_prompt_tokens or 0 for a in answers),
            new_tokens=new_tokens,
            is_counted=all(a.is_counted for a in answers),
        )

    def _all_at_once(self, bodies: list[JSON]) -> list[Recording]:
        connections = [self.endpoint.connect() for _ in bodies]

        def one(pair: tuple[http.client.HTTPConnection, JSON]) -> Recording:
            return record(pair[0], self.endpoint, pair[1])

        try:
            with ThreadPoolExecutor(len(bodies)) as pool:
                return list(pool.map(one, zip(connections, bodies, strict=True)))
        finally:
            for connection in connections:
                connection.close()

    def _refuse_echoes(self, bodies: list[JSON], answers: list[Answer]) -> None:
        """A server that sends the prompt back would be clocked by that, not by its first token."""
        for body, answer in zip(bodies, answers, strict=True):
            if body["messages"][0]["content"].strip() in answer.text:
                raise BadAnswer(200, f"{self.name} sends the prompt back before its answer")

    def body(self, load: Load) -> JSON:
        """A streamed request of ``load`` with a prompt of its own."""
        text = self.prompts.make(load.num_prompt, self._random)
        return self._request(text, load.num_new) | {"stream": True} | self.extras

    def _request(self, text: str, max_tokens: int) -> JSON:
        return {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }

    def _count(self, text: str) -> int:
        answer = post_json(self.endpoint, "/chat/completions", self._request(text, 1))
        try:
            return int(answer["usage"]["prompt_tokens"])
        except (KeyError, TypeError):
            raise BadAnswer(200, f"{self.name} reports no usage.prompt_tokens") from None

    def _accepted_extras(self) -> JSON:
        for extras in EXTRAS:
            body = self._request("hello", 1) | {"stream": True} | extras
            connection = self.endpoint.connect()
            try:
                parse(record(connection, self.endpoint, body))
            except BadAnswer as error:
                if error.status not in REFUSED or not extras:
                    raise
            else:
                return extras
            finally:
                connection.close()
        raise AssertionError("the last extras are empty and either pass or raise")


def open_target(name: str, url: str, *, model: str, api_key: str, seed: int) -> Target:
    """A target by URL. Raises ValueError for a malformed one, else as `Target` does."""
    return Target(name, parse_url(url, model, api_key), seed)

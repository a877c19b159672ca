"""The user that all scenarios share: asks, reads the stream, reports TTFT and ITL to Locust."""

from __future__ import annotations

import itertools
import random
import time
import uuid
from typing import Any

import gevent
import requests
from locust import User, task

from loadtests.options import bearer, options_of, prompts
from loadtests.report import run_of
from loadtests.sse import Answer, BrokenStream, read_answer

VERSION_HEADERS = ("x-loraloop-arm", "x-loraloop-adapter")  # the first that is sent
PATH = "/v1/chat/completions"
PAUSE_AFTER_FAILURE_S = 0.5  # a server in trouble is not to be asked a thousand times a second


class StreamingUser(User):
    """Sends one streamed chat after another. Scenarios override ``next_model``.

    Locust rows: the whole answer under its path, first token under TTFT, each gap between two
    tokens under ITL; TTFT and ITL carry the version that answered.
    """

    abstract = True

    def on_start(self) -> None:
        self.options = options_of(self.environment)
        self.session = requests.Session()
        self.prompts = prompts(self.options)
        self.random = random.Random(uuid.uuid4().int)

    def on_stop(self) -> None:
        self.session.close()

    def wait_time(self) -> float:
        return float(self.options.pause)

    def next_model(self) -> str:
        """The model id of the next request."""
        return str(self.options.model) or self.listed_models()[0]

    def body(self) -> dict[str, Any]:
        """The next request, each with a ``user`` of its own, so that A/B shares are measurable."""
        options = self.options
        body = {
            "model": self.next_model(),
            "messages": [{"role": "user", "content": self.random.choice(self.prompts)}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "user": uuid.uuid4().hex,
        }
        return body | ({"ignore_eos": True} if options.ignore_eos else {})

    @task
    def ask(self) -> None:
        """One request, from sending to the last byte."""
        started = time.perf_counter()
        version, answer, failure = None, None, None
        body = self.body()
        try:
            with self.session.post(
                f"{self.host}{PATH}",
                json=body,
                headers=bearer(self.options.api_key),
                stream=True,
                timeout=self.options.timeout,
            ) as response:
                sent = map(response.headers.get, VERSION_HEADERS)
                version = next(filter(None, sent), body["model"])
                if response.status_code != 200:
                    raise BrokenStream(f"HTTP {response.status_code}: {response.text[:300]}")
                answer = read_answer(response.iter_content(chunk_size=None), started)
        except (requests.RequestException, BrokenStream, ValueError, KeyError) as error:
            failure = error
        self.report(version, answer, failure, time.perf_counter() - started)

    def report(
        self, version: str | None, answer: Answer | None, failure: Exception | None, total_s: float
    ) -> None:
        """Tell Locust and the tally how one request went."""
        self.fire("POST", PATH, total_s, failure, len(answer.text) if answer else 0)
        if answer is None:
            run_of(self.environment).tally.add_error(version)
            gevent.sleep(PAUSE_AFTER_FAILURE_S)
            return
        name = version or "?"
        run_of(self.environment).tally.add(name, answer, total_s)
        if answer.ttft_s is not None:
            self.fire("TTFT", name, answer.ttft_s)
        for gap in answer.gaps_s:
            self.fire("ITL", name, gap)

    def fire(
        self, kind: str, name: str, time_s: float, error: Exception | None = None, length: int = 0
    ) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=time_s * 1000,
            response_length=length,
            exception=error,
            context={},
        )

    def listed_models(self) -> list[str]:
        """Ids of ``GET /v1/models``, asked once per user; names for other listed ids left out."""
        if not hasattr(self, "_models"):
            answer = self.session.get(
                f"{self.host}/v1/models", headers=bearer(self.options.api_key), timeout=30
            )
            answer.raise_for_status()
            models = answer.json()["data"]
            ids = {model["id"] for model in models}
            self._models = [
                str(model["id"])
                for model in models
                if model.get("root") in (None, model["id"]) or model["root"] not in ids
            ]
        return self._models


class Rotation:
    """Endless turns over a list, shared by all users of a process so that shares are even."""

    def __init__(self) -> None:
        self._counter = itertools.count()

    def pick(self, choices: list[str]) -> str:
        return choices[next(self._counter) % len(choices)]

"""A client of stored responses, on a server that will be killed."""

from __future__ import annotations

import json
import random

import httpx

from artifacts.registry import Registry
from tests.live.actors import MODEL, told

URL = "/v1/responses"


class Responder:
    """Answers, goes on from answers, reads and deletes them."""

    def __init__(self) -> None:
        self._kept: dict[str, str | None] = {}  # response → the one before it
        self._gone: set[str] = set()
        self._deleting: str | None = None

    def act(self, http: httpx.Client, rng: random.Random) -> None:
        if self._kept and rng.random() < 0.15:
            self._delete(http, rng.choice(sorted(self._kept)))
        else:
            self._answer(http, rng)

    def _answer(self, http: httpx.Client, rng: random.Random) -> None:
        whole = [one for one in sorted(self._kept) if self._is_whole(one)]
        previous = rng.choice(whole) if whole and rng.random() < 0.6 else None
        body = {
            "model": MODEL,
            "input": f"Hello {rng.random()}",
            "max_output_tokens": rng.randint(1, 8),
            "previous_response_id": previous,
        }
        if rng.random() < 0.5:
            answer = http.post(URL, json=body)
            if told(answer, 400):  # 400: the chain has grown too long
                self._kept[answer.json()["id"]] = previous
            return
        with http.stream("POST", URL, json={**body, "stream": True}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: ") and '"usage":{' in line:  # the last event
                    self._kept[json.loads(line[6:])["response"]["id"]] = previous

    def _is_whole(self, response_id: str) -> bool:
        """Whether nothing of what it goes on from was deleted."""
        at: str | None = response_id
        while at is not None:
            if at not in self._kept:
                return False
            at = self._kept[at]
        return True

    def _delete(self, http: httpx.Client, response_id: str) -> None:
        self._deleting = response_id
        assert told(http.delete(f"{URL}/{response_id}"))
        del self._kept[response_id]
        self._gone.add(response_id)
        self._deleting = None

    def check(self, http: httpx.Client, registry: Registry) -> None:
        for response_id in [*self._kept, *self._gone]:
            found = http.get(f"{URL}/{response_id}").status_code
            if response_id == self._deleting:
                if found == 404:
                    del self._kept[response_id]
                continue
            wanted = 200 if response_id in self._kept else 404
            assert found == wanted, f"{response_id}: {found}, not {wanted}"
        self._deleting = None
        self._gone.clear()  # they stayed so over one restart

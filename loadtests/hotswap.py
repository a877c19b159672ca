"""Hot swaps during load: ``locust -f loadtests/hotswap.py --host URL --swap name@1,name@2``.

Users ask for the bare name while one more user, every ``--swap-every`` seconds, unloads the idle
version, loads it again and moves the alias ``champion`` to it. An answer from two versions is a
failure; so is a single failed request.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import requests
from locust import User, constant_pacing, task

from loadtests.options import bearer, options_of
from loadtests.users import StreamingUser


class Chat(StreamingUser):
    """Asks for the bare name: whatever is champion at that moment."""

    def next_model(self) -> str:
        return str(self.options.model) or self.options.swap.split("@")[0]


class Swapper(User):
    """Loads the other version and flips the alias, again and again. Exactly one runs."""

    fixed_count = 1

    def on_start(self) -> None:
        options = options_of(self.environment)
        versions = [ref.strip() for ref in options.swap.split(",") if "@" in ref]
        if len(versions) != 2:
            raise ValueError(f"--swap={options.swap!r}: give two versions, as in name@1,name@2")
        self.turns = itertools.cycle(versions)
        self.pacing = constant_pacing(options.swap_every)
        self.session = requests.Session()
        self.session.headers.update(bearer(options.admin_key))

    def wait_time(self) -> float:
        return float(self.pacing(self))

    @task
    def swap(self) -> None:
        """Unload, load, flip: three Locust rows."""
        version = next(self.turns)
        name, number = version.split("@")
        self.call("POST", "/admin/adapters/unload", {"id": version}, "unload", also_ok=(404, 409))
        self.call("POST", "/admin/adapters/load", {"id": version}, "load")
        alias = f"/admin/adapters/{name}/aliases/champion"
        self.call("PUT", alias, {"version": int(number)}, "alias flip")

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any],
        name: str,
        also_ok: tuple[int, ...] = (),
    ) -> None:
        """One admin call, reported under ``name``."""
        started = time.perf_counter()
        failure: Exception | None = None
        try:
            answer = self.session.request(method, f"{self.host}{path}", json=body, timeout=120)
            if not answer.ok and answer.status_code not in also_ok:
                failure = ValueError(f"HTTP {answer.status_code}: {answer.text[:300]}")
        except requests.RequestException as error:
            failure = error
        self.environment.events.request.fire(
            request_type="ADMIN",
            name=name,
            response_time=(time.perf_counter() - started) * 1000,
            response_length=0,
            exception=failure,
            context={},
        )

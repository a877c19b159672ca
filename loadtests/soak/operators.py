"""The operators: import, remove, load, unload, flip aliases, run an experiment, train.

Each function is one operator that goes on until the soak is over. What they change, they write
down in the world before and after, so that every answer can be judged.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loadtests.soak.asks import CHAT, NOT_NOW, Ask, Call
from loadtests.soak.chats import GREEDY, QUESTIONS
from loadtests.soak.client import Client
from loadtests.soak.folders import write_folder
from loadtests.soak.meaning import GONE, Meaning
from loadtests.soak.world import TRIAL, Version, World

JSON = dict[str, Any]
NUM_ADAPTERS = 16
MAX_VERSIONS = 3  # of one name; then the oldest is removed before another comes
TRAINED = "trained"
EXAMPLES = [
    {
        "messages": [
            {"role": "user", "content": f"Is item {index} in stock?"},
            {"role": "assistant", "content": f"Ahoy! Item {index} be in the hold, matey."},
        ]
    }
    for index in range(24)
]
TRAINING = {"rank": 4, "max_steps": 6, "batch_size": 4, "max_length": 128}
JOB_ENDS = ("succeeded", "failed", "cancelled")
JOB_TIMEOUT_S = 600.0  # it trains when nobody else wants the processor
POLL_S = 0.5
NOTICED_S = 2.0  # a server sees another process's change of the registry within half a second

WEIGHTS = ((50, 50, 0), (80, 10, 10), (20, 0, 80))  # of the experiment's three versions
UNLOADED, ALIAS_PUT = "adapter.unload", "alias.put"  # the audit log's words

Remove = Callable[..., Awaitable[str]]  # `loraloop adapters remove …`: what went wrong, or ""
Disturb = Callable[[str], Awaitable[object]]


@dataclass
class Operators:
    """What all operators share."""

    client: Client
    config: JSON  # of the base
    folder: Path  # adapters are written here; the server may read it
    remove_version: Remove
    _seeds: Any = field(default_factory=itertools.count)

    @property
    def world(self) -> World:
        return self.client.world

    # --- once, before the clients come ----------------------------------------------------------

    async def furnish(self) -> None:
        """Sixteen adapters, and three versions of one more with an experiment between them."""
        for index in range(NUM_ADAPTERS):
            await self.bring(f"soak-{index:02d}")
        arms = [version for _ in range(3) if (version := await self.bring(TRIAL)) is not None]
        self.world.meanings[TRIAL] = Meaning({arms[0].id}, time.monotonic())

    async def bring(self, name: str) -> Version | None:
        """Import a new version of ``name``. The first of a name is its champion."""
        seed = self.world.random.randrange(10**6) * 30 + next(self._seeds)
        folder = await asyncio.to_thread(
            write_folder, self.folder / f"{name}-{seed}", self.config, seed
        )
        body = {"name": name, "path": str(folder)}
        path = "/admin/adapters/load"
        found = await self.client.call(Call("import", "POST", path, body, action="adapter.import"))
        await asyncio.to_thread(shutil.rmtree, folder)
        if found is None:
            return None
        version = self.world.add(found["id"])
        if name not in self.world.meanings and name != TRIAL:
            self.world.meanings[name] = Meaning({version.id}, time.monotonic())
        return version

    # --- endless --------------------------------------------------------------------------------

    async def change_versions(self, every_s: float) -> None:
        """New versions come, the oldest that no alias needs go for good."""
        while await self.world.may_go_on():
            name = self.world.random.choice(self._names())
            standing = self.world.standing(name)
            idle = [version for version in standing if version.id not in self._pointed_at(name)]
            if len(standing) < MAX_VERSIONS:
                await self.bring(name)
            elif idle:
                await self.remove(idle[0])
            await self.world.is_over_within(every_s)

    async def flip(self, every_s: float) -> None:
        """``name@champion`` goes from version to version; ``name@canary`` comes and goes."""
        while await self.world.may_go_on():
            name = self.world.random.choice(self._names())
            await self._flip_champion(name)
            await self._flip_canary(name)
            await self.world.is_over_within(every_s)

    async def load_and_unload(self, every_s: float) -> None:
        """Of versions in use too: an unload with ``wait`` ends when they are free."""
        source = self.world.random
        while await self.world.may_go_on():
            version = source.choice(self.world.standing())
            body: JSON = {"id": version.id}
            if source.random() < 0.4:
                call = Call("load", "POST", "/admin/adapters/load", body, action="adapter.load")
            else:
                body["wait"] = source.random() < 0.5
                # 404: nobody has loaded it; 409: requests run on it, or kept coming.
                legal = frozenset({404, 409})
                call = Call("unload", "POST", "/admin/adapters/unload", body, legal, UNLOADED)
            await self.client.call(replace(call, version=version.id))
            await self.world.is_over_within(every_s)

    async def experiment(self, every_s: float) -> None:
        """Start, weigh anew, end, again."""
        arms = [version.id for version in self.world.standing(TRIAL)]
        path = f"/admin/experiments/{TRIAL}"
        while await self.world.may_go_on():
            for weights in WEIGHTS:
                await self.world.may_go_on()
                chosen = {arm: w for arm, w in zip(arms, weights, strict=True) if w}
                body = {"arms": [{"model": arm, "weight": w} for arm, w in chosen.items()]}
                call = Call("weigh", "PUT", path, body, action="experiment.put")
                await self._redefine(TRIAL, set(chosen), call)
                await self.world.is_over_within(every_s)
            call = Call("weigh", "DELETE", path, action="experiment.delete")
            await self._redefine(TRIAL, arms[:1], call)
            await self.world.is_over_within(every_s / 4)

    async def train(self) -> None:
        """One job after the other; what it made is asked and then removed."""
        for number in itertools.count():
            if not await self.world.may_go_on():
                return
            version = await self._train_one(number)
            if version is None:
                continue
            fine_tuned = f"ft:{self.world.base_id}:loraloop:{TRAINED}:{version.number}"
            meaning = self.world.meanings[fine_tuned] = Meaning({version.id}, time.monotonic())
            for question in QUESTIONS[:4]:
                messages = [{"role": "user", "content": question}]
                body = {"model": fine_tuned, "messages": messages, "max_tokens": 24, **GREEDY}
                await self.client.ask(Ask("trained", body))
            meaning.sending({GONE}, time.monotonic())
            await self.remove(version, "--force")  # it may be its name's champion
            meaning.acknowledged(time.monotonic())

    # --- below ----------------------------------------------------------------------------------

    async def remove(self, version: Version, *options: str) -> None:
        """Delete it for good, whether it is in use or not."""
        version.is_leaving = True
        number = self.world.book.begin("remove")
        problem = await self.remove_version(version.id, *options)
        if problem:
            request = {"command": f"loraloop adapters remove {version.id}"}
            self.world.book.lose(number, problem, request, {}, self.world.age_s)
        else:
            self.world.book.done(number, None)
        del self.world.versions[version.id]
        await asyncio.sleep(NOTICED_S)
        body = {"model": version.id, "messages": [{"role": "user", "content": QUESTIONS[0]}]}
        gone = Call("removed", "POST", CHAT, body, NOT_NOW | {404}, is_wrong=True)
        await self.client.call(gone)

    def _names(self) -> list[str]:
        return [f"soak-{index:02d}" for index in range(NUM_ADAPTERS)]

    def _pointed_at(self, name: str) -> frozenset[str]:
        """Versions that an alias of ``name`` points at, or will, or did a moment ago."""
        now, meanings = time.monotonic(), self.world.meanings
        ids = (name, f"{name}@canary")
        return frozenset().union(*(meanings[i].between(now, now) for i in ids if i in meanings))

    async def _flip_champion(self, name: str) -> None:
        chosen = self.world.random.choice(self.world.standing(name))
        path, body = f"/admin/adapters/{name}/aliases/champion", {"version": chosen.number}
        await self._redefine(name, {chosen.id}, Call("flip", "PUT", path, body, action=ALIAS_PUT))

    async def _flip_canary(self, name: str) -> None:
        canary, path = f"{name}@canary", f"/admin/adapters/{name}/aliases/canary"
        meaning = self.world.meanings.setdefault(canary, Meaning({GONE}, time.monotonic()))
        if meaning.now == {GONE}:
            chosen = self.world.random.choice(self.world.standing(name))
            call = Call("flip", "PUT", path, {"version": chosen.number}, action=ALIAS_PUT)
            await self._redefine(canary, {chosen.id}, call)
        else:
            call = Call("flip", "DELETE", path, action="alias.delete")
            await self._redefine(canary, {GONE}, call)

    async def _redefine(self, model: str, versions: Iterable[str], call: Call) -> None:
        """Send a change of what ``model`` means."""
        meaning = self.world.meanings[model]
        meaning.sending(versions, time.monotonic())
        if model == TRIAL:
            self.world.stickiness.forget()
        if await self.client.call(call) is None:
            meaning.refused()
        else:
            meaning.acknowledged(time.monotonic())

    async def _train_one(self, number: int) -> Version | None:
        """Each fourth job is cancelled, each other fourth is paused and resumed on the way."""
        body = {"name": TRAINED, "examples": EXAMPLES, "seed": number, **TRAINING}
        path = "/admin/adapters/train"
        job = await self.client.call(Call("train", "POST", path, body, action="job.create"))
        if job is None:
            return None
        entry = self.world.book.begin("job")
        disturb = {1: self._pause_and_resume, 3: self._cancel}.get(number % 4)
        job = await self._follow(job["id"], disturb)
        if job is None or job["status"] == "failed":
            why = f"no end within {JOB_TIMEOUT_S:g} s" if job is None else str(job["error"])
            self.world.book.lose(entry, why, body, job or {}, self.world.age_s)
            return None
        self.world.book.done(entry, None)
        made = job["loraloop"]["adapter"]
        return None if made is None else self.world.add(made)

    async def _follow(self, job_id: str, disturb: Disturb | None) -> JSON | None:
        """The job at its end; None if that did not come. The end of the soak cancels it."""
        deadline = time.monotonic() + JOB_TIMEOUT_S
        is_cancelled = False
        while time.monotonic() < deadline:
            if not await self.world.may_go_on() and not is_cancelled:
                is_cancelled = True
                await self._cancel(job_id)
            job = await self.client.call(Call("poll", "GET", f"/v1/fine_tuning/jobs/{job_id}"))
            if job is None or job["status"] in JOB_ENDS:
                return job
            if disturb is not None and job["status"] == "running":
                await disturb(job_id)
                disturb = None
            await asyncio.sleep(POLL_S)
        await self._cancel(job_id)
        return None

    async def _cancel(self, job_id: str) -> None:
        await self._change_job(job_id, "cancel")

    async def _pause_and_resume(self, job_id: str) -> None:
        if await self._change_job(job_id, "pause") is not None:
            await self._change_job(job_id, "resume")

    async def _change_job(self, job_id: str, change: str) -> JSON | None:
        """None where the job has ended meanwhile (409)."""
        path, legal = f"/v1/fine_tuning/jobs/{job_id}/{change}", frozenset({409})
        return await self.client.call(
            Call(change, "POST", path, legal=legal, action=f"job.{change}")
        )

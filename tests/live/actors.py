"""Clients of a server that will be killed: each does things, and knows what it was told.

An actor has names of its own, so that it knows exactly what must be there after a restart: what
was acknowledged, and of the one request that was on its way, all or nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import httpx

from artifacts.errors import Conflict, NotFound
from artifacts.registry import Registry
from server.tables import FeedbackRow

MODEL = "tiny-llama"


class Actor(Protocol):
    """``act`` sends one request and notes its answer; ``check`` compares and adopts what is."""

    def act(self, http: httpx.Client, rng: random.Random) -> None: ...

    def check(self, http: httpx.Client, registry: Registry) -> None: ...


def told(response: httpx.Response, *also: int) -> bool:
    """Whether it was done; ``also`` are refusals that the request may meet."""
    assert response.is_success or response.status_code in also, response.text
    return response.is_success


class Importer:
    """Imports versions of one name, moves its aliases, unloads and removes."""

    def __init__(self, name: str, folders: dict[str, Path], registry: Registry) -> None:
        self._name = name
        self._folders = folders  # by content hash
        self._registry = registry  # of this process: removing is the command line's affair
        self._versions: dict[int, str] = {}
        self._aliases: dict[str, int] = {}
        self._highest = 0
        self._importing: str | None = None  # on its way: the content hash
        self._moving: tuple[str, int | None] | None = None  # the alias, and where to

    def act(self, http: httpx.Client, rng: random.Random) -> None:
        if not self._versions:
            self._import(http, rng)
            return
        acts = (self._import, self._move, self._move, self._forget, self._unload, self._remove)
        rng.choice(acts)(http, rng)

    def _import(self, http: httpx.Client, rng: random.Random) -> None:
        self._importing = rng.choice(sorted(self._folders))
        body = {"name": self._name, "path": str(self._folders[self._importing])}
        response = http.post("/admin/adapters/load", json=body)
        if told(response):
            version = response.json()["version"]
            assert version > self._highest, "a number was given twice"
            self._note(version, self._importing)
        self._importing = None

    def _note(self, version: int, content_hash: str) -> None:
        if not self._versions:
            self._aliases["champion"] = version
        self._versions[version] = content_hash
        self._highest = version

    def _move(self, http: httpx.Client, rng: random.Random) -> None:
        alias, version = rng.choice(("champion", "canary")), rng.choice(sorted(self._versions))
        self._moving = alias, version
        url = f"/admin/adapters/{self._name}/aliases/{alias}"
        if told(http.put(url, json={"version": version})):
            self._aliases[alias] = version
        self._moving = None

    def _forget(self, http: httpx.Client, rng: random.Random) -> None:
        self._moving = "canary", None
        if told(http.delete(f"/admin/adapters/{self._name}/aliases/canary"), 404):
            self._aliases.pop("canary")
        self._moving = None

    def _unload(self, http: httpx.Client, rng: random.Random) -> None:
        version = rng.choice(sorted(self._versions))
        told(http.post("/admin/adapters/unload", json={"id": f"{self._name}@{version}"}), 404, 409)

    def _remove(self, http: httpx.Client, rng: random.Random) -> None:
        version = rng.choice(sorted(self._versions))
        with suppress(Conflict):
            self._registry.remove(self._name, version)
            del self._versions[version]

    def check(self, http: httpx.Client, registry: Registry) -> None:
        listed = http.get("/admin/adapters").json()
        own = [version for version in listed["data"] if version["name"] == self._name]
        found = {version["version"]: version["content_hash"] for version in own}
        new = {number: found[number] for number in found.keys() - self._versions.keys()}
        assert {**found, **self._versions} == found, "an acknowledged version is not there"
        assert list(new.values()) in ([], [self._importing]), "a version that nobody imported"
        assert all(number > self._highest for number in new)
        for number, content_hash in new.items():
            self._note(number, content_hash)
        aliases = listed["aliases"].get(self._name, {})
        expected = [dict(self._aliases)]
        if self._moving is not None:
            alias, version = self._moving
            moved = {**self._aliases, alias: version}
            expected.append({key: value for key, value in moved.items() if value is not None})
        assert aliases in expected
        self._aliases, self._importing, self._moving = aliases, None, None


class Experimenter:
    """Starts, re-weights and ends experiments between versions that stay."""

    def __init__(self, arms: list[str]) -> None:
        self._arms = arms
        self._running: dict[str, dict[str, float]] = {}
        self._changing: tuple[str, dict[str, float] | None] | None = None

    def act(self, http: httpx.Client, rng: random.Random) -> None:
        name = rng.choice(("e1", "e2", "e3"))
        url = f"/admin/experiments/{name}"
        if rng.random() < 0.3:
            self._changing = name, None
            if told(http.delete(url), 404):
                del self._running[name]
        else:
            models = rng.sample(self._arms, rng.randint(2, len(self._arms)))
            weights = {model: float(rng.randint(1, 9)) for model in models}
            self._changing = name, weights
            body = [{"model": model, "weight": weight} for model, weight in weights.items()]
            if told(http.put(url, json={"arms": body})):
                self._running[name] = weights
        self._changing = None

    def check(self, http: httpx.Client, registry: Registry) -> None:
        found = {
            each["name"]: {arm["model"]: arm["weight"] for arm in each["arms"]}
            for each in http.get("/admin/experiments").json()["data"]
        }
        expected = [dict(self._running)]
        if self._changing is not None:
            name, weights = self._changing
            changed: dict[str, Any] = {**self._running, name: weights}
            expected.append({key: value for key, value in changed.items() if value is not None})
        assert found in expected
        self._running, self._changing = found, None


class Uploader:
    """Uploads and deletes files."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # id → SHA-256
        self._uploading: str | None = None
        self._deleting: str | None = None

    def act(self, http: httpx.Client, rng: random.Random) -> None:
        if len(self._files) > 3 or (self._files and rng.random() < 0.3):
            self._deleting = rng.choice(sorted(self._files))
            if told(http.delete(f"/v1/files/{self._deleting}")):
                del self._files[self._deleting]
            self._deleting = None
            return
        line = json.dumps({"text": secrets.token_hex(rng.choice((10, 1_000, 300_000)))})
        self._uploading = hashlib.sha256(line.encode()).hexdigest()
        form = {"files": {"file": ("u.jsonl", line)}, "data": {"purpose": "fine-tune"}}
        response = http.post("/v1/files", **form)  # type: ignore[arg-type]
        if told(response):
            self._files[response.json()["id"]] = self._uploading
        self._uploading = None

    def check(self, http: httpx.Client, registry: Registry) -> None:
        listed = http.get("/v1/files").json()["data"]
        found = {file["id"]: file for file in listed if file["filename"] == "u.jsonl"}
        gone, new = self._files.keys() - found.keys(), found.keys() - self._files.keys()
        assert gone <= {self._deleting}, "an acknowledged file is not there"
        assert len(new) <= (self._uploading is not None), "a file that nobody uploaded"
        for id_ in gone:
            del self._files[id_]
        for id_ in new:
            assert self._uploading is not None
            self._files[id_] = self._uploading
        for id_, expected in self._files.items():
            content = http.get(f"/v1/files/{id_}/content").content
            assert (
                hashlib.sha256(content).hexdigest() == expected == found[id_]["loraloop"]["sha256"]
            )
        self._uploading = self._deleting = None


class Rater:
    """Chats and scores answers."""

    def __init__(self, models: list[str]) -> None:
        self._models = models
        self._scores: dict[str, float] = {}
        self._scoring: tuple[str, float] | None = None
        self._unrated: list[str] = []

    def act(self, http: httpx.Client, rng: random.Random) -> None:
        if not self._unrated or rng.random() < 0.6:
            self._chat(http, rng)
        elif self._scores and rng.random() < 0.2:
            self._rate(http, rng.choice(sorted(self._scores)), round(rng.random(), 3))
        else:
            self._rate(http, self._unrated.pop(), round(rng.random(), 3))

    def _chat(self, http: httpx.Client, rng: random.Random) -> None:
        body = {
            "model": rng.choice(self._models),
            "messages": [{"role": "user", "content": f"Hello {rng.random()}"}],
            "max_tokens": rng.randint(1, 20),
            "user": str(rng.random()),
        }
        if rng.random() < 0.5:
            response = http.post("/v1/chat/completions", json=body)
            if told(response):
                self._unrated.append(response.json()["id"])
            return
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as stream:
            assert stream.is_success
            for line in stream.iter_lines():
                if line.startswith("data: {"):
                    id_ = json.loads(line[6:])["id"]
                    if id_ not in self._unrated:  # known to the client from the first chunk on
                        self._unrated.append(id_)

    def _rate(self, http: httpx.Client, id_: str, score: float) -> None:
        self._scoring = id_, score
        if told(http.post("/v1/feedback", json={"id": id_, "score": score})):
            self._scores[id_] = score
        self._scoring = None

    def check(self, http: httpx.Client, registry: Registry) -> None:
        with registry.database.reading() as session:
            rows = list(session.query(FeedbackRow))
        found = {row.answer_id: row.score for row in rows}
        assert len(found) == len(rows)
        expected = [dict(self._scores)]
        if self._scoring is not None:
            expected.append(self._scores | dict([self._scoring]))
        assert found in expected, "acknowledged feedback is not there, or there twice"
        self._scores, self._scoring = found, None
        for id_ in self._unrated[-5:]:  # whatever a client has seen can be scored
            self._rate(http, id_, 0.5)
        self._unrated.clear()


# Of a job, by what was acknowledged last.
STATES_AFTER = {
    "create": {"queued", "validating_files", "running", "interrupted", "succeeded"},
    "resume": {"queued", "validating_files", "running", "interrupted", "succeeded"},
    "pause": {"paused", "interrupted"},
    "cancel": {"cancelled"},
    "end": {"succeeded", "cancelled"},
}


class Trainer:
    """Creates jobs and cancels, pauses and resumes them."""

    def __init__(self, file_id: str) -> None:
        self._file_id = file_id
        self._last: dict[str, str] = {}  # job → what was acknowledged last
        self._asking: tuple[str | None, str] | None = None
        self.num_seen: dict[str, int] = {}  # how often a job was found in a state

    def act(self, http: httpx.Client, rng: random.Random) -> None:
        open_ = sorted(id_ for id_, last in self._last.items() if last not in ("cancel", "end"))
        if len(open_) < 3:
            self._create(http)
            return
        self._ask(http, rng.choice(open_), rng.choice(("cancel", "pause", "resume", "resume")))

    def _create(self, http: httpx.Client) -> None:
        self._asking = None, "create"
        body = {"model": MODEL, "training_file": self._file_id, "suffix": "trained"}
        response = http.post("/v1/fine_tuning/jobs", json=body)
        if told(response):
            self._last[response.json()["id"]] = "create"
        self._asking = None

    def _ask(self, http: httpx.Client, id_: str, what: str) -> None:
        self._asking = id_, what
        if told(http.post(f"/v1/fine_tuning/jobs/{id_}/{what}"), 409):
            self._last[id_] = what
        elif http.get(f"/v1/fine_tuning/jobs/{id_}").json()["status"] in ("succeeded", "cancelled"):
            self._last[id_] = "end"
        self._asking = None

    def check(self, http: httpx.Client, registry: Registry) -> None:
        jobs = {
            job["id"]: job for job in http.get("/v1/fine_tuning/jobs?limit=1000").json()["data"]
        }
        assert self._last.keys() <= jobs.keys(), "an acknowledged job is not there"
        new = jobs.keys() - self._last.keys()
        assert len(new) <= (self._asking == (None, "create")), "a job that nobody created"
        self._last |= dict.fromkeys(new, "create")
        made = {
            version.manifest.settings.get("description"): version for version in registry.list()
        }
        for id_, job in jobs.items():
            status = job["loraloop"]["status"]
            allowed = set(STATES_AFTER[self._last[id_]])
            if self._asking is not None and self._asking[0] == id_:
                allowed |= STATES_AFTER[self._asking[1]]
            assert status in allowed, f"{id_}: {status} after {self._last[id_]}, {job['error']}"
            version = made.get(f"fine-tuning job {id_}")
            if status == "succeeded":
                assert version is not None
                assert job["loraloop"]["adapter"] == version.id
            if status == "cancelled":
                assert version is None, "a cancelled job left a version"
            self.num_seen[status] = self.num_seen.get(status, 0) + 1
            self._adopt(id_, status)
        self._asking = None

    def _adopt(self, id_: str, status: str) -> None:
        ends = {"succeeded": "end", "cancelled": "cancel", "paused": "pause"}
        self._last[id_] = ends.get(status, "create")

    def resume_all(self, http: httpx.Client) -> list[str]:
        """Every job that can be resumed; their ids."""
        resumable = [id_ for id_, last in self._last.items() if last in ("create", "pause")]
        for id_ in resumable:
            with suppress(NotFound):
                told(http.post(f"/v1/fine_tuning/jobs/{id_}/resume"), 409)
        return resumable

"""A version that failed its gate: its job, its number, its aliases and the arms of experiments."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from artifacts.manifest import GateResult
from artifacts.registry import Registry
from server.audit import AuditLog
from server.jobs.view import job_json
from server.paging import Paging
from tests.server.conftest import Live
from tests.server.control.conftest import AdapterEngine, MakeControl, Publish, Trained, running
from tests.server.control.scripts import GOOD, events, reach, submit, until

FAILED = GateResult(name="held_out_loss", value=2.5, threshold=2.0, passed=False)


@pytest.fixture
def http(live: Live) -> Any:
    with httpx.Client(base_url=live.url, timeout=20) as client:
        yield client


def chat(http: httpx.Client, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    return http.post("/v1/chat/completions", json=body)


def overrides(http: httpx.Client) -> list[tuple[str, str]]:
    entries = http.get("/admin/audit").json()["data"]
    found = [each for each in entries if each["action"] == "gate.override"]
    return [(each["subject"], each["detail"]["use"]) for each in found]


async def test_the_job_fails_with_gate_and_names_the_version_that_can_be_asked(
    make_control: MakeControl, registry: Registry, trained: Trained, engine: AdapterEngine
) -> None:
    trained.draft = trained.draft.model_copy(update={"gates": (FAILED,)})
    async with running(make_control()) as control:
        job = await reach(control, await submit(control, *GOOD), "failed")
        assert job.error is not None
        assert job.error["code"] == "gate"
        assert "held_out_loss is 2.5 (threshold 2)" in job.error["message"]
        assert "answers under this id only" in job.error["message"]
        shown = job_json(job, {})
        assert shown["fine_tuned_model"] is None
        assert shown["loraloop"]["adapter"] == "shop@1"
        assert shown["loraloop"]["result"]["gates"] == [FAILED.model_dump()]
        assert engine.known_adapters() == {registry.get("shop", 1).content_hash}  # hot-loaded
        assert registry.aliases("shop") == {}
        told = events(control, job)
        assert not [event for event in told if "New fine-tuned model" in event.message]
        assert (told[-1].level, told[-1].message) == ("error", job.error["message"])
        trail = AuditLog(registry.database)
        await until(lambda: trail.page(Paging(limit=10)).items != [])  # it is told last of all
        assert [each.action for each in trail.page(Paging(limit=10)).items] == ["adapter.publish"]


def test_its_number_answers_and_no_other_name_does(http: httpx.Client, publish: Publish) -> None:
    publish(gates=(FAILED,))
    answer = chat(http, "shop@1")
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-loraloop-adapter"] == "shop@1"
    for model in ("shop", "shop@latest", "shop@champion"):
        assert chat(http, model).status_code == 404
    models = {entry["id"]: entry for entry in http.get("/v1/models").json()["data"]}
    assert list(models) == ["tiny-base", "shop@1"]
    assert models["shop@1"]["gate"] == "failed"
    publish()
    assert chat(http, "shop").headers["x-loraloop-adapter"] == "shop@2"
    (failed, fit) = http.get("/admin/adapters").json()["data"]
    assert (failed["gate"], failed["marks"]) == ("failed", ["gate failed"])
    assert failed["gates"] == [FAILED.model_dump()]
    assert (fit["gate"], fit["marks"]) == ("none", [])


def test_an_alias_to_it_is_a_conflict_unless_forced(http: httpx.Client, publish: Publish) -> None:
    publish()
    publish(gates=(FAILED,))
    path = "/admin/adapters/shop/aliases/champion"
    refused = http.put(path, json={"version": 2})
    assert refused.status_code == 409
    assert "shop@2 failed its gate" in refused.json()["error"]["message"]
    assert chat(http, "shop").headers["x-loraloop-adapter"] == "shop@1"
    assert overrides(http) == []
    assert http.put(path, json={"version": 2, "force": True}).status_code == 200
    assert chat(http, "shop").headers["x-loraloop-adapter"] == "shop@2"
    assert overrides(http) == [("shop@2", "the alias shop@champion")]
    assert http.put(path, json={"version": 1, "force": True}).status_code == 200
    assert len(overrides(http)) == 1  # nothing was overridden by that


def test_an_arm_with_it_is_a_conflict_unless_forced(http: httpx.Client, publish: Publish) -> None:
    publish()
    publish(gates=(FAILED,))
    arms = [{"model": "shop@1", "weight": 1}, {"model": "shop@2", "weight": 1}]
    refused = http.put("/admin/experiments/shop", json={"arms": arms})
    assert refused.status_code == 409
    assert "an arm of the experiment shop may not point to it" in refused.json()["error"]["message"]
    assert http.get("/admin/experiments").json()["data"] == []
    forced = http.put("/admin/experiments/shop", json={"arms": arms, "force": True})
    assert forced.status_code == 200, forced.text
    assert overrides(http) == [("shop@2", "an arm of the experiment shop")]

"""The operator's routes over a real socket: adapters, aliases, experiments, feedback, audit."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from artifacts.home import Home
from artifacts.registry import Registry
from server.settings import Settings
from tests.server.conftest import Live
from tests.server.control.conftest import AdapterEngine, Publish, steps, write_adapter
from tests.server.control.scripts import GOOD
from tests.server.control.test_http_jobs import wait_for


@pytest.fixture
def http(live: Live) -> Any:
    with httpx.Client(base_url=live.url, timeout=20) as client:
        yield client


def adapters(http: httpx.Client) -> dict[str, Any]:
    return {entry["id"]: entry for entry in http.get("/admin/adapters").json()["data"]}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


# --- adapters ---


def test_versions_are_listed_with_their_state(http: httpx.Client, publish: Publish) -> None:
    publish()
    publish(base_fingerprint=None, template_hash=None)
    listed = adapters(http)
    assert list(listed) == ["shop@1", "shop@2"]
    assert listed["shop@1"]["aliases"] == ["champion"]
    assert listed["shop@1"]["marks"] == []
    assert listed["shop@2"]["marks"] == ["foreign"]
    assert listed["shop@1"]["state"]["loaded"] is False
    answer = http.post("/admin/adapters/load", json={"id": "shop@1"})
    assert answer.status_code == 201
    assert (answer.json()["id"], answer.json()["state"]["resident"]) == ("shop@1", True)
    assert answer.json()["load_s"] > 0
    assert adapters(http)["shop@1"]["state"]["loaded"] is True
    answer = http.post("/admin/adapters/unload", json={"id": "shop@champion", "wait": False})
    assert answer.json()["state"]["loaded"] is False
    assert error_of(http.post("/admin/adapters/unload", json={"id": "shop@1"}), 404)


def test_a_folder_is_registered_and_loaded(
    http: httpx.Client, settings: Settings, engine: AdapterEngine
) -> None:
    assert settings.adapter_root is not None
    write_adapter(settings.adapter_root / "theirs", rank=4)
    for path in ("theirs", str(settings.adapter_root / "theirs")):
        answer = http.post("/admin/adapters/load", json={"name": "shop", "path": path})
        assert answer.status_code == 201, answer.text
    assert answer.json()["id"] == "shop@2"
    assert answer.json()["marks"] == ["foreign"]
    assert engine.num_added == 1  # the same bytes


@pytest.mark.parametrize("kind", ["absolute", "dots", "link", "file link", "nul"])
def test_paths_outside_the_roots_are_refused(
    http: httpx.Client, settings: Settings, tmp_path: Path, registry: Registry, kind: str
) -> None:
    outside, root = write_adapter(tmp_path / "outside"), settings.adapter_root
    assert root is not None
    path = {"absolute": str(outside), "dots": "../outside", "nul": "a\0b"}.get(kind, "inside")
    if kind == "link":
        (root / "inside").symlink_to(outside)
    if kind == "file link":
        inside = write_adapter(root / "inside")
        (inside / "adapter_model.safetensors").unlink()
        (inside / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    answer = http.post("/admin/adapters/load", json={"name": "shop", "path": path})
    assert error_of(answer, 400)["code"] == "path_escape"
    assert registry.list() == []
    if kind != "file link":
        answer = http.post("/admin/adapters/train", json={"name": "shop", "path": path})
        assert error_of(answer, 400)["code"] == "path_escape"


def test_a_pickle_and_a_misfit_are_refused(
    http: httpx.Client, settings: Settings, registry: Registry, home: Home, publish: Publish
) -> None:
    assert settings.adapter_root is not None
    pickled = write_adapter(settings.adapter_root / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    answer = http.post("/admin/adapters/load", json={"name": "a", "path": "pickled"})
    assert error_of(answer, 400)["code"] == "pickle_refused"
    write_adapter(settings.adapter_root / "misfit", out=24)
    answer = http.post("/admin/adapters/load", json={"name": "a", "path": "misfit"})
    assert error_of(answer, 400)["code"] == "shape_mismatch"
    assert registry.list() == []
    assert list(home.tmp.iterdir()) == []
    publish(base_fingerprint="0" * 64)
    answer = http.post("/admin/adapters/load", json={"id": "shop@1"})
    assert error_of(answer, 400)["code"] == "base_mismatch"


UNLOADABLE: list[tuple[dict[str, Any], int]] = [
    ({}, 400),
    ({"name": "shop"}, 400),
    ({"path": "theirs"}, 400),
    ({"id": "shop@1", "name": "shop", "path": "x"}, 400),
    ({"name": "Shop!", "path": "theirs"}, 400),
    ({"name": "tiny-base", "path": "theirs"}, 400),
    ({"id": "tiny-base"}, 400),
    ({"id": "nobody@1"}, 404),
    ({"name": "shop", "path": "nothing-here"}, 404),
    ({"id": "shop@1", "force": True}, 400),
]


def test_load_refuses_what_it_cannot_do(http: httpx.Client, subtests: pytest.Subtests) -> None:
    for body, status in UNLOADABLE:
        with subtests.test(body=body):
            assert error_of(http.post("/admin/adapters/load", json=body), status)["message"]


def test_a_truncated_version_breaks_only_its_own_requests(
    http: httpx.Client, api: openai.OpenAI, publish: Publish
) -> None:
    bad = publish()
    publish()
    weights = bad.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.InternalServerError, match="shop@1 is damaged"):
        api.chat.completions.create(model="shop@1", messages=messages)
    assert api.chat.completions.create(model="shop@2", messages=messages).model == "shop@2"
    answer = http.put("/admin/adapters/shop/aliases/canary", json={"version": 1})
    assert error_of(answer, 500)["code"] == "corrupt"
    assert http.get("/admin/adapters/shop/aliases").json()["data"] == {"champion": 1}


# --- train in one call ---


def test_train_from_examples_a_path_and_a_file(
    http: httpx.Client, api: openai.OpenAI, settings: Settings, home: Home
) -> None:
    assert settings.adapter_root is not None
    (settings.adapter_root / "data.jsonl").write_bytes(steps(*GOOD))
    uploaded = api.files.create(file=("a.jsonl", steps(*GOOD)), purpose="fine-tune")
    sources: list[dict[str, Any]] = [
        {"examples": list(GOOD), "rank": 4, "epochs": 2},
        {"path": "data.jsonl", "learning_rate_multiplier": 0.5, "seed": 3},
        {"file_id": uploaded.id, "batch_size": 2},
    ]
    for number, source in enumerate(sources, 1):
        answer = http.post("/admin/adapters/train", json={"name": "shop", **source})
        assert answer.status_code == 200, answer.text
        done = wait_for(api, answer.json()["id"], "succeeded")
        assert done.fine_tuned_model == f"ft:tiny-base:loraloop:shop:{number}"
    assert answer.json()["loraloop"]["settings"] == {"batch_size": 2}
    assert len(list(api.files.list(purpose="fine-tune"))) == 3


UNTRAINABLE: list[dict[str, Any]] = [
    {"name": "shop"},
    {"name": "shop", "examples": []},
    {"name": "shop", "examples": [{"a": 1}], "file_id": "file-1"},
    {"name": "shop", "file_id": "file-none"},
    {"name": "No!", "examples": [{"a": 1}]},
    {"name": "shop", "examples": [{"a": 1}], "rank": 65},
    {"name": "shop", "examples": [{"a": 1}], "lr": 1},
    {"name": "shop", "examples": [{"a": "\ud800"}]},
    {"examples": [{"a": 1}]},
]


def test_a_refused_training_leaves_no_file(
    http: httpx.Client, home: Home, subtests: pytest.Subtests
) -> None:
    headers = {"content-type": "application/json"}
    for body in UNTRAINABLE:
        with subtests.test(body=body):
            content = json.dumps(body)  # lone surrogates as escapes
            answer = http.post("/admin/adapters/train", content=content, headers=headers)
            assert error_of(answer, 400)["message"]
    assert [*home.files.iterdir(), *home.tmp.iterdir(), *home.jobs.iterdir()] == []


# --- aliases ---


def test_an_alias_moves_only_to_what_answers(
    http: httpx.Client, publish: Publish, engine: AdapterEngine, api: openai.OpenAI
) -> None:
    publish()
    second = publish()
    answer = http.put("/admin/adapters/shop/aliases/champion", json={"version": 2})
    assert (answer.status_code, answer.json()["id"], answer.json()["before"]) == (200, "shop@2", 1)
    assert second.content_hash in engine.known_adapters()
    assert http.get("/admin/adapters/shop/aliases/champion").json()["version"] == 2
    messages: Any = [{"role": "user", "content": "hi"}]
    assert api.chat.completions.create(model="shop", messages=messages).model == "shop@2"
    assert error_of(http.put("/admin/adapters/shop/aliases/champion", json={"version": 9}), 404)
    assert error_of(http.put("/admin/adapters/shop/aliases/latest", json={"version": 1}), 400)
    assert error_of(http.put("/admin/adapters/shop/aliases/champion", json={"version": "1"}), 400)
    assert http.put("/admin/adapters/shop/aliases/canary", json={"version": 1}).json()
    assert http.delete("/admin/adapters/shop/aliases/canary").json()["deleted"]
    assert error_of(http.delete("/admin/adapters/shop/aliases/canary"), 404)
    assert error_of(http.get("/admin/adapters/shop/aliases/canary"), 404)
    publish(base_fingerprint="0" * 64)
    assert error_of(http.put("/admin/adapters/shop/aliases/champion", json={"version": 3}), 400)
    assert http.get("/admin/adapters/shop/aliases/champion").json()["version"] == 2


# --- experiments ---


def arms(*pairs: tuple[str, float]) -> dict[str, Any]:
    return {"arms": [{"model": model, "weight": weight} for model, weight in pairs]}


def test_an_experiment_splits_sticks_and_ends(
    http: httpx.Client, publish: Publish, engine: AdapterEngine
) -> None:
    publish()
    publish()
    body = arms(("shop@1", 70), ("tiny-base", 30))
    answer = http.put("/admin/experiments/shop", json=body)
    assert answer.status_code == 200, answer.text
    assert [arm["share"] for arm in answer.json()["arms"]] == [0.7, 0.3]
    assert len(engine.known_adapters()) == 1  # loaded before anybody met it

    def ask(user: str) -> str:
        body = {"model": "shop", "messages": [{"role": "user", "content": "x"}], "user": user}
        answer = http.post("/v1/chat/completions", json={**body, "max_tokens": 1})
        assert answer.headers["x-loraloop-experiment"] == "shop"
        return answer.headers["x-loraloop-arm"]

    first = {f"u{n}": ask(f"u{n}") for n in range(60)}
    assert {user: ask(user) for user in first} == first
    share = Counter(first.values())["shop@1"] / len(first)
    assert abs(share - 0.7) < 4.5 * math.sqrt(0.21 / len(first))

    http.put("/admin/experiments/shop", json=arms(("shop@1", 50), ("tiny-base", 50)))
    moved = {(first[user], now) for user in first if (now := ask(user)) != first[user]}
    assert moved <= {("shop@1", "tiny-base")}
    assert [each["name"] for each in http.get("/admin/experiments").json()["data"]] == ["shop"]
    assert http.delete("/admin/experiments/shop").json()["deleted"]
    assert error_of(http.get("/admin/experiments/shop"), 404)
    assert error_of(http.delete("/admin/experiments/shop"), 404)


def test_arms_are_fixed_versions_whatever_aliases_do(http: httpx.Client, publish: Publish) -> None:
    publish()
    publish()
    body = arms(("shop@champion", 1), ("ft:tiny-base:loraloop:shop:2", 1))
    answer = http.put("/admin/experiments/test", json=body)
    assert [arm["model"] for arm in answer.json()["arms"]] == ["shop@1", "shop@2"]
    http.put("/admin/adapters/shop/aliases/champion", json={"version": 2})
    shown = http.get("/admin/experiments/test").json()
    assert [arm["model"] for arm in shown["arms"]] == ["shop@1", "shop@2"]


UNUSABLE: list[tuple[str, dict[str, Any], int]] = [
    ("shop", arms(("shop@1", 1)), 400),
    ("shop", arms(), 400),
    ("shop", {}, 400),
    ("shop", arms(("shop@1", 1), ("shop@champion", 1)), 400),
    ("shop", arms(("shop@1", 0), ("tiny-base", 1)), 400),
    ("shop", arms(("shop@1", -1), ("tiny-base", 1)), 400),
    ("shop", arms(("shop@1", True), ("tiny-base", 1)), 400),
    ("shop", arms(("shop@9", 1), ("tiny-base", 1)), 404),
    ("shop", arms(("broken@1", 1), ("tiny-base", 1)), 400),
    ("tiny-base", arms(("shop@1", 1), ("tiny-base", 1)), 400),
    ("Bad Name", arms(("shop@1", 1), ("tiny-base", 1)), 400),
    ("shop", {**arms(("shop@1", 1), ("tiny-base", 1)), "shadow": "x"}, 400),
]


def test_unusable_experiments_change_nothing(
    http: httpx.Client, publish: Publish, subtests: pytest.Subtests
) -> None:
    publish()
    publish("broken", base_fingerprint="0" * 64)
    for name, body, status in UNUSABLE:
        with subtests.test(name=name, body=body):
            answer = http.put(f"/admin/experiments/{name}", json=body)
            assert error_of(answer, status)["message"]
    assert http.get("/admin/experiments").json()["data"] == []


# --- feedback ---


def test_feedback_belongs_to_an_answer(http: httpx.Client, publish: Publish) -> None:
    publish()
    body = {"model": "shop", "messages": [{"role": "user", "content": "hi"}]}
    answer_id = http.post("/v1/chat/completions", json=body).json()["id"]
    first = http.post("/v1/feedback", json={"id": answer_id, "score": 0.25})
    assert (first.status_code, first.json()["model"]) == (200, "shop@1")
    second = http.post("/v1/feedback", json={"id": answer_id, "score": 1, "comment": "好"})
    assert (second.json()["score"], second.json()["comment"]) == (1, "好")
    for bad in ({"score": 1.5}, {"score": -0.1}, {"score": "good"}, {"stars": 5}, {"score": True}):
        error_of(http.post("/v1/feedback", json={"id": answer_id, **bad}), 400)
    error_of(http.post("/v1/feedback", json={"id": "chatcmpl-none", "score": 1}), 404)


# --- audit and keys ---


def test_every_change_is_on_the_trail(http: httpx.Client, publish: Publish) -> None:
    publish()
    http.post("/admin/adapters/load", json={"id": "shop@1"})
    http.put("/admin/adapters/shop/aliases/canary", json={"version": 1})
    http.put("/admin/experiments/shop", json=arms(("shop@1", 1), ("tiny-base", 1)))
    http.delete("/admin/experiments/shop")
    http.delete("/admin/adapters/shop/aliases/canary")
    http.post("/admin/adapters/unload", json={"id": "shop@1"})
    http.put("/admin/adapters/shop/aliases/canary", json={"version": 7})  # refused: no entry
    page = http.get("/admin/audit", params={"order": "asc", "limit": 4}).json()
    rest = http.get("/admin/audit", params={"order": "asc", "after": page["last_id"]}).json()
    trail = page["data"] + rest["data"]
    assert [(entry["action"], entry["subject"]) for entry in trail] == [
        ("adapter.load", "shop@1"),
        ("alias.put", "shop@canary"),
        ("experiment.put", "shop"),
        ("experiment.delete", "shop"),
        ("alias.delete", "shop@canary"),
        ("adapter.unload", "shop@1"),
    ]
    assert trail[1]["detail"] == {"version": 1, "before": None}
    assert abs(trail[0]["at"] - time.time()) < 60


CONTROL_ROUTES = [
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/x/content"),
    ("DELETE", "/v1/files/x"),
    ("GET", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/fine_tuning/jobs"),
    ("POST", "/v1/fine_tuning/jobs/x/cancel"),
    ("GET", "/admin/adapters"),
    ("POST", "/admin/adapters/train"),
    ("POST", "/admin/adapters/load"),
    ("POST", "/admin/adapters/unload"),
    ("PUT", "/admin/adapters/a/aliases/b"),
    ("DELETE", "/admin/adapters/a/aliases/b"),
    ("PUT", "/admin/experiments/a"),
    ("DELETE", "/admin/experiments/a"),
    ("GET", "/admin/audit"),
]


def test_control_routes_need_more_than_an_inference_key(
    http: httpx.Client, subtests: pytest.Subtests
) -> None:
    """No admin keys are set, and the request comes through a proxy: not loopback."""
    headers = {"x-forwarded-for": "203.0.113.9"}
    for method, path in CONTROL_ROUTES:
        with subtests.test(method=method, path=path):
            answer = http.request(method, path, headers=headers)
            assert error_of(answer, 403)["code"] == "loopback_only"

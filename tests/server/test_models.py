"""GET /v1/models and the ids that it takes."""

from __future__ import annotations

import httpx

from server.comparison.experiments import Arm
from server.state import Server
from tests.server.conftest import Publish

CHAT = "/v1/chat/completions"


async def test_the_list_has_base_names_and_versions(
    web: httpx.AsyncClient, publish: Publish
) -> None:
    for name in ("shop", "shop", "poet"):
        publish(name)
    body = (await web.get("/v1/models")).json()
    assert body["object"] == "list"
    entries = {entry["id"]: entry for entry in body["data"]}
    assert list(entries) == ["tiny-base", "poet", "poet@1", "shop", "shop@1", "shop@2"]
    assert entries["tiny-base"]["parent"] is None
    assert entries["shop@2"]["parent"] == "tiny-base"
    assert entries["shop"]["root"] == "shop@1"
    assert all(entry["object"] == "model" for entry in body["data"])
    assert all(isinstance(entry["created"], int) for entry in body["data"])


async def test_every_id_that_a_request_may_name_can_be_retrieved(
    web: httpx.AsyncClient, publish: Publish
) -> None:
    publish("shop")
    for model in ("shop", "shop@1", "shop@champion", "shop@latest", "tiny-base:shop@1"):
        entry = (await web.get(f"/v1/models/{model}")).json()
        assert (entry["id"], entry["root"], entry["parent"]) == (model, "shop@1", "tiny-base")
    entry = (await web.get("/v1/models/ft:tiny-base:loraloop:shop:1")).json()
    assert entry["root"] == "shop@1"


async def test_a_base_id_may_hold_slashes(web: httpx.AsyncClient, fake_server: Server) -> None:
    object.__setattr__(fake_server.base, "id", "organisation/tiny")
    assert (await web.get("/v1/models/organisation/tiny")).json()["id"] == "organisation/tiny"
    assert (await web.get("/v1/models/organisation%2Ftiny")).status_code == 200


async def test_an_unknown_model_is_404(web: httpx.AsyncClient, publish: Publish) -> None:
    publish("shop")
    for model in ("nobody", "shop@9", "shop@canary", "shop@0", "ft:other:loraloop:shop:1"):
        response = await web.get(f"/v1/models/{model}")
        assert response.status_code == 404, model
        assert response.json()["error"]["code"] == "model_not_found"


async def ask(web: httpx.AsyncClient, user: str | None = None, session: str | None = None) -> str:
    body = {"model": "shop", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    if user is not None:
        body["user"] = user
    headers = {} if session is None else {"x-session-id": session}
    response = await web.post(CHAT, json=body, headers=headers)
    assert response.headers["x-loraloop-experiment"] == "shop"
    assert response.headers["x-loraloop-arm"] == response.json()["model"]
    return str(response.json()["model"])


async def test_a_running_experiment_answers_the_bare_name_stickily(
    web: httpx.AsyncClient, fake_server: Server, publish: Publish
) -> None:
    publish("shop")
    publish("shop")
    fake_server.experiments.put(
        "shop", [Arm("shop@1", 50), Arm("shop@2", 25), Arm("tiny-base", 25)]
    )
    for i in range(20):
        assert await ask(web, user=f"u{i}") == await ask(web, user=f"u{i}")
        assert await ask(web, session=f"s{i}") == await ask(web, session=f"s{i}")
        assert await ask(web, user=f"u{i}", session="other") == await ask(web, user=f"u{i}")
    assert {await ask(web) for _ in range(60)} == {"shop@1", "shop@2", "tiny-base"}
    fixed = {"model": "shop@2", "messages": [{"role": "user", "content": "hi"}]}
    response = await web.post(CHAT, json=fixed)
    assert response.json()["model"] == "shop@2"
    assert "x-loraloop-experiment" not in response.headers
    report = fake_server.telemetry.report()
    assert set(report["arms"]) == {"shop/shop@1", "shop/shop@2", "shop/tiny-base"}
    assert sum(arm["requests"] for arm in report["arms"].values()) == 180
    assert sum(one["requests"] for one in report["adapters"].values()) == 181

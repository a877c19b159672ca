"""Health, statistics and metrics."""

from __future__ import annotations

from mmap import mmap
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from server.reporting.memory import MemoryMeter
from server.state import Server
from tests.server.conftest import Publish
from tests.server.fakes import FakeEngine

CHAT = "/v1/chat/completions"


async def ask(web: httpx.AsyncClient, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    assert (await web.post(CHAT, json=body)).status_code == 200


async def test_readiness_says_why_not(
    web: httpx.AsyncClient, fake_server: Server, engine: FakeEngine
) -> None:
    assert (await web.get("/health/live")).status_code == 200
    response = await web.get("/health/ready")
    assert (response.status_code, response.json()["reason"]) == (503, "starting")
    fake_server.lifecycle.reason_not_ready = None
    assert (await web.get("/health/ready")).json() == {
        "status": "ready",
        "model": "tiny-base",
        "problems": [],
    }
    engine.is_healthy = False
    response = await web.get("/health/ready")
    assert response.status_code == 503
    assert "engine" in response.json()["reason"]


async def test_the_lifespan_starts_and_stops_the_engine(
    app: FastAPI, fake_server: Server, engine: FakeEngine
) -> None:
    seen = [(engine.is_started, fake_server.lifecycle.reason_not_ready)]
    async with app.router.lifespan_context(app):
        seen.append((engine.is_started, fake_server.lifecycle.reason_not_ready))
    seen.append((engine.is_started, fake_server.lifecycle.reason_not_ready))
    assert seen == [(False, "starting"), (True, None), (False, "draining")]


async def test_stats_have_the_promised_shape(web: httpx.AsyncClient, publish: Publish) -> None:
    version = publish("shop")
    await ask(web, "shop")
    await ask(web, "tiny-base")
    body = (await web.get("/admin/stats")).json()
    assert body["engine"]["kernels"] == "torch"
    assert {"adapters", "arms", "memory"} <= set(body)
    assert set(body["adapters"]) == {version.id, "base"}
    one = body["adapters"][version.id]
    assert {"requests", "errors", "ttft_ms", "tokens_per_s"} <= set(one)
    assert set(one["ttft_ms"]) == {"p50", "p90", "p99"}
    assert 0 < one["ttft_ms"]["p50"] <= one["ttft_ms"]["p90"] <= one["ttft_ms"]["p99"]
    assert one["tokens_per_s"] > 0
    memory = body["memory"]
    assert set(memory) == {
        "rss_bytes",
        "rss_peak_bytes",
        "torch_peak_bytes",
        "kv_bytes",
        "adapters",
    }
    assert memory["rss_peak_bytes"] >= memory["rss_bytes"] > 1_000_000
    assert memory["adapters"] == {version.id: 1000}
    assert memory["kv_bytes"] == 4096


async def test_a_window_is_checked(web: httpx.AsyncClient) -> None:
    await ask(web, "tiny-base")
    body = (await web.get("/admin/stats", params={"window": 60})).json()
    assert body["adapters"]["base"]["requests"] == 1
    for window in ("0", "-1", "1e9", "soon", "nan"):
        response = await web.get("/admin/stats", params={"window": window})
        assert response.status_code == 400, window
        assert response.json()["error"]["param"] == "window"


async def test_reset_forgets_counts_only_when_asked(
    web: httpx.AsyncClient, fake_server: Server
) -> None:
    await ask(web, "tiny-base")
    assert (await web.post("/admin/stats/reset")).status_code == 200
    assert fake_server.telemetry.report()["adapters"]["base"]["requests"] == 1
    await web.post("/admin/stats/reset", params={"scope": "all"})
    assert fake_server.telemetry.report()["adapters"] == {}


def test_the_memory_peak_is_seen_and_can_be_reset() -> None:
    meter = MemoryMeter()
    meter.reset()
    before = meter.rss_peak_bytes()
    with mmap(-1, 64 * 1024 * 1024) as block:  # what is freed of a heap may stay resident
        block[::4096] = b"x" * len(block[::4096])
    peak = meter.rss_peak_bytes()
    assert peak >= before + 50 * 1024 * 1024
    meter.reset()
    assert meter.rss_peak_bytes() < peak - 30 * 1024 * 1024


def test_where_the_kernel_refuses_the_reset_the_looks_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.reporting.memory._CLEAR_REFS", Path("/nowhere/refs"))
    meter = MemoryMeter()
    meter.reset()
    assert meter.rss_peak_bytes() >= meter.rss_bytes() * 0.9


async def test_metrics_parse_and_agree_with_the_statistics(
    web: httpx.AsyncClient, publish: Publish
) -> None:
    publish("shop")
    for model in ("shop", "shop", "tiny-base"):
        await ask(web, model)
    response = await web.get("/metrics")
    samples = {
        (sample.name, sample.labels.get("model_name"), sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    ttft = "vllm:time_to_first_token_seconds"
    assert samples[f"{ttft}_count", "shop@1", None] == 2
    assert samples[f"{ttft}_bucket", "shop@1", "+Inf"] == 2
    assert samples[f"{ttft}_count", "tiny-base", None] == 1
    assert samples["vllm:generation_tokens_total", "shop@1", None] == 12
    assert samples["vllm:num_requests_running", "tiny-base", None] == 0
    assert any(name == "vllm:lora_requests_info" for name, _, _ in samples)
    for name in ("inter_token_latency", "e2e_request_latency", "request_queue_time"):
        assert (f"vllm:{name}_seconds_count", "shop@1", None) in samples


async def test_the_openapi_document_describes_bodies_and_errors(app: FastAPI) -> None:
    document = app.openapi()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert "requestBody" in chat
    assert {"200", "400", "401", "404", "429", "503"} <= set(chat["responses"])
    properties = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "stop", "tools"} <= set(properties)

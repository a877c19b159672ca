"""Unloading waits for running answers or refuses, as asked; a thousand cycles leave nothing."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest

from artifacts.base import open_base
from artifacts.init_base import init_base
from server.adapter_gate import LoadGate
from server.adapters import AdapterService
from server.engine.load import EngineLimits, build_engine
from tests.faults.conftest import Site, error_of
from tests.server.conftest import wait_until
from tests.server.engine.amx import needs_amx
from tests.server.engine.served import random_adapter

LONG = 700  # tokens: longer than whatever is asked meanwhile


@contextmanager
def long_stream(site: Site, model: str) -> Iterator[threading.Thread]:
    """An answer that runs at the beginning of the block, and must end well."""
    ends: list[str] = []
    body = site.body(model, stream=True, max_tokens=LONG)

    def read() -> None:
        with httpx.stream("POST", f"{site.url}/v1/chat/completions", json=body, timeout=60) as r:
            ends.extend(r.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: state(site)["running_requests"] > 0)
    try:
        yield reader
    finally:
        reader.join(60)
    assert "data: [DONE]" in ends[-3:]
    assert any('"finish_reason": "length"' in line or '"length"' in line for line in ends[-6:])


def state(site: Site) -> dict[str, Any]:
    [good] = site.admin("GET", "adapters").json()["data"]
    return cast(dict[str, Any], good["state"])


def unload(site: Site, *, wait: bool, timeout: float = 30) -> httpx.Response:
    url, body = f"{site.url}/admin/adapters/unload", {"id": "good@1", "wait": wait}
    return httpx.post(url, json=body, timeout=timeout)


def test_unload_waits_for_a_running_answer_and_then_frees(site: Site) -> None:
    with long_stream(site, "good") as reader:
        response = unload(site, wait=True)
        assert response.status_code == 200
        reader.join(2)
        assert not reader.is_alive(), "it did not wait"
    assert response.json()["state"]["loaded"] is False
    assert state(site) | {"load_s": None} == {
        "loaded": False,
        "resident": False,
        "running_requests": 0,
        "resident_bytes": 0,
        "load_s": None,
    }
    assert site.chat("good").status_code == 200, "the next request loads it again"


def test_unload_without_wait_refuses_and_hurts_nobody(site: Site) -> None:
    with long_stream(site, "good") as reader:
        message = error_of(unload(site, wait=False), 409, "adapter_in_use")
        assert '{"wait": true}' in message
        assert reader.is_alive()
        assert state(site)["loaded"] is True
    assert unload(site, wait=False).status_code == 200


def test_whoever_gives_up_waiting_does_not_stop_the_unloading(site: Site) -> None:
    with long_stream(site, "good") as reader:
        with pytest.raises(httpx.ReadTimeout):
            unload(site, wait=True, timeout=0.3)
        assert reader.is_alive()

    def trail() -> list[str]:
        entries = site.admin("GET", "audit?subject=good@1").json()["data"]
        return [entry["action"] for entry in entries]

    wait_until(lambda: trail() == ["adapter.unload"])
    assert state(site)["loaded"] is False


def test_a_request_that_comes_meanwhile_is_answered_and_ends_the_unloading(site: Site) -> None:
    responses: list[httpx.Response] = []
    with long_stream(site, "good") as reader:
        waiting = threading.Thread(target=lambda: responses.append(unload(site, wait=True)))
        waiting.start()
        wait_until(lambda: state(site)["loaded"] is False)  # it takes no new requests
        assert site.chat("good").status_code == 200
        waiting.join(10)
        assert reader.is_alive()
        error_of(responses[0], 409, "adapter_in_use")
        assert state(site)["loaded"] is True
    assert unload(site, wait=True).status_code == 200


FORMS = [
    ("llama", {"dtype": "float32", "kernels": "torch"}),
    pytest.param("qwen3", {"dtype": "bfloat16", "kernels": "amx"}, marks=needs_amx),
]


@pytest.mark.parametrize(("family", "options"), FORMS)
async def test_a_thousand_cycles_leave_memory_flat(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Every version is another one, as where a new one is trained each hour."""
    base = open_base(init_base(f"tiny-{family}", tmp_path / "base", dtype="bfloat16"))
    engine = build_engine(base, limits=EngineLimits(kv_cache_tokens=64), **options)
    weights = random_adapter(base, "w", rank=16)
    size = weights.num_parameters * 4
    gate = LoadGate.of(base, engine.max_rank)
    service = AdapterService(engine, cast(Any, _Gate(gate, weights)), max_host_adapters=4)
    engine.start()
    process = psutil.Process()

    async def cycles(first: int, last: int) -> None:
        for number in range(first, last):
            version = cast(Any, _Version(f"{number:064d}"))
            await service.load(version)
            await service.unload(version, wait=bool(number % 2))

    try:
        await cycles(0, 100)
        gc.collect()
        tracemalloc.start()
        before, traced = process.memory_info().rss, tracemalloc.get_traced_memory()[0]
        await cycles(100, 1_100)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - traced < 100_000
        assert process.memory_info().rss - before < 30 * size, "of a thousand adapters"
    finally:
        tracemalloc.stop()
        engine.stop()
    assert engine.known_adapters() == set()
    assert engine.stats().resident_adapters == {}
    for held in (service._bytes, service._recent, service._leases, service._loading):
        assert not held
    assert not service._load_s
    assert not service._lease_ends


class _Version:
    """What the service needs of a version; the weights are the same, their name is not."""

    def __init__(self, content_hash: str) -> None:
        self.content_hash = content_hash
        self.id = f"v@{int(content_hash)}"
        self.manifest = self
        self.num_bytes = 1


class _Gate:
    """Reads no disk: a thousand reads are another test's matter."""

    def __init__(self, gate: LoadGate, weights: Any) -> None:
        self._weights = weights
        self.max_rank = gate.max_rank

    def read(self, version: _Version) -> Any:
        return replace(self._weights, content_hash=version.content_hash)

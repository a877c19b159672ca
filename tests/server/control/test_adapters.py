"""Loading, forgetting and refusing adapters, against the engine's own rules."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.base import Base
from artifacts.errors import AdapterRejected, Corrupt, NotFound
from artifacts.registry import AdapterVersion, Registry
from server.adapter_gate import LoadGate, marks
from server.adapters import AdapterService
from server.engine.errors import AdapterInUse, AdapterMemoryFull, OutOfMemory
from tests.server.control.conftest import AdapterEngine, write_adapter

Publish = Callable[..., AdapterVersion]


@pytest.fixture
def service(engine: AdapterEngine, base: Base) -> AdapterService:
    return AdapterService(engine, LoadGate.of(base, max_rank=4), max_host_adapters=2)


async def test_many_requests_read_a_version_once(
    service: AdapterService, engine: AdapterEngine, publish: Publish
) -> None:
    version = publish()
    await asyncio.gather(*(service.ensure(version) for _ in range(20)))
    await service.ensure(version)
    assert engine.num_added == 1
    assert service.states([version])[0].is_loaded
    assert (service.states([version])[0].load_s or 0) > 0


async def test_a_client_that_leaves_does_not_cancel_the_others(
    service: AdapterService, engine: AdapterEngine, publish: Publish, monkeypatch: Any
) -> None:
    version = publish()
    go = threading.Event()
    add = engine.add_adapter

    def slow_add(key: str, weights: Any) -> None:
        go.wait(5)
        add(key, weights)

    monkeypatch.setattr(engine, "add_adapter", slow_add)
    first, second = (asyncio.create_task(service.ensure(version)) for _ in range(2))
    await asyncio.sleep(0.05)
    first.cancel()
    go.set()
    await second
    assert first.cancelled()
    assert engine.known_adapters() == {version.content_hash}


async def test_a_version_removed_before_it_was_read_is_not_found_and_not_damaged(
    engine: AdapterEngine, base: Base, publish: Publish, registry: Registry
) -> None:
    service = AdapterService(
        engine,
        LoadGate.of(base, max_rank=4),
        max_host_adapters=2,
        is_registered=lambda version: version in registry.list(),
    )
    damaged, removed = publish(), publish()
    (damaged.path / "adapter_model.safetensors").unlink()
    registry.remove(removed.name, removed.version)
    with pytest.raises(NotFound, match=f"{removed.id} has been removed"):
        await service.ensure(removed)
    with pytest.raises(Corrupt):
        await service.ensure(damaged)


async def test_a_known_version_needs_no_disk(
    service: AdapterService, publish: Publish, registry: Registry
) -> None:
    version = publish()
    await service.ensure(version)
    registry.remove(version.name, version.version, force=True)
    async with service.lease(version):
        pass


@pytest.mark.parametrize("fault", ["truncate", "delete", "swap"])
async def test_a_damaged_version_fails_alone_and_recovers(
    service: AdapterService, publish: Publish, fault: str, tmp_path: Path
) -> None:
    bad, good = publish(), publish()
    weights = bad.path / "adapter_model.safetensors"
    saved = weights.read_bytes()
    if fault == "truncate":
        weights.write_bytes(saved[: len(saved) // 2])
    elif fault == "delete":
        weights.unlink()
    else:
        weights.write_bytes((good.path / "adapter_model.safetensors").read_bytes())
    with pytest.raises(Corrupt, match=f"{bad.id} is damaged on disk"):
        await service.ensure(bad)
    await service.ensure(good)
    weights.write_bytes(saved)
    await service.ensure(bad)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"base_fingerprint": "0" * 64}, "base_mismatch"),
        ({"template_hash": "0" * 64}, "template_mismatch"),
        ({"out": 24}, "shape_mismatch"),
    ],
)
async def test_an_adapter_for_another_base_is_refused(
    service: AdapterService, publish: Publish, changes: dict[str, Any], reason: str
) -> None:
    version = publish(**changes)
    with pytest.raises(AdapterRejected) as caught:
        await service.load(version)
    assert caught.value.reason == reason


async def test_an_adapter_made_elsewhere_loads_and_is_marked(
    service: AdapterService, publish: Publish
) -> None:
    version = publish(base_fingerprint=None, template_hash=None)
    await service.load(version)
    assert marks(version.manifest) == ["foreign"]
    assert marks(publish().manifest) == []


async def test_the_least_recently_used_goes_first_but_never_one_in_use(
    service: AdapterService, engine: AdapterEngine, publish: Publish
) -> None:
    first, second, third, fourth = (publish() for _ in range(4))
    await service.ensure(first)
    await service.ensure(second)
    await service.ensure(first)
    await service.ensure(third)  # two fit
    assert engine.known_adapters() == {first.content_hash, third.content_hash}
    engine.users = {first.content_hash: 1}
    async with service.lease(third):
        await service.ensure(fourth)  # both others are in use: hold one more rather than fail
        assert len(engine.known_adapters()) == 3
    engine.users = {}
    await service.ensure(second)
    assert engine.known_adapters() == {fourth.content_hash, second.content_hash}


async def test_unload_frees_and_the_next_request_loads_again(
    service: AdapterService, engine: AdapterEngine, publish: Publish
) -> None:
    version = publish()
    with pytest.raises(NotFound, match="not loaded"):
        await service.unload(version, wait=True)
    await service.load(version)
    await service.unload(version, wait=True)
    assert engine.known_adapters() == set()
    await service.ensure(version)
    assert engine.known_adapters() == {version.content_hash}


async def test_unload_refuses_what_is_in_use_or_about_to_be(
    service: AdapterService, engine: AdapterEngine, publish: Publish
) -> None:
    version = publish()
    async with service.lease(version):
        with pytest.raises(AdapterInUse, match="about to answer"):
            await service.unload(version, wait=False)
        unloading = asyncio.create_task(service.unload(version, wait=True))
        await asyncio.sleep(0.02)
        assert engine.known_adapters() == {version.content_hash}
    await unloading
    assert engine.known_adapters() == set()
    await service.ensure(version)
    engine.users = {version.content_hash: 1}
    with pytest.raises(AdapterInUse, match=version.id):
        await service.unload(version, wait=False)
    assert engine.known_adapters() == {version.content_hash}


async def test_registering_a_folder_is_all_or_nothing(
    service: AdapterService, registry: Registry, engine: AdapterEngine, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "theirs" / "a")
    version, load_s = await service.register(registry, "theirs", folder, [tmp_path])
    assert (version.id, version.manifest.origin) == ("theirs@1", "imported")
    assert load_s > 0
    assert folder.exists()
    engine.is_closed = True  # the engine refuses: the version must not stay
    with pytest.raises(Exception, match="shutting down"):
        await service.register(registry, "theirs", folder, [tmp_path])
    assert [each.id for each in registry.list()] == ["theirs@1"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "missing_weights"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(
                folder / "adapter_model.bin"
            ),
            "pickle_refused",
        ),
        (lambda folder: (folder / "adapter_config.json").unlink(), "missing_config"),
        (
            lambda folder: (folder / "adapter_config.json").write_text(
                json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": True})
            ),
            "unsupported_feature",
        ),
    ],
)
async def test_unusable_folders_are_refused_with_the_reason(
    service: AdapterService,
    registry: Registry,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    folder = write_adapter(tmp_path / "theirs")
    spoil(folder)
    with pytest.raises(AdapterRejected) as caught:
        await service.register(registry, "theirs", folder, [tmp_path])
    assert caught.value.reason == reason
    assert registry.list() == []
    assert list(registry.home.tmp.iterdir()) == []


async def test_a_rank_above_the_limit_is_refused(
    service: AdapterService, registry: Registry, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "theirs", rank=5)
    with pytest.raises(AdapterRejected) as caught:
        await service.register(registry, "theirs", folder, [tmp_path])
    assert caught.value.reason == "rank_too_high"


async def test_a_busy_bank_does_not_hold_up_a_load(
    service: AdapterService, engine: AdapterEngine, publish: Publish, monkeypatch: Any
) -> None:
    async def never(key: str) -> float:
        await asyncio.sleep(60)
        return 60.0

    monkeypatch.setattr(engine, "preload_adapter", never)
    monkeypatch.setattr("server.adapters.PRELOAD_TIMEOUT_S", 0.05)
    began = time.monotonic()
    await service.load(publish())
    assert time.monotonic() - began < 5


async def test_memory_for_adapters_is_bounded_and_the_refusal_has_the_numbers(
    engine: AdapterEngine, base: Base, publish: Publish
) -> None:
    first, second, third = (publish() for _ in range(3))
    size = first.manifest.num_bytes
    service = AdapterService(
        engine,
        LoadGate.of(base, max_rank=4),
        max_host_adapters=9,
        max_host_bytes=2 * size + size // 2,
    )
    await service.ensure(first)
    await service.ensure(second)
    await service.ensure(third)  # forgets the first, which nobody uses
    assert engine.known_adapters() == {second.content_hash, third.content_hash}
    engine.users = {second.content_hash: 1, third.content_hash: 1}
    with pytest.raises(AdapterMemoryFull) as caught:
        await service.ensure(first)
    held, limit = f"{2 * size / 1e6:,.1f} MB", f"{(2 * size + size // 2) / 1e6:,.1f} MB"
    for part in (first.id, f"{size / 1e6:,.1f} MB", held, limit, "LORALOOP_MAX_ADAPTER_BYTES"):
        assert part in str(caught.value)
    assert engine.known_adapters() == {second.content_hash, third.content_hash}
    engine.users = {}
    await service.ensure(first)  # their requests have ended


async def test_an_adapter_larger_than_all_memory_for_adapters_is_refused_before_reading(
    engine: AdapterEngine, base: Base, publish: Publish
) -> None:
    version = publish()
    service = AdapterService(
        engine, LoadGate.of(base, max_rank=4), max_host_adapters=9, max_host_bytes=10
    )
    (version.path / "adapter_model.safetensors").unlink()  # not even opened
    with pytest.raises(AdapterMemoryFull, match="all adapters together may take"):
        await service.ensure(version)


async def test_memory_that_runs_out_while_loading_leaves_the_others(
    service: AdapterService, engine: AdapterEngine, publish: Publish, monkeypatch: Any
) -> None:
    good, bad = publish(), publish()
    await service.ensure(good)

    def fail(key: str, weights: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(engine, "add_adapter", fail)
        with pytest.raises(OutOfMemory, match=f"while loading {bad.id}.*Unload"):
            await service.ensure(bad)
    assert engine.known_adapters() == {good.content_hash}
    await service.ensure(bad)  # memory is back

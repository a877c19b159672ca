"""Adapters between registry and engine: loaded when first needed, forgotten when least needed.

The engine moves adapters between host memory and its device bank; this moves them between disk
and host memory. Knows no HTTP and no job. Everything runs on one event loop, reading in threads.
A version already known to the engine answers without touching the disk again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from artifacts.errors import Corrupt, LoraloopError, NotFound
from server.adapter_gate import LoadGate
from server.engine.errors import AdapterInUse, AdapterMemoryFull, EngineError, UnknownAdapter
from server.engine.request import EngineStats

if TYPE_CHECKING:
    from artifacts.adapter import LoraWeights
    from artifacts.registry import AdapterVersion, Registry

log = logging.getLogger("loraloop.server")

MAX_READS = 2  # at once; more would only make each other slower
PRELOAD_TIMEOUT_S = 30.0


class AdapterEngine(Protocol):
    """The part of the engine that holds adapters."""

    @property
    def max_rank(self) -> int: ...

    def add_adapter(self, key: str, weights: LoraWeights) -> None: ...

    async def preload_adapter(self, key: str) -> float: ...

    async def remove_adapter(self, key: str, *, wait: bool = True) -> None: ...

    def known_adapters(self) -> set[str]: ...

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True, slots=True)
class AdapterState:
    """Where a version is right now."""

    is_loaded: bool  # known to the engine (host memory at least)
    is_resident: bool  # in the device bank
    num_running: int  # requests that hold it there
    resident_bytes: int
    load_s: float | None  # what loading it took, None if it is not loaded


class AdapterService:
    """Makes versions answerable.

    ``max_host_adapters`` is how many are kept at hand; in use wins over it. ``max_host_bytes`` is
    what there is: a version that does not fit beside those in use is refused. ``is_registered`` may
    block; it tells a version that was removed from one whose files are damaged.
    """

    def __init__(
        self,
        engine: AdapterEngine,
        gate: LoadGate,
        *,
        max_host_adapters: int,
        max_host_bytes: int = 1 << 62,
        is_registered: Callable[[AdapterVersion], bool] = lambda version: True,
    ) -> None:
        self.gate = gate
        self._engine = engine
        self._max_host_adapters = max_host_adapters
        self._max_host_bytes = max_host_bytes
        self._is_registered = is_registered
        self._bytes: dict[str, int] = {}  # of known versions and of those being read
        self._recent: OrderedDict[str, None] = OrderedDict()  # content hashes, latest use last
        self._leases: Counter[str] = Counter()
        self._lease_ends: dict[str, asyncio.Event] = {}  # waited for by an unload
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._reads = asyncio.Semaphore(MAX_READS)
        self._load_s: dict[str, float] = {}

    async def ensure(self, version: AdapterVersion) -> None:
        """Make ``version`` known to the engine; at once if it is.

        Raises AdapterRejected, Corrupt, or NotFound if it has been removed; for this version only.
        """
        key = version.content_hash
        self._touch(key)
        if key in self._engine.known_adapters():
            return
        task = self._loading.get(key)
        if task is None:
            task = asyncio.create_task(self._load(version), name=f"load {version.id}")
            self._loading[key] = task
            task.add_done_callback(lambda done: self._loaded(key, done))
        await asyncio.shield(task)  # a client that leaves must not cancel what others wait for

    @asynccontextmanager
    async def lease(self, version: AdapterVersion) -> AsyncIterator[None]:
        """``ensure``, and nobody unloads it inside: submit there, then the engine holds it."""
        key = version.content_hash
        self._leases[key] += 1
        try:
            await self.ensure(version)
            yield
        finally:
            self._leases[key] -= 1
            if not self._leases[key]:
                del self._leases[key]
                if (ended := self._lease_ends.pop(key, None)) is not None:
                    ended.set()

    async def load(self, version: AdapterVersion) -> float:
        """Hot load: known and, room permitting, resident in the device bank. Seconds it took."""
        started = time.perf_counter()
        async with self.lease(version):
            try:
                async with asyncio.timeout(PRELOAD_TIMEOUT_S):
                    await self._engine.preload_adapter(version.content_hash)
            except TimeoutError:  # every slot is busy: it takes its turn with its first request
                log.warning("%s is loaded but found no free slot yet", version.id)
        load_s = time.perf_counter() - started
        self._load_s[version.content_hash] = load_s
        return load_s

    async def register(
        self, registry: Registry, name: str, folder: Path, roots: Sequence[Path]
    ) -> tuple[AdapterVersion, float]:
        """Import a PEFT folder as the next version of ``name`` and load it, or do neither.

        Raises AdapterRejected and what the engine refuses.
        """
        version = await asyncio.to_thread(self.gate.register, registry, name, folder, roots)
        try:
            return version, await self.load(version)
        except (LoraloopError, EngineError):
            await asyncio.to_thread(registry.remove, name, version.version, force=True)
            raise

    async def unload(self, version: AdapterVersion, *, wait: bool) -> None:
        """Free the memory of ``version``. It stays registered: its next request loads it again.

        ``wait`` lets running requests end first. A request that comes meanwhile is answered, by
        loading it again, and ends the unloading.

        Raises:
            NotFound: it is not loaded.
            AdapterInUse: requests run on it and ``wait`` is False, or one came meanwhile.
        """
        key = version.content_hash
        if key not in self._engine.known_adapters():
            raise NotFound(f"{version.id} is not loaded. GET /admin/adapters shows what is.")
        while key in self._leases:  # a request is on its way to the engine
            if not wait:
                raise AdapterInUse(f"{version.id} is about to answer a request: try again.")
            await self._lease_ends.setdefault(key, asyncio.Event()).wait()
        try:
            await self._engine.remove_adapter(key, wait=wait)
        except AdapterInUse as error:
            raise AdapterInUse(
                f"{version.id} still answers requests: wait for their end, or send "
                '{"wait": true} and no further requests for it.'
            ) from error
        except UnknownAdapter:
            pass  # somebody else was quicker
        self._forget(key)

    def states(self, versions: list[AdapterVersion]) -> list[AdapterState]:
        """The state of each version, all from one look at the engine."""
        stats, known = self._engine.stats(), self._engine.known_adapters()
        return [_state(version.content_hash, stats, known, self._load_s) for version in versions]

    def _forget(self, key: str) -> None:
        if key in self._loading or key in self._engine.known_adapters():
            return  # somebody has asked for it again
        self._recent.pop(key, None)
        self._bytes.pop(key, None)
        self._load_s.pop(key, None)

    def _touch(self, key: str) -> None:
        self._recent[key] = None
        self._recent.move_to_end(key)

    async def _load(self, version: AdapterVersion) -> None:
        started = time.perf_counter()
        num_bytes = version.manifest.num_bytes
        async with self._reads:
            await self._make_room(num_bytes)
            self._check_room(version, num_bytes)
            self._bytes[version.content_hash] = num_bytes
            await asyncio.to_thread(self._read_and_add, version)
        self._load_s[version.content_hash] = time.perf_counter() - started

    def _read_and_add(self, version: AdapterVersion) -> None:
        from server.engine.memory import memory_bound  # needs torch

        remedy = "Unload adapters that are not needed, or lower LORALOOP_MAX_HOST_ADAPTERS."
        try:
            with memory_bound(f"loading {version.id}", remedy):
                self._engine.add_adapter(version.content_hash, self.gate.read(version))
        except Corrupt:
            if self._is_registered(version):
                raise
            message = f"{version.id} has been removed. GET /v1/models lists what there is."
            raise NotFound(message) from None

    def _loaded(self, key: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            self._forget(key)

    def _held_bytes(self) -> int:
        known = self._engine.known_adapters()
        return sum(n for key, n in self._bytes.items() if key in known or key in self._loading)

    def _check_room(self, version: AdapterVersion, num_bytes: int) -> None:
        """Raises AdapterMemoryFull if the version does not fit beside what is in use."""
        held = self._held_bytes()
        if held + num_bytes <= self._max_host_bytes:
            return
        needs = f"{version.id} needs {_mb(num_bytes)} of memory"
        if num_bytes > self._max_host_bytes:
            raise AdapterMemoryFull(
                f"{needs}, all adapters together may take {_mb(self._max_host_bytes)}: raise "
                "LORALOOP_MAX_ADAPTER_BYTES."
            )
        raise AdapterMemoryFull(
            f"{needs}, and adapters in use hold {_mb(held)} of the {_mb(self._max_host_bytes)} "
            "there are: try again later, or raise LORALOOP_MAX_ADAPTER_BYTES."
        )

    async def _make_room(self, num_bytes: int) -> None:
        """Forget the adapters used least recently until one more fits."""
        known = self._engine.known_adapters()
        excess = len(known) - self._max_host_adapters + 1
        for key in [*self._recent]:
            if excess <= 0 and self._held_bytes() + num_bytes <= self._max_host_bytes:
                return
            if key not in known or self._leases[key]:
                continue
            try:
                await self._engine.remove_adapter(key, wait=False)
            except (AdapterInUse, UnknownAdapter):
                continue
            self._forget(key)
            excess -= 1
        if excess > 0:
            log.warning(
                "%d adapters are in use at once, max_host_adapters is %d: holding one more",
                len(known) + 1,
                self._max_host_adapters,
            )


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _state(key: str, stats: EngineStats, known: set[str], load_s: dict[str, float]) -> AdapterState:
    return AdapterState(
        is_loaded=key in known,
        is_resident=key in stats.resident_adapters,
        num_running=stats.pinned_adapters.get(key, 0),
        resident_bytes=stats.resident_adapters.get(key, 0),
        load_s=load_s.get(key),
    )

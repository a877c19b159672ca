"""Adapters the engine knows, who uses them, and which of them lie in the device bank.

Three tiers: disk (not known here), host memory in the bank's layout (`add`), device bank (`pin`,
`preload`). Counts of open requests are taken under a lock on the submitting thread, so a removal
can never overtake a request that was accepted before it. Bank writes happen on the engine thread,
between steps, into rows no running sequence uses; while somebody's answer is running, at most one
per step, so that a burst of new adapters delays nobody by more than one write.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from server.engine.errors import AdapterInUse, UnknownAdapter
from server.engine.slots import AdapterSlots

if TYPE_CHECKING:
    from server.engine.bank import PackedAdapter


class AdapterResidency:
    """``write(first_row, adapter)`` copies an adapter into the bank."""

    def __init__(self, slots: AdapterSlots, write: Callable[[int, PackedAdapter], None]) -> None:
        self._slots = slots
        self._write = write
        self._lock = threading.Lock()
        self._host: dict[str, PackedAdapter] = {}
        self._users: Counter[str] = Counter()  # open requests per adapter, waiting ones included
        self._leaving: dict[str, Future[None]] = {}  # removed as soon as the last user ends
        self._preloads: list[tuple[str, Future[None]]] = []  # engine thread only
        self._may_write = True  # in this step; engine thread only
        self._is_busy = False  # somebody's answer is running; engine thread only
        self.num_writes = 0

    # --- any thread -----------------------------------------------------------------------------

    def add(self, key: str, adapter: PackedAdapter) -> None:
        """Make an adapter known. Adding one that is being removed keeps it.

        The key is a content hash, so one known already stays: the bank may be reading it.
        """
        with self._lock:
            self._host.setdefault(key, adapter)
            leaving = self._leaving.pop(key, None)
        if leaving is not None:
            leaving.set_exception(AdapterInUse(f"adapter {key} was added again while leaving"))

    def known(self) -> set[str]:
        with self._lock:
            return set(self._host) - set(self._leaving)

    def retain(self, key: str) -> None:
        """Count one more open request.

        Raises:
            UnknownAdapter: the key was never added, or is being removed.
        """
        with self._lock:
            if key not in self._host or key in self._leaving:
                raise UnknownAdapter(f"adapter {key} is not loaded")
            self._users[key] += 1

    def remove(self, key: str, *, wait: bool) -> Future[None]:
        """Refuse new requests and drop the adapter once `collect` finds it unused.

        Raises:
            UnknownAdapter: nothing to remove.
            AdapterInUse: ``wait`` is False and requests are open.
        """
        with self._lock:
            if key not in self._host:
                raise UnknownAdapter(f"adapter {key} is not loaded")
            if not wait and self._users[key]:
                raise AdapterInUse(f"adapter {key} has {self._users[key]} open requests")
            if key not in self._leaving:
                self._leaving[key] = Future()
                # A client that leaves must not cancel a removal others may wait for.
                self._leaving[key].set_running_or_notify_cancel()
            return self._leaving[key]

    def resident_bytes(self) -> dict[str, int]:
        with self._lock:
            return {k: self._host[k].num_bytes for k in self._slots.keys if k in self._host}

    # --- engine thread --------------------------------------------------------------------------

    def place(self, key: str | None) -> tuple[int, int] | None:
        """Bank rows of a pinned adapter, None for the base."""
        return None if key is None else self._slots.rows(key)

    def begin_step(self, *, is_busy: bool) -> None:
        """A new step, in which one adapter may be written, or any number if nobody is running."""
        self._may_write, self._is_busy = True, is_busy

    def pin(self, key: str) -> bool:
        """Make an adapter resident and hold it.

        False if the bank is full of pinned ones or this step's write is spent. Raises what the
        write raises; the adapter is then not resident.
        """
        if not self._make_resident(key):
            return False
        self._slots.pin(key)
        return True

    def unpin(self, key: str) -> None:
        self._slots.unpin(key)

    def can_place(self, key: str, giving_up: frozenset[str] = frozenset()) -> bool:
        """Whether a place is free, idle, or would be if nobody held those in ``giving_up``."""
        return key in self._slots or self._slots.can_place(self._host[key].num_rows, giving_up)

    def prefetch(self, key: str, keep: frozenset[str]) -> bool:
        """Make resident if that costs none of ``keep`` its place; True if no write is left."""
        # An error is told by the `pin` to come, to the request that needs the adapter.
        with contextlib.suppress(Exception):
            self._make_resident(key, keep)
        return not self._may_write

    def pins(self) -> dict[str, int]:
        return {k: n for k in self._slots.keys if (n := self._slots.num_pins(k))}

    def release(self, key: str) -> None:
        """One open request ended."""
        with self._lock:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]

    @property
    def has_preloads(self) -> bool:
        return bool(self._preloads)

    def preload(self, key: str, done: Future[None]) -> None:
        """Make resident when there is room; `collect` completes ``done``."""
        self._preloads.append((key, done))

    def collect(self) -> None:
        """Finish removals whose last user has gone, and preloads that have found room."""
        with self._lock:
            gone = [k for k in self._leaving if not self._users[k]]
            finished = [self._leaving.pop(k) for k in gone]
            for key in gone:
                del self._host[key]
        for key in gone:
            self._slots.evict(key)
        for future in finished:
            future.set_result(None)
        waiting, self._preloads = self._preloads, []
        for key, done in waiting:
            if key not in self._host:
                done.set_exception(UnknownAdapter(f"adapter {key} is not loaded"))
                continue
            try:
                is_resident = self._make_resident(key)
            except Exception as error:  # whatever the write may raise; the bank is as before
                done.set_exception(error)
                continue
            if is_resident:
                done.set_result(None)
            else:
                self._preloads.append((key, done))

    def fail_waiting(self, error: Exception) -> None:
        """The engine ends: nobody may wait for a removal or preload that will never come."""
        with self._lock:
            futures = list(self._leaving.values()) + [done for _, done in self._preloads]
            self._leaving.clear()
            self._preloads.clear()
        for future in futures:
            future.set_exception(error)

    def _make_resident(self, key: str, keep: frozenset[str] = frozenset()) -> bool:
        if key in self._slots:
            return True
        if not self._may_write:
            return False
        adapter = self._host[key]
        row = self._slots.place(key, adapter.num_rows, keep=keep)
        if row is None:
            return False
        self._may_write = not self._is_busy
        self.num_writes += 1
        try:
            self._write(row, adapter)
        except Exception:
            self._slots.evict(key)  # half written: nobody may find it
            raise
        return True

"""Which adapters are resident in the device bank, and at which rows. Policy only, no tensors.

The bank is ``num_rows`` rank rows shared by all resident adapters. An adapter of rank r occupies r
consecutive rows, placed as low as possible, so that a step multiplies by few rows it has no use
for. Running sequences pin their adapter; unpinned ones stay until their place is needed, least
recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(slots=True)
class Resident:
    """One adapter's place in the bank."""

    first_row: int
    num_rows: int
    num_pins: int = 0


class AdapterSlots:
    """At most ``max_adapters`` resident adapters in ``num_rows`` rows."""

    def __init__(self, max_adapters: int, num_rows: int) -> None:
        self.max_adapters = max_adapters
        self.num_rows = num_rows
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently used first

    def __contains__(self, key: str) -> bool:
        return key in self._residents

    @property
    def keys(self) -> list[str]:
        return list(self._residents)

    def rows(self, key: str) -> tuple[int, int]:
        """First row and number of rows of a resident adapter."""
        resident = self._residents[key]
        return resident.first_row, resident.num_rows

    def num_pins(self, key: str) -> int:
        resident = self._residents.get(key)
        return 0 if resident is None else resident.num_pins

    def place(self, key: str, rank: int, *, keep: frozenset[str] = frozenset()) -> int | None:
        """Find rows for a new adapter, evicting unpinned ones if needed; None if all are in use.

        None of ``keep`` is evicted, and nobody is evicted in vain. Returns the first row; the
        caller copies the weights there before the next step.
        """
        idle = [k for k, r in self._residents.items() if r.num_pins == 0 and k not in keep]
        plan = self._plan(rank, idle)
        if plan is None:
            return None
        row, evicted = plan
        for gone in evicted:
            del self._residents[gone]
        self._residents[key] = Resident(row, rank)
        return row

    def can_place(self, rank: int, giving_up: frozenset[str]) -> bool:
        """Whether `place` would succeed if the adapters in ``giving_up`` were not pinned."""
        idle = [k for k, r in self._residents.items() if r.num_pins == 0 or k in giving_up]
        return self._plan(rank, idle) is not None

    def pin(self, key: str) -> None:
        self._residents[key].num_pins += 1
        self._residents.move_to_end(key)

    def unpin(self, key: str) -> None:
        resident = self._residents[key]
        assert resident.num_pins > 0, f"adapter {key} unpinned more often than pinned"
        resident.num_pins -= 1

    def evict(self, key: str) -> None:
        """Give the rows back. Only for adapters that nothing has pinned."""
        resident = self._residents.pop(key, None)
        assert resident is None or resident.num_pins == 0, f"evicting pinned adapter {key}"

    def _plan(self, rank: int, idle: list[str]) -> tuple[int, list[str]] | None:
        """First row for ``rank`` rows, and which of ``idle`` have to go for it: the earlier ones
        sooner, and only those that stand in the way."""
        evicted: list[str] = []
        for key in [None, *idle]:
            if key is not None:
                evicted.append(key)
            if self._lowest_gap(rank, evicted) is not None:
                break
        else:
            return None
        for key in evicted[::-1]:
            others = [k for k in evicted if k != key]
            if self._lowest_gap(rank, others) is not None:
                evicted = others
        row = self._lowest_gap(rank, evicted)
        assert row is not None
        return row, evicted

    def _lowest_gap(self, rank: int, evicted: list[str]) -> int | None:
        if len(self._residents) - len(evicted) >= self.max_adapters:
            return None
        staying = [r for k, r in self._residents.items() if k not in evicted]
        row = 0
        for resident in sorted(staying, key=lambda r: r.first_row):
            if resident.first_row - row >= rank:
                return row
            row = resident.first_row + resident.num_rows
        return row if self.num_rows - row >= rank else None

"""Device memory of all resident adapters, and their contribution to a packed batch.

For a group of linears that read the same input (q/k/v, gate/up) the bank keeps

    A   [num_projections, num_rows, in]     rows of all adapters side by side
    B_p [num_rows, out_p]                   one per projection, already times the LoRA scaling

so that one product with A serves the whole group and every adapter, and ``y_p += h_p @ B_p``
follows (LoRA: Hu et al., 2021; batching across adapters: Punica, Chen et al., 2023). Decode tokens
of different adapters share one product over the rows in use, with a mask that silences the rows of
other adapters. Prompt chunks use their own adapter's rows only: a mask would multiply their cost
by the number of adapters. A batch of base requests touches nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.engine.linear import Linear, make_linear

if TYPE_CHECKING:
    from artifacts.adapter import LoraPair, LoraWeights


MAX_COPIES = 3  # of the rows in use, in the layout that the kernels read


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Tokens ``start:stop`` use bank rows ``first_row:last_row``.

    ``mask [stop - start, 1, last_row - first_row]`` is None where all tokens share one adapter.
    """

    start: int
    stop: int
    first_row: int
    last_row: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Linears that read the same input: their module paths and output widths."""

    modules: tuple[str, ...]
    in_features: int
    out_features: tuple[int, ...]


PackedGroup = tuple[Tensor, tuple[Tensor, ...]]  # A and one B per projection


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """One adapter in the bank's layout, in host memory."""

    num_rows: int
    groups: tuple[PackedGroup | None, ...]  # None: adapter leaves it alone
    num_bytes: int


class GroupBank:
    """The rows of one group, and the product with them."""

    def __init__(
        self, shape: GroupShape, num_rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        num_projections = len(shape.modules)
        # Zeros are mapped lazily on the CPU: rows never used cost no memory.
        self.a = torch.zeros(
            (num_projections, num_rows, shape.in_features), dtype=dtype, device=device
        )
        self.b = [
            torch.zeros((num_rows, n), dtype=dtype, device=device) for n in shape.out_features
        ]
        self._columns: list[slice] = []
        first = 0
        for n in shape.out_features:
            self._columns.append(slice(first, first + n))
            first += n
        self._windows: dict[tuple[int, int], tuple[Linear, list[Linear]]] = {}

    def write(self, first_row: int, num_rows: int, weights: PackedGroup | None) -> None:
        rows = slice(first_row, first_row + num_rows)
        self._windows.clear()
        if weights is None:
            self.a[:, rows].zero_()
            for b in self.b:
                b[rows].zero_()
            return
        self.a[:, rows].copy_(weights[0])
        for b, source in zip(self.b, weights[1], strict=True):
            b[rows].copy_(source)

    def add(self, x: Tensor, y: Tensor, segments: Sequence[LoraSegment]) -> None:
        """Add all adapters' parts of ``y [num_tokens, sum(out)]`` for ``x [num_tokens, in]``."""
        for segment in segments:
            tokens = slice(segment.start, segment.stop)
            down, ups = self._window(segment.first_row, segment.last_row)
            # [tokens, projections, rows]
            h = down(x[tokens]).view(segment.stop - segment.start, len(ups), -1)
            if segment.mask is not None:
                h *= segment.mask
            for i, (up, columns) in enumerate(zip(ups, self._columns, strict=True)):
                y[tokens, columns].add_(up(h[:, i]))

    def _window(self, first_row: int, last_row: int) -> tuple[Linear, list[Linear]]:
        """The products with a range of rows, in the form that is fastest on the device.

        Which ranges are in use changes with the mix of running adapters, much less often than
        steps are taken. Each kept range is a copy, so together they hold a bounded number of rows:
        room for every adapter alone, for all of them together, and for one mix before that.
        """
        key = (first_row, last_row)
        window = self._windows.pop(key, None)
        if window is None:
            rows = slice(first_row, last_row)
            down = make_linear(self.a[:, rows].flatten(0, 1), None, "none")
            ups = [make_linear(b[rows].t(), None, "none") for b in self.b]
            window = (down, ups)
            self._make_room(key)
        self._windows[key] = window  # the latest use stands last
        return window

    def _make_room(self, new: tuple[int, int]) -> None:
        """Forget the ranges used longest ago until the new one fits."""
        ranges = [*self._windows, new]
        limit = MAX_COPIES * max(last for _, last in ranges)
        total = sum(last - first for first, last in ranges)
        for first, last in ranges:
            if total <= limit:
                return
            self._windows.pop((first, last), None)
            total -= last - first


class AdapterBank:
    """All groups of the model, in the order the decoder meets them."""

    def __init__(
        self,
        shapes: Sequence[GroupShape],
        num_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_rows = num_rows
        self.shapes = tuple(shapes)
        self._dtype = dtype
        self.groups = [GroupBank(shape, num_rows, dtype, device) for shape in shapes]

    def pack(self, weights: LoraWeights) -> PackedAdapter:
        """Bring an adapter into the bank's layout. Runs in the caller's thread, off the hot path.

        Modules and shapes have passed `artifacts.adapter.check_adapter`.
        """
        groups = tuple(
            _pack_group(shape, weights.pairs, weights.rank, self._dtype) for shape in self.shapes
        )
        num_bytes = sum(
            a.nbytes + sum(t.nbytes for t in b) for a, b in (g for g in groups if g is not None)
        )
        return PackedAdapter(weights.rank, groups, num_bytes)

    def write(self, first_row: int, adapter: PackedAdapter) -> None:
        """Fill rows that no running sequence uses."""
        for bank, group in zip(self.groups, adapter.groups, strict=True):
            bank.write(first_row, adapter.num_rows, group)


def _pack_group(
    shape: GroupShape, pairs: Mapping[str, LoraPair], rank: int, dtype: torch.dtype
) -> PackedGroup | None:
    present = [pairs.get(module) for module in shape.modules]
    if not any(present):
        return None
    a = torch.zeros((len(present), rank, shape.in_features), dtype=dtype)
    b = tuple(torch.zeros((rank, n), dtype=dtype) for n in shape.out_features)
    for i, pair in enumerate(present):
        if pair is not None:
            r = pair.a.shape[0]
            a[i, :r] = pair.a.to(dtype)
            b[i][:r] = (pair.b.float() * pair.scaling).t().to(dtype)
    return a, b


def plan_segments(
    spans: Sequence[tuple[int, int, int | None, int]],
    num_decode: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[LoraSegment, ...]:
    """Turn ``(start, stop, first_row | None, num_rows)`` per chunk into products.

    Chunks are in token order; the first ``num_decode`` tokens are single-token chunks.
    """
    decode = [s for s in spans if s[1] <= num_decode]
    prefill = [s for s in spans if s[1] > num_decode]
    segments = [
        LoraSegment(start, stop, row, row + rank, None)
        for start, stop, row, rank in prefill
        if row is not None
    ]
    users = [s for s in decode if s[2] is not None]
    if users:
        segments.insert(0, _decode_segment(users, dtype, device))
    return tuple(segments)


def _decode_segment(
    users: Sequence[tuple[int, int, int | None, int]], dtype: torch.dtype, device: torch.device
) -> LoraSegment:
    start, stop = users[0][0], users[-1][1]
    rows = [(row, row + rank) for _, _, row, rank in users if row is not None]
    first, last = min(r[0] for r in rows), max(r[1] for r in rows)
    if len(set(rows)) == 1 and len(users) == stop - start:
        return LoraSegment(start, stop, first, last, None)
    mask = torch.zeros((stop - start, 1, last - first), dtype=dtype)
    for (token, _, _, _), (low, high) in zip(users, rows, strict=True):
        mask[token - start, 0, low - first : high - first] = 1
    return LoraSegment(start, stop, first, last, mask.to(device))

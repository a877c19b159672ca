"""Pack, forward, sample on a CPU with matrix tiles: `server.engine.runner`'s protocol over AMX."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Rows
from weakref import WeakValueDictionary

import torch

from server.engine.amx.decoder import AmxCache, AmxDecoder, PackedStep
from server.engine.amx.library import TILE, LoraSegment, Span
from server.engine.amx.weights import PackedLora
from server.engine.memory import memory_bound
from server.engine.request import Result
from server.engine.runner import BankRows
from server.engine.sampling import results_of, scored_rows
from server.engine.scheduler import Chunk


class AmxRunner:
    """Adapters are read where they lie in host memory: there is no bank to copy them to.

    `AdapterResidency` owns them. It forgets one only when nobody uses it, and its memory goes then.
    """

    def __init__(self, decoder: AmxDecoder, cache: AmxCache, eos_token_ids: frozenset[int]) -> None:
        self._decoder = decoder
        self._cache = cache
        self._eos_token_ids = eos_token_ids
        self._adapters: WeakValueDictionary[int, PackedLora] = WeakValueDictionary()  # by first row
        self.num_forward_passes = 0

    def execute(self, chunks: Rows[Chunk], places: Rows[BankRows | None]) -> list[Result]:
        # Rows of one adapter lie side by side, so that a tile of rows meets few adapters.
        order = sorted(range(len(chunks)), key=lambda i: places[i] or (-1, 0))
        packed = [chunks[i] for i in order]
        with memory_bound("computing a step"), torch.inference_mode():
            step = self._pack(packed, [places[i] for i in order])
            logits = self._decoder.forward(step)
            self.num_forward_passes += 1
            found = results_of(logits, packed, self._eos_token_ids)
        results: list[Result] = [None] * len(chunks)
        for i, result in zip(order, found, strict=True):
            results[i] = result
        return results

    def write_adapter(self, first_row: int, adapter: object) -> None:
        assert isinstance(adapter, PackedLora)  # made by the pack function that goes with us
        assert adapter.num_rows <= self._decoder.limits.max_rank, adapter.num_rows
        rows = range(first_row, first_row + adapter.num_rows)
        for row, other in list(self._adapters.items()):  # evicted ones whose rows these were
            if row < rows.stop and rows.start < row + other.num_rows:
                del self._adapters[row]
        self._adapters[first_row] = adapter

    def scrub(self, blocks: Rows[int]) -> None:
        self._cache.clear(list(blocks))

    def _pack(self, chunks: Rows[Chunk], places: Rows[BankRows | None]) -> PackedStep:
        token_ids, positions, slots = array("i"), array("i"), array("i")
        tables, sampled_rows = array("i"), array("i")
        spans: list[tuple[int, Chunk, int]] = []  # first row, chunk, where its blocks start
        segments: list[tuple[int, int, int]] = []  # adapter's first bank row, first row, end row
        for chunk, place in zip(chunks, places, strict=True):
            start, end = chunk.start, chunk.start + chunk.num_tokens
            table = chunk.seq.block_table
            spans.append((len(token_ids), chunk, len(tables)))
            if place is not None:
                _extend(segments, place[0], len(token_ids), chunk.num_tokens)
            tables.extend(table[: -(-end // TILE)])
            token_ids.extend(chunk.seq.token_ids[start:end])
            positions.extend(range(start, end))
            slots.extend([table[p // TILE] * TILE + p % TILE for p in range(start, end)])
            if chunk.is_last:
                sampled_rows.append(len(token_ids) - 1)
        sampled_rows.extend(scored_rows(chunks, [row for row, _, _ in spans]))
        first_block = tables.buffer_info()[0]
        c_spans = (Span * len(spans))(
            *(
                Span(first_block + 4 * at, row, chunk.num_tokens, chunk.start)
                for row, chunk, at in spans
            )
        )
        c_segments = (LoraSegment * len(segments))(
            *(
                LoraSegment(self._adapters[row].address, first, end, self._adapters[row].num_rows)
                for row, first, end in segments
            )
        )
        return PackedStep(token_ids, positions, slots, tables, sampled_rows, c_spans, c_segments)


def _extend(segments: list[tuple[int, int, int]], row: int, first: int, num: int) -> None:
    """Add rows of an adapter, joining them to its rows just before."""
    end = first + num
    if segments and segments[-1][0] == row and segments[-1][2] == first:
        first = segments.pop()[1]
    segments.append((row, first, end))

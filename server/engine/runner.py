"""Pack, forward, sample: the only file that calls the model.

A runner changes no sequence. Running the same chunks again writes the same K/V to the same places
and draws the same tokens, which is what lets the engine repeat a failed step in halves.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

import torch
from torch import Tensor

from server.engine.bank import AdapterBank, PackedAdapter, plan_segments
from server.engine.cache import AttentionPlan, KVCache, PrefillSpan
from server.engine.decoder import Decoder, PackedInput
from server.engine.memory import memory_bound
from server.engine.request import Result
from server.engine.sampling import results_of, scored_rows
from server.engine.scheduler import Chunk

BankRows = tuple[int, int]  # first row, number of rows


class Runner(Protocol):
    """What the engine needs of a model, whatever form it has."""

    num_forward_passes: int

    def execute(self, chunks: Rows[Chunk], places: Rows[BankRows | None]) -> list[Result]:
        """Run one step; per chunk what came of it, None where the prompt just goes on.

        ``places`` are the bank rows of each chunk's adapter, None for the base. Raises OutOfMemory
        where memory ran out (`memory.memory_bound`), which the engine answers with a smaller step;
        any other exception makes it look for the request that is to blame.
        """
        ...

    def write_adapter(self, first_row: int, adapter: PackedAdapter) -> None:
        """Copy an adapter into rows that no running sequence uses."""
        ...

    def scrub(self, blocks: Rows[int]) -> None:
        """Overwrite KV blocks that may hold NaN with zeros, before somebody else gets them."""
        ...


class TorchRunner:
    """Runs the decoder with torch, on any device."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        bank: AdapterBank,
        eos_token_ids: frozenset[int],
        device: torch.device,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._bank = bank
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._dtype = cache.keys[0].dtype
        self.num_forward_passes = 0

    def execute(self, chunks: Rows[Chunk], places: Rows[BankRows | None]) -> list[Result]:
        # Decode rows of one adapter lie side by side, so they need no mask among themselves.
        order = sorted(
            range(len(chunks)), key=lambda i: (not chunks[i].is_decode, places[i] or (-1, 0))
        )
        packed = [chunks[i] for i in order]
        with memory_bound("computing a step"), torch.inference_mode():
            step = self._pack(packed, [places[i] for i in order])
            logits = self._decoder.forward(step, self._cache, self._bank)
            self.num_forward_passes += 1
            found = results_of(logits, packed, self._eos_token_ids)
        results: list[Result] = [None] * len(chunks)
        for i, result in zip(order, found, strict=True):
            results[i] = result
        return results

    def write_adapter(self, first_row: int, adapter: PackedAdapter) -> None:
        with memory_bound("filling an adapter's place"), torch.inference_mode():
            self._bank.write(first_row, adapter)

    def scrub(self, blocks: Rows[int]) -> None:
        index = torch.tensor(list(blocks), dtype=torch.long, device=self._device)
        with torch.inference_mode():
            for tensor in (*self._cache.keys, *self._cache.values):
                tensor.index_fill_(0, index, 0)

    def _pack(self, chunks: Rows[Chunk], places: Rows[BankRows | None]) -> PackedInput:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        logits_rows: list[int] = []
        starts: list[int] = []
        spans: list[tuple[int, int, int | None, int]] = []
        size = self._cache.block_size
        for chunk, place in zip(chunks, places, strict=True):
            start = len(token_ids)
            starts.append(start)
            where = range(chunk.start, chunk.start + chunk.num_tokens)
            token_ids += chunk.seq.token_ids[where.start : where.stop]
            positions += where
            table = chunk.seq.block_table
            slots += [table[p // size] * size + p % size for p in where]
            row, rank = place if place is not None else (None, 0)
            spans.append((start, len(token_ids), row, rank))
            if chunk.is_last:
                logits_rows.append(len(token_ids) - 1)
        num_decode = sum(c.is_decode for c in chunks)
        return PackedInput(
            token_ids=self._ids(token_ids),
            positions=self._ids(positions),
            logits_rows=self._ids(logits_rows + scored_rows(chunks, starts)),
            attention=self._plan_attention(chunks, num_decode, self._ids(slots)),
            lora=plan_segments(spans, num_decode, self._dtype, self._device),
        )

    def _plan_attention(self, chunks: Rows[Chunk], num_decode: int, slots: Tensor) -> AttentionPlan:
        decode_blocks, decode_mask = self._plan_decode(chunks[:num_decode])
        prefills: list[PrefillSpan] = []
        start = num_decode
        for chunk in chunks[num_decode:]:
            stop = start + chunk.num_tokens
            blocks = mask = None
            if chunk.start > 0:
                num_blocks = -(-(chunk.start + chunk.num_tokens) // self._cache.block_size)
                blocks = self._ids(chunk.seq.block_table[:num_blocks])
                mask = self._causal_mask(chunk.num_tokens, chunk.start)
            prefills.append(PrefillSpan(start, stop, chunk.start, blocks, mask))
            start = stop
        return AttentionPlan(slots, num_decode, decode_blocks, decode_mask, tuple(prefills))

    def _plan_decode(self, chunks: Rows[Chunk]) -> tuple[Tensor | None, Tensor | None]:
        if not chunks:
            return None, None
        size = self._cache.block_size
        lengths = [c.start + 1 for c in chunks]
        num_blocks = -(-max(lengths) // size)
        tables: list[int] = []
        for chunk in chunks:
            table = chunk.seq.block_table[:num_blocks]
            tables += table
            tables += [table[0]] * (num_blocks - len(table))  # any block: the mask hides it
        ends = torch.tensor(lengths)[:, None]  # [num_decode, 1]
        hidden = torch.arange(num_blocks * size)[None] >= ends
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -torch.inf)
        return self._ids(tables), mask[:, None, None].to(self._device)

    def _causal_mask(self, num_tokens: int, num_context: int) -> Tensor:
        """Additive ``[chunk, context + chunk]``: all of the context, then the chunk's triangle."""
        mask = torch.full(
            (num_tokens, num_context + num_tokens),
            -torch.inf,
            dtype=self._dtype,
            device=self._device,
        )
        return mask.triu_(num_context + 1)

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

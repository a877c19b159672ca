"""Pack, forward, sample with an exported model: `server.engine.runner`'s protocol over its calls.

A step is one call for all running answers and one for each prompt, and that for each adapter,
because an exported graph has one adapter at a time.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from artifacts.exported.graph import AdapterInputs, ExportedModel, GraphBatch
from server.engine.errors import NonFiniteLogits
from server.engine.graph_cache import GraphCache
from server.engine.graph_plan import Call, RowTable, plan_calls
from server.engine.memory import memory_bound
from server.engine.request import Result
from server.engine.runner import BankRows
from server.engine.sampling import results_of
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class GraphAdapter:
    """An adapter as the graph's inputs; they are handed over where they lie."""

    num_rows: int
    inputs: AdapterInputs
    num_bytes: int


class GraphRunner:
    """KV blocks are places in a count here and nothing more: what a sequence computed lies in its
    own row of the cache, so no other can find it there."""

    def __init__(
        self,
        model: ExportedModel,
        cache: GraphCache,
        eos_token_ids: frozenset[int],
    ) -> None:
        self._model = model
        self._cache = cache
        self._eos_token_ids = eos_token_ids
        self._table = RowTable(cache.move)
        self._adapters: dict[int, GraphAdapter] = {}  # by first row in the bank
        self._suspects: set[Sequence] = set()  # their rows may hold NaN
        self._written: dict[Sequence, int] = {}  # places; more than are known to be computed while
        # a step is repeated in parts
        self.num_forward_passes = 0

    def execute(self, chunks: Rows[Chunk], places: Rows[BankRows | None]) -> list[Result]:
        with memory_bound("computing a step"), torch.inference_mode():
            row_of = self._seat(chunks)
            groups: dict[int | None, list[Chunk]] = {}
            for chunk, place in zip(chunks, places, strict=True):
                groups.setdefault(None if place is None else place[0], []).append(chunk)
            shunned = {row_of[seq] for seq in self._suspects}
            calls = [
                (call, first_row)
                for first_row, group in groups.items()
                for call in plan_calls(group, row_of, self._cache.spare_place, shunned)
            ]
            logits = self._run(calls)
            packed = [chunk for call, _ in calls for chunk in call.chunks]
            try:
                found = results_of(logits, packed, self._eos_token_ids)
            except NonFiniteLogits:
                self._suspect([chunk for chunk in packed if chunk.is_last], logits)
                raise
        result_of = dict(zip([chunk.seq for chunk in packed], found, strict=True))
        return [result_of[chunk.seq] for chunk in chunks]

    def write_adapter(self, first_row: int, adapter: object) -> None:
        assert isinstance(adapter, GraphAdapter)  # made by the pack function that goes with us
        end = first_row + adapter.num_rows
        for row, other in list(self._adapters.items()):  # evicted ones whose rows these were
            if row < end and first_row < row + other.num_rows:
                del self._adapters[row]
        self._adapters[first_row] = adapter

    def scrub(self, blocks: Rows[int]) -> None:
        bad = set(blocks)
        owners = self._table.owners
        with torch.inference_mode():
            self._cache.clear(row for row, seq in enumerate(owners) if bad & set(seq.block_table))

    def _seat(self, chunks: Rows[Chunk]) -> dict[Sequence, int]:
        """A row for everybody, and room in it for what this step writes."""
        row_of = self._table.seat(chunks)
        self._suspects &= row_of.keys()
        owners, written = self._table.owners, self._written
        lengths = [max(seq.num_computed, written.get(seq, 0)) for seq in owners]
        ends = {chunk.seq: chunk.start + chunk.num_tokens for chunk in chunks}
        self._cache.fit(max(*lengths, *ends.values()), lengths)
        self._written = {seq: ends.get(seq, end) for seq, end in zip(owners, lengths, strict=True)}
        return row_of

    def _run(self, calls: Rows[tuple[Call, int | None]]) -> Tensor:
        """Logits as `results_of` wants them: of the chunks' last tokens, then of scored ones."""
        last: list[Tensor] = []
        scored: list[Tensor] = []
        for call, first_row in calls:
            logits = self._forward(call, first_row)  # [rows of the range, wanted, vocab]
            if call.is_filled:
                logits = logits[[row - call.rows[0] for row in call.rows]]
            elif len(calls) > 1:
                logits = logits.clone()  # the next call's lie in the same memory
            if _is_plain(call):
                last.append(logits[:, 0])
                continue
            for chunk, own in zip(call.chunks, logits, strict=True):
                if not chunk.is_last:
                    self._check(chunk, own[len(chunk.scored)])
                num_last = int(chunk.is_last)
                last.append(own[:num_last])
                scored.append(own[num_last : num_last + len(chunk.scored)])
        parts = [part for part in last + scored if len(part)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else logits[:0, 0]

    def _forward(self, call: Call, first_row: int | None) -> Tensor:
        adapter = None if first_row is None else self._adapters[first_row].inputs
        cache = self._cache.rows(call.range)
        self.num_forward_passes += 1
        try:
            return self._model.run(self._batch(call), cache, adapter)
        finally:
            if call.is_filled:
                self._cache.clear_spare(call.range)

    def _batch(self, call: Call) -> GraphBatch:
        token_ids: list[int] = []
        positions: list[int] = []
        starts: list[int] = []
        wanted: list[int] = []
        chunk_of = dict(zip(call.rows, call.chunks, strict=True))
        num_wanted = max(len(_wanted(chunk)) for chunk in call.chunks)
        for row in call.range:
            chunk, seq = chunk_of.get(row), self._table.owners[row]
            if chunk is None:  # like a next token of its own, but at a place that nobody sees
                token_ids.append(seq.token_ids[-1])
                positions.append(seq.num_computed)
                starts.append(self._cache.spare_place)
                wanted += [0] * num_wanted
                continue
            end, padding = chunk.start + chunk.num_tokens, [0] * (call.length - chunk.num_tokens)
            token_ids += [*seq.token_ids[chunk.start : end], *padding]
            positions += [*range(chunk.start, end), *padding]
            starts.append(chunk.start)
            own = _wanted(chunk)
            wanted += own + [0] * (num_wanted - len(own))
        num_rows = len(call.range)
        return GraphBatch(
            input_ids=torch.tensor(token_ids).view(num_rows, -1),
            position_ids=torch.tensor(positions).view(num_rows, -1),
            cache_start=torch.tensor(starts),
            attention_mask=self._cache.seen[call.range.start : call.range.stop],
            logits_rows=torch.tensor(wanted).view(num_rows, -1),
        )

    def _check(self, chunk: Chunk, logits: Tensor) -> None:
        """Of a prompt that goes on: nobody may leave NaN in a row without a `scrub`."""
        if self._suspect([chunk], logits[None]):
            raise NonFiniteLogits("the forward pass produced logits that are not finite")

    def _suspect(self, chunks: Rows[Chunk], logits: Tensor) -> bool:
        """Remember who failed: their rows fill no call while the step is repeated in parts."""
        is_sound = torch.isfinite(logits[: len(chunks)].amax(dim=-1)).tolist()
        bad = [chunk.seq for chunk, ok in zip(chunks, is_sound, strict=True) if not ok]
        self._suspects.update(bad)
        return bool(bad)


def _wanted(chunk: Chunk) -> list[int]:
    """Tokens of a chunk whose logits are asked for: the last one, in any case, and scored ones."""
    last = [chunk.num_tokens - 1]
    scored = [position - chunk.start for position in chunk.scored]
    return last + scored if chunk.is_last else scored + last


def _is_plain(call: Call) -> bool:
    """Every row has one token to be sampled, and nothing else."""
    return all(chunk.is_last and not chunk.scored for chunk in call.chunks)

"""Rows of tokens through a model whose cache lies outside, padded on the left or on the right.

Left is how transformers pads a batch; right is how the server packs one, so that rows go on at
different places. The cache begins as rubbish: a model that reads a place which was never written,
or which is masked, answers wrongly instead of luckily.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from artifacts.exported.graph import AdapterInputs, ExportedModel, GraphBatch

Padding = Literal["left", "right"]
RUBBISH = 1.5  # in every place of a new cache; no softmax is shaken by it


class Stream:
    """One batch of rows and its cache. ``room`` more tokens may follow each row."""

    def __init__(
        self,
        model: ExportedModel,
        rows: Sequence[Sequence[int]],
        *,
        room: int = 0,
        padding: Padding = "left",
        adapter: AdapterInputs | None = None,
    ) -> None:
        self._model, self._adapter = model, adapter
        self._lengths = [len(row) for row in rows]
        self.width = max(self._lengths)
        is_left = padding == "left"
        # The place of each row's first token.
        self._first = [self.width - length if is_left else 0 for length in self._lengths]
        self._ids = torch.zeros(len(rows), self.width, dtype=torch.int64)
        self._mask = torch.zeros(len(rows), self.width + room, dtype=torch.int64)
        for i, row in enumerate(rows):
            start, end = self.span(i, 0, self.width)
            self._ids[i, start:end] = torch.tensor(row)
        self._cache = model.shape.new_cache(len(rows), self.width + room)
        for tensor in self._cache:
            tensor.fill_(RUBBISH)
        self._num_fed = 0  # by `feed`

    def span(self, row: int, start: int, end: int) -> tuple[int, int]:
        """Those of the places [start, end) that hold tokens of ``row``; empty: start == end."""
        first = self._first[row]
        start = min(max(start, first), end)
        return start, max(start, min(end, first + self._lengths[row]))

    def tokens(self, row: int, start: int, end: int) -> tuple[int, int]:
        """`span` as indices of the row's tokens."""
        start, end = self.span(row, start, end)
        return start - self._first[row], end - self._first[row]

    def prefill(self, start: int, end: int) -> Tensor:
        """The places [start, end) of all rows: logits [num_rows, end - start, vocab_size]."""
        wanted = torch.arange(end - start).expand(len(self._lengths), -1)
        return self._read(start, end, wanted)

    def prefill_last(self) -> Tensor:
        """All places at once: the logits behind each row's last token [num_rows, vocab_size]."""
        ends = [first + n - 1 for first, n in zip(self._first, self._lengths, strict=True)]
        return self._read(0, self.width, torch.tensor(ends)[:, None])[:, 0]

    def _read(self, start: int, end: int, wanted: Tensor) -> Tensor:
        for i in range(len(self._lengths)):
            self._mask[i, slice(*self.span(i, start, end))] = 1
        first = torch.tensor(self._first)
        positions = (torch.arange(start, end) - first[:, None]).clamp(min=0)
        starts = torch.full_like(first, start)
        return self._run(self._ids[:, start:end], positions, starts, wanted)

    def feed(self, tokens: Tensor) -> Tensor:
        """One token [num_rows] behind each row: logits [num_rows, vocab_size]."""
        lengths = torch.tensor(self._lengths)
        places = torch.tensor(self._first) + lengths + self._num_fed
        positions = (lengths + self._num_fed)[:, None]
        self._mask.scatter_(1, places[:, None], 1)
        self._num_fed += 1
        wanted = torch.zeros(len(lengths), 1, dtype=torch.int64)
        return self._run(tokens[:, None], positions, places, wanted)[:, 0]

    def _run(self, ids: Tensor, positions: Tensor, starts: Tensor, wanted: Tensor) -> Tensor:
        batch = GraphBatch(
            ids.contiguous(), positions.contiguous(), starts, self._mask, wanted.contiguous()
        )
        return self._model.run(batch, self._cache, self._adapter)

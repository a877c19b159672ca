"""The AMX kernels one by one, as C sees them: for tests that compare each with torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_int32, c_void_p
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from server.engine import sampling, sequence
from server.engine.amx.library import (
    TILE,
    LoraPlan,
    LoraSegment,
    LoraSlot,
    open_library,
    why_not,
)
from server.engine.amx.weights import PackedLinear
from server.engine.request import Sampled

REASON = why_not()
needs_amx = pytest.mark.skipif(REASON is not None, reason=f"no AMX: {REASON}")
BF16 = torch.bfloat16


class Rows(Structure):
    _fields_ = [("x", c_void_p), ("y", c_void_p), ("num_rows", c_int32), ("y_stride", c_int32)]


class Attention(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("shape", "layer", "qkv", "out", "positions", "slots")),
        ("spans", c_void_p),
        ("scratch", c_void_p),
        ("num_rows", c_int32),
        ("num_spans", c_int32),
    ]


def kernels(num_threads: int = 1) -> ctypes.CDLL:
    library = open_library(num_threads)
    library.linear.restype = library.plan_lora.restype = None
    library.linear.argtypes = [c_void_p] * 4
    library.plan_lora.argtypes = [c_void_p, c_void_p, c_int32, c_int32]
    library.attend.argtypes = library.rope_store.argtypes = [c_void_p]
    return library


def whole_blocks(x: Tensor, fill: float = torch.nan) -> Tensor:
    """``x [rows, width]`` in memory for rows up to a multiple of 32; ``fill`` beyond."""
    padded = torch.full((-(-x.shape[0] // 32) * 32, x.shape[1]), fill, dtype=x.dtype)
    padded[: x.shape[0]] = x
    return padded


class LogitsRecord:
    """The logits that every token was drawn from, by (request id, tokens before it)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: dict[tuple[str, int], Tensor] = {}
        self._original = sampling.sample
        monkeypatch.setattr(sampling, "sample", self._sample)

    def _sample(
        self, logits: Tensor, rows: Sequence[sequence.Sequence], eos_token_ids: frozenset[int]
    ) -> list[Sampled]:
        for row, seq in zip(logits, rows, strict=True):
            self.logits[seq.request.request_id, len(seq.token_ids)] = row.clone()
        return self._original(logits, rows, eos_token_ids)

    def of(self, request_id: str) -> Tensor:
        """``[tokens of the answer, vocab]``"""
        found = {num: row for (name, num), row in self.logits.items() if name == request_id}
        return torch.stack([found[num] for num in sorted(found)])


@dataclass
class Plan:
    """Adapters' rows of one batch; ``room`` is how many slots the engine would have."""

    plan: LoraPlan
    room: int
    memory: tuple[object, ...]

    @classmethod
    def of(cls, segments: list[tuple[int, int, int]], num_rows: int, max_rank: int = 64) -> Plan:
        """From (address of an adapter's table, first row, end row), by first row."""
        room = -(-num_rows // TILE) + len(segments)
        slots = (LoraSlot * room)()
        first_slot = (c_int32 * (-(-num_rows // TILE) + 1))()
        values = 3 * TILE * (-(-max_rank // 32) * 32)
        inner = torch.full((room * values,), torch.nan, dtype=BF16)
        plan = LoraPlan(slots, first_slot, inner.data_ptr(), 0, values)
        c_segments = (LoraSegment * len(segments))(*(LoraSegment(*s, max_rank) for s in segments))
        kernels().plan_lora(byref(plan), c_segments, len(segments), num_rows)
        return cls(plan, room, (slots, first_slot, inner, c_segments))


def product(linear: PackedLinear, x: Tensor, y: Tensor, plan: Plan | None = None) -> None:
    """``y [rows, width]`` gets what the epilogue makes of ``x [rows, in]``; rows of y bound it."""
    library = kernels()
    padded = whole_blocks(x)
    scratch = torch.empty(library.amx_scratch_values(x.shape[0]))
    rows = Rows(padded.data_ptr(), y.data_ptr(), x.shape[0], y.shape[1])
    library.linear(
        byref(linear.c), byref(rows), byref(plan.plan) if plan else None, scratch.data_ptr()
    )

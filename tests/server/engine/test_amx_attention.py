"""Rotary positions, the block cache and attention on AMX against torch."""

from __future__ import annotations

import random
from array import array
from ctypes import addressof, byref
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from server.engine.amx.decoder import AmxCache
from server.engine.amx.library import TILE, AttentionLayer, AttentionShape, Span
from server.engine.decoder import DecoderShape
from server.engine.rope import apply_rope
from tests.server.engine.amx import BF16, Attention, kernels, needs_amx

pytestmark = needs_amx

EPS = 1e-6
LAYER = 1  # of two: the other one's cache must stay as it is


@dataclass
class Request:
    """Everything one request has to attend to: ``qkv [tokens, heads, dim]``, and its blocks."""

    qkv: Tensor
    blocks: list[int]


@dataclass
class Machine:
    """The cache and tables that the kernels read, and a float32 model of the same."""

    num_heads: int
    num_kv: int
    dim: int
    has_norm: bool = False
    max_len: int = 200
    num_blocks: int = 60
    num_threads: int = 1
    kept: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        angles = torch.outer(
            torch.arange(self.max_len), 1e4 ** -torch.linspace(0, 1, self.dim // 2)
        )
        self.cos, self.sin = angles.cos(), angles.sin()
        self.norms = [1 + 0.3 * torch.randn(self.dim, generator=generator) for _ in "qk"]
        shape = DecoderShape(2, 0, 0, self.num_heads, self.num_kv, self.dim, 0, EPS)
        self.cache = AmxCache(shape, self.num_blocks)
        self.cache._blocks[:] = torch.nan  # as a failed request may leave it
        self.shape = AttentionShape(
            self.num_heads,
            self.num_kv,
            self.dim,
            self.max_len,
            EPS,
            self.dim**-0.5,
            self.cos.data_ptr(),
            self.sin.data_ptr(),
            self.cache.block_values,
        )
        norms = (n.data_ptr() if self.has_norm else None for n in self.norms)
        self.layer = AttentionLayer(*self.cache.addresses(LAYER), *norms)
        self.library = kernels(self.num_threads)
        self.scratch = torch.empty(self.library.amx_attention_scratch_values(self.shape))
        self.free = random.Random(0).sample(range(self.num_blocks), self.num_blocks)

    def request(self, num_tokens: int, seed: int) -> Request:
        generator = torch.Generator().manual_seed(seed)
        size = (num_tokens, self.num_heads + 2 * self.num_kv, self.dim)
        blocks = [self.free.pop() for _ in range(-(-num_tokens // TILE))]
        return Request(2 * torch.randn(size, generator=generator).to(BF16), blocks)

    def run(self, spans: list[tuple[Request, int, int]], *, attends: bool = True) -> list[Tensor]:
        """Tokens start..end of each request in one step; per request ``[tokens, heads, dim]``."""
        positions, slots, blocks = array("i"), array("i"), array("i")
        c_spans = (Span * len(spans))()
        for request, start, end in spans:
            positions.extend(range(start, end))
            slots.extend([request.blocks[p // TILE] * TILE + p % TILE for p in range(start, end)])
            blocks.extend(request.blocks)
        row = at = 0
        for i, (request, start, end) in enumerate(spans):
            c_spans[i] = Span(blocks.buffer_info()[0] + 4 * at, row, end - start, start)
            row, at = row + end - start, at + len(request.blocks)
        qkv = torch.cat([r.qkv[start:end] for r, start, end in spans]).contiguous()
        out = torch.full((row, self.num_heads, self.dim), torch.nan, dtype=BF16)
        step = Attention(
            addressof(self.shape),
            addressof(self.layer),
            qkv.data_ptr(),
            out.data_ptr(),
            positions.buffer_info()[0],
            slots.buffer_info()[0],
            addressof(c_spans),
            self.scratch.data_ptr(),
            row,
            len(spans),
        )
        self.library.rope_store(byref(step))
        if attends:
            self.library.attend(byref(step))
        return list(out.split([end - start for _, start, end in spans]))

    def reference(self, request: Request, start: int, end: int) -> tuple[Tensor, Tensor]:
        """What torch makes of it, and by how much bfloat16 inside may change that."""
        sizes = (self.num_heads, self.num_kv, self.num_kv)
        q, k, v = request.qkv[:end].float().split(sizes, dim=1)
        if self.has_norm:
            q, k = (
                torch.nn.functional.rms_norm(x, (self.dim,), w, EPS)
                for x, w in zip((q, k), self.norms, strict=True)
            )
        cos, sin = (torch.cat((t, t), dim=-1)[:end, None] for t in (self.cos, self.sin))
        q, k = (apply_rope(x, cos, sin).to(BF16).float() for x in (q, k))
        k, v = (x.repeat_interleave(self.num_heads // self.num_kv, dim=1) for x in (k, v))
        mask = torch.ones(end - start, end, dtype=torch.bool).tril(start)
        q, k, v = (x.transpose(0, 1) for x in (q[start:], k, v))
        exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        spread = torch.nn.functional.scaled_dot_product_attention(q, k, v.abs(), attn_mask=mask)
        return exact.transpose(0, 1), spread.transpose(0, 1) / 40


def check(machine: Machine, found: list[Tensor], spans: list[tuple[Request, int, int]]) -> None:
    for ours, (request, start, end) in zip(found, spans, strict=True):
        exact, allowed = machine.reference(request, start, end)
        assert ((ours.float() - exact).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("num_heads", "num_kv"), [(2, 2), (4, 2), (3, 1), (10, 2), (14, 2), (8, 1), (16, 1), (20, 1)]
)
@pytest.mark.parametrize("dim", [32, 64, 96, 128, 160])
def test_attention_is_torchs_for_every_grouping_of_heads(
    num_heads: int, num_kv: int, dim: int
) -> None:
    machine = Machine(num_heads, num_kv, dim)
    requests = [machine.request(n, seed) for seed, n in enumerate((1, 16, 17, 50, 33, 48))]
    context = [(requests[3], 0, 21), (requests[4], 0, 32), (requests[5], 0, 47)]
    machine.run(context, attends=False)
    chunks = [(requests[i], 0, len(requests[i].qkv)) for i in range(3)]
    chunks += [(r, end, len(r.qkv)) for r, _, end in context]  # mid-block, at a border, one token
    check(machine, machine.run(chunks), chunks)


@pytest.mark.parametrize("has_norm", [False, True])
def test_rope_and_norms_of_queries_and_keys(has_norm: bool) -> None:
    machine = Machine(4, 2, 64, has_norm=has_norm)
    request = machine.request(90, 1)
    before = machine.cache._blocks.clone()
    found = machine.run([(request, 0, 90)])
    check(machine, found, [(request, 0, 90)])
    changed = (machine.cache._blocks.view(torch.int16) != before.view(torch.int16)).view(60, 2, -1)
    assert not changed[:, 1 - LAYER].any(), "another layer's keys"
    untouched = [b for b in range(60) if b not in request.blocks]
    assert not changed[untouched].any(), "another request's keys"


def test_a_context_of_four_thousand_tokens() -> None:
    machine = Machine(7, 1, 64, max_len=4096, num_blocks=300, num_threads=2)
    request = machine.request(4096, 1)
    machine.run([(request, 0, 4050)], attends=False)
    check(machine, machine.run([(request, 4050, 4096)]), [(request, 4050, 4096)])
    check(machine, machine.run([(request, 4095, 4096)]), [(request, 4095, 4096)])


def test_a_token_attends_alike_alone_and_in_any_company() -> None:
    machine = Machine(6, 2, 96)
    long, other = machine.request(70, 1), machine.request(33, 2)
    whole = machine.run([(long, 0, 70)])[0]
    for cuts in ([0, 1, 2, 40, 70], [0, 16, 32, 48, 70], [0, 69, 70]):
        for start, end in pairwise(cuts):
            _, found = machine.run([(other, 0, 33), (long, start, end)])
            assert torch.equal(found.view(torch.int16), whole[start:end].view(torch.int16))


def test_nan_stays_in_its_request_and_is_not_hidden() -> None:
    machine = Machine(4, 2, 32)
    bad, good = machine.request(20, 1), machine.request(20, 2)
    expected = machine.run([(good, 0, 20)])[0]
    bad.qkv[7, 5] = torch.nan  # a key: later queries must show it
    found_bad, found = machine.run([(bad, 0, 20), (good, 0, 20)])
    assert torch.equal(found, expected)
    assert found_bad[7:, 2:].isnan().all()
    assert not found_bad[:7].isnan().any()

"""Packed products and adapters on AMX against float32 torch."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from artifacts.adapter import LoraPair, LoraWeights
from server.engine.amx.library import ADD_BF16, SILU_MUL, STORE_BF16, STORE_F32, TILE
from server.engine.amx.weights import PackedLinear, PackedLora, Part, parts_of
from server.engine.decoder import DecoderShape, Weights
from tests.server.engine.amx import BF16, Plan, kernels, needs_amx, product

pytestmark = needs_amx

ROWS = [1, 7, 16, 17, 32, 33, 64, 100, 161]  # from 161 on, long sums go in chunks
SHAPE = DecoderShape(
    num_layers=2,
    hidden=288,
    intermediate=352,
    num_heads=5,
    num_kv_heads=1,
    head_dim=32,
    vocab_size=0,
    norm_eps=0.0,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def pack(
    parts: list[Part], tensors: dict[str, Tensor], epilogue: int, index: int = 0
) -> PackedLinear:
    weights = Weights(tensors, BF16, torch.device("cpu"))
    return PackedLinear(kernels(), parts, weights, epilogue=epilogue, index=index)


def bound(x: Tensor, w: Tensor) -> Tensor:
    """What float32 sums in another order may differ by."""
    return 2e-5 * (x.float().abs() @ w.float().abs().T) + 1e-30


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(
    ("n_in", "n_out"), [(32, 16), (96, 48), (256, 64), (288, 80), (896, 1136), (4864, 336)]
)
def test_a_product_is_torchs(n_in: int, n_out: int, num_rows: int) -> None:
    x, w, b = draw(num_rows, n_in), draw(n_out, n_in, seed=1), draw(n_out, seed=2)
    part = Part("w", n_out, n_in, 0, 1)
    exact, allowed = x.float() @ w.float().T, bound(x, w)
    guard = torch.full((num_rows + 3, n_out), 7.0)  # three rows that must stay
    product(pack([part], {"w.weight": w}, STORE_F32), x, guard[:num_rows])
    assert ((guard[:num_rows] - exact).abs() <= allowed).all()
    assert (guard[num_rows:] == 7).all()

    exact, allowed = exact + b.float(), allowed + 1e-5
    with_bias = {"w.weight": w, "w.bias": b}
    rounded = torch.full((num_rows + 3, n_out), 7.0, dtype=BF16)
    product(pack([part], with_bias, STORE_BF16), x, rounded[:num_rows])
    assert ((rounded[:num_rows].float() - exact).abs() <= allowed + exact.abs() / 256).all()
    before = rounded.clone()
    product(pack([part], with_bias, ADD_BF16), x, rounded[:num_rows])
    exact = exact + before[:num_rows].float()
    assert ((rounded[:num_rows].float() - exact).abs() <= allowed + exact.abs() / 256).all()
    assert (rounded[num_rows:] == 7).all()


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("n_in", "inner"), [(32, 16), (288, 352)])
def test_gate_and_up_meet_in_one_product(n_in: int, inner: int, num_rows: int) -> None:
    x = 4 * draw(num_rows, n_in)
    gate, up, bias = (draw(inner, n_in, seed=s) for s in (1, 2, 3))
    parts = [Part("gate", inner, n_in, 0, 2), Part("up", inner, n_in, 1, 2)]
    tensors = {"gate.weight": gate, "up.weight": up, "up.bias": bias[:, 0]}
    y = torch.zeros((num_rows, inner), dtype=BF16)
    product(pack(parts, tensors, SILU_MUL), x, y)
    exact_gate = x.float() @ gate.float().T
    exact_up = x.float() @ up.float().T + bias[:, 0].float()
    exact = torch.nn.functional.silu(exact_gate) * exact_up
    # silu' is below 1.1
    allowed = 1.1 * bound(x, gate) * exact_up.abs() + exact_gate.abs() * (bound(x, up) + 1e-5)
    assert ((y.float() - exact).abs() <= allowed + exact.abs() / 250 + 1e-6).all()


def test_a_row_of_nan_stays_in_its_row() -> None:
    x, w = draw(40, 288), draw(80, 288, seed=1)
    linear = pack([Part("w", 80, 288, 0, 1)], {"w.weight": w}, STORE_F32)
    clean, dirty = torch.zeros(40, 80), torch.zeros(40, 80)
    product(linear, x, clean)
    x[21] = torch.nan
    product(linear, x, dirty)
    others = [i for i in range(40) if i != 21]
    assert torch.equal(dirty[others], clean[others])
    assert dirty[21].isnan().all()


def lora(
    rank: int, targets: tuple[str, ...], seed: int, layers: tuple[int, ...] = (0, 1)
) -> LoraWeights:
    pairs = {}
    for i in layers:
        for part in (p for group in parts_of(SHAPE, i) for p in group):
            if part.module.endswith(targets):
                a = draw(rank, part.in_features, seed=seed).float()
                b = draw(part.out_features, rank, seed=seed + 1).float() / 8
                pairs[part.module] = LoraPair(a, b, 1.5)
    return LoraWeights(pairs, rank, 0, (), f"l{seed}", 0, {})


ADAPTERS = [
    lora(1, ("_proj",), 10),
    lora(3, ("q_proj", "up_proj"), 20),
    lora(8, ("_proj",), 30),
    lora(16, ("k_proj", "v_proj", "down_proj"), 40),
    lora(20, ("_proj",), 50),
    lora(33, ("gate_proj", "o_proj", "v_proj"), 60),
    lora(64, ("_proj",), 70, layers=(1,)),
]
# (adapter, first row, end row): neighbours in one tile, over tile borders, gaps of base rows
MIXES = [
    [(4, 0, 1)],
    [(i, i, i + 1) for i in range(7)],
    [(0, 2, 3), (5, 3, 19), (6, 19, 20), (2, 20, 33)],
    [(6, 0, 40), (1, 47, 48), (3, 48, 49), (4, 50, 97), (5, 97, 100)],
    [(2, 0, 21), (4, 21, 150), (3, 170, 187)],
]


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: f"{len(mix)}-segments")
@pytest.mark.parametrize("index", range(8))
def test_adapters_of_one_batch_add_their_own_update(
    index: int, mix: list[tuple[int, int, int]]
) -> None:
    num_rows = max(mix[-1][2], 3)
    parts = parts_of(SHAPE, index // 4)[index % 4]
    x = draw(num_rows, parts[0].in_features)
    base = {
        f"{p.module}.weight": draw(p.out_features, p.in_features, seed=i)
        for i, p in enumerate(parts)
    }
    packed = [PackedLora(kernels(), SHAPE, weights) for weights in ADAPTERS]
    plan = Plan.of([(packed[a].address, first, end) for a, first, end in mix], num_rows)
    num_tiles = sum(p.num_tiles for p in parts)
    y = torch.zeros((num_rows, num_tiles * TILE))
    product(pack(parts, base, STORE_F32, index), x, y, plan)
    for part in parts:
        w = base[f"{part.module}.weight"]
        exact, allowed = x.float() @ w.float().T, bound(x, w)
        for a, first, end in mix:
            pair = ADAPTERS[a].pairs.get(part.module)
            if pair is not None:
                rows = x[first:end]
                t, b = rows.float() @ pair.a.T, (pair.b * pair.scaling).to(BF16)
                exact[first:end] += t @ b.float().T
                # t is rounded to bfloat16, and its own sums have an order too.
                t_error = t.abs() / 256 + bound(rows, pair.a)
                allowed[first:end] += t_error @ b.float().abs().T + bound(t, b)
        columns = [part.first_tile + i * part.stride for i in range(part.num_tiles)]
        ours = y.view(num_rows, num_tiles, TILE)[:, columns].flatten(1)
        assert ((ours - exact).abs() <= allowed).all(), part


def test_slots_fit_the_room_that_an_engine_has() -> None:
    choose = random.Random(0)
    for _ in range(300):
        num_rows = choose.randint(1, 90)
        cuts = sorted(choose.sample(range(num_rows + 1), min(choose.randint(2, 40), num_rows + 1)))
        spans = pairwise(cuts)
        segments = [(64 * (i + 1), *span) for i, span in enumerate(spans) if choose.random() < 0.8]
        plan = Plan.of(segments, num_rows)
        assert plan.plan.num_slots <= plan.room
        found = []
        for s in range(plan.plan.num_slots):
            slot = plan.plan.slots[s]
            assert (
                plan.plan.first_slot[slot.row_tile] <= s < plan.plan.first_slot[slot.row_tile + 1]
            )
            rows = range(slot.row_tile * TILE + slot.first, slot.row_tile * TILE + slot.end)
            found += [(slot.linears, row) for row in rows]
        assert found == [(a, row) for a, first, end in segments for row in range(first, end)]

"""How far bfloat16 agrees with float32, and that it only differs where rounding can decide.

The noise is transformers' own: how far its bfloat16 logits lie from its float32 ones on the same
tokens. Where the best token leads by more than that can take back, ours must be the same.
Run with ``-s`` to read the report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from artifacts.base import Base, load_transformers_model, open_base
from server.engine.load import EngineLimits
from server.engine.request import TokenLogprob
from tests.server.engine.served import GREEDY, TEXTS, Served, random_adapter

NUM_NEW = 24
LIMITS = EngineLimits(kv_cache_tokens=8192, max_queue=1000)
ONE_TOKEN = replace(GREEDY, max_tokens=1, top_logprobs=2)


@dataclass
class Reference:
    """Greedy continuations in float32, and the log-probabilities at every step of them."""

    base: Base
    prefixes: list[list[int]]
    exact: Tensor  # [num_prefixes, vocab] float32
    noise: float  # largest error of transformers' bfloat16 among the ten best


@pytest.fixture(scope="module")
def reference() -> Reference:
    base = open_base(None)
    exact_model = load_transformers_model(base, dtype="float32")
    rounded_model = load_transformers_model(base, dtype="bfloat16")
    prefixes: list[list[int]] = []
    rows: list[Tensor] = []
    noise = 0.0
    prompts = [base.tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    generator = torch.Generator().manual_seed(0)  # words in no order: what follows is less clear
    prompts += [torch.randint(300, 6000, (60,), generator=generator).tolist() for _ in TEXTS]
    for prompt in prompts:
        with torch.no_grad():
            ids = exact_model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NUM_NEW,
                do_sample=False,
                eos_token_id=None,
            )
            where = slice(len(prompt) - 1, len(prompt) + NUM_NEW - 1)
            exact = torch.log_softmax(exact_model(ids).logits[0, where].float(), -1)
            rounded = torch.log_softmax(rounded_model(ids).logits[0, where].float(), -1)
        best = exact.topk(10).indices
        noise = max(noise, float((exact - rounded).gather(1, best).abs().max()))
        rows.append(exact)
        prefixes += [ids[0, : len(prompt) + i].tolist() for i in range(NUM_NEW)]
    return Reference(base, prefixes, torch.cat(rows), noise)


@pytest.fixture(scope="module")
def rounded(reference: Reference) -> Iterator[Served]:
    with Served(reference.base, LIMITS, dtype="bfloat16") as served:
        served.engine.add_adapter("a", random_adapter(reference.base, "a"))
        yield served


async def next_tokens(
    served: Served, prefixes: list[list[int]], adapter: str | None
) -> list[TokenLogprob]:
    """The token after each prefix, all asked at once."""
    asked = [served.deltas(p, f"r{i}", ONE_TOKEN, adapter) for i, p in enumerate(prefixes)]
    return [deltas[-1].logprobs[0] for deltas in await asyncio.gather(*asked)]


def check(exact: list[tuple[int, float]], ours: list[TokenLogprob], noise: float) -> str:
    """``exact`` holds the best token and its lead; returns the report."""
    decided = [lead > 2 * noise for _, lead in exact]
    equal = [best == our.token_id for (best, _), our in zip(exact, ours, strict=True)]
    report = (
        f"bfloat16: {sum(equal)} of {len(equal)} next tokens equal float32's; noise "
        f"{noise:.3f}; {sum(decided)} lead by more than twice that, of them "
        f"{sum(e for e, d in zip(equal, decided, strict=True) if d)} equal"
    )
    assert all(e for e, d in zip(equal, decided, strict=True) if d), report
    assert sum(decided) > len(decided) // 2, f"the test hardly says anything: {report}"
    return report


async def test_the_base_differs_only_where_rounding_decides(
    reference: Reference, rounded: Served
) -> None:
    ours = await next_tokens(rounded, reference.prefixes, None)
    best = reference.exact.topk(2)
    leads = (best.values[:, 0] - best.values[:, 1]).tolist()
    exact = list(zip(best.indices[:, 0].tolist(), leads, strict=True))
    print("\nbase,", check(exact, ours, reference.noise))
    errors = [
        abs(logprob - float(row[token]))
        for our, row in zip(ours, reference.exact, strict=True)
        for token, logprob in our.top
    ]
    print(f"largest error {max(errors):.3f}, transformers' {reference.noise:.3f}")
    assert max(errors) < 2 * reference.noise, "no more noise than twice transformers' own"


async def test_an_adapter_differs_only_where_rounding_decides(
    reference: Reference, rounded: Served
) -> None:
    with Served(reference.base, LIMITS) as exact_served:
        exact_served.engine.add_adapter("a", random_adapter(reference.base, "a"))
        found = await next_tokens(exact_served, reference.prefixes, "a")
    exact = [(our.top[0][0], our.top[0][1] - our.top[1][1]) for our in found]
    ours = await next_tokens(rounded, reference.prefixes, "a")
    print("\nadapter,", check(exact, ours, reference.noise))


async def test_alone_and_in_a_batch_differ_only_where_rounding_decides(
    reference: Reference, rounded: Served
) -> None:
    prefixes = reference.prefixes[:: NUM_NEW // 4]
    together = await next_tokens(rounded, prefixes, None)
    alone = [(await next_tokens(rounded, [prefix], None))[0] for prefix in prefixes]
    exact = [(one.top[0][0], one.top[0][1] - one.top[1][1]) for one in alone]
    print("\nalone and together,", check(exact, together, reference.noise))

"""Answers under a grammar, thoughts under a budget, scored prompts, salts and priorities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import llguidance.hf
import pytest
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from transformers import AutoModelForCausalLM

from artifacts.base import Base, open_base
from server.engine import grammar, scheduler
from server.engine.amx.library import why_not
from server.engine.blocks import BlockPool
from server.engine.errors import GrammarTooComplex
from server.engine.grammar import Grammar
from server.engine.load import EngineLimits
from server.engine.output import OutputText
from server.engine.request import Delta, GenerationRequest, SamplingParams, Thinking
from server.engine.sequence import Sequence
from tests.server.engine.fake import fake_engine, run_to_idle, step
from tests.server.engine.served import TEXTS, Served

HOT = SamplingParams(max_tokens=60, temperature=1.5, seed=4)
ORDER = {
    "type": "object",
    "properties": {
        "state": {"enum": ["sent", "lost", "已签收"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["state", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(None)


@pytest.fixture(scope="module", params=["amx", "torch"])
def served(base: Base, request: pytest.FixtureRequest) -> Iterator[Served]:
    kernels = request.param
    if kernels == "amx" and why_not() is not None:
        pytest.skip(f"no AMX: {why_not()}")
    limits = EngineLimits(kv_cache_tokens=4096, max_batched_tokens=64)
    dtype = "bfloat16" if kernels == "amx" else "float32"
    with Served(base, limits, kernels=kernels, dtype=dtype) as made:
        yield made


@pytest.fixture(scope="module")
def tokenizer(base: Base) -> LLTokenizer:
    ends = sorted(base.eos_token_ids)
    return llguidance.hf.from_tokenizer(
        base.tokenizer, n_vocab=base.config.vocab_size, eos_token=ends
    )


@pytest.fixture(scope="module")
def order(tokenizer: LLTokenizer) -> Grammar:
    schema = {"x-guidance": {"whitespace_flexible": False}, **ORDER}
    text = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    return Grammar(tokenizer, text)


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_an_answer_follows_its_grammar_and_its_neighbours_do_not_notice(
    served: Served, order: Grammar
) -> None:
    before = await served.answers(HOT)
    bound = [replace(HOT, grammar=order, seed=seed) for seed in range(6)]
    jobs = [served.deltas(TEXTS[i], f"bound{i}", each) for i, each in enumerate(bound)]
    answers, beside = await asyncio.gather(asyncio.gather(*jobs), served.answers(HOT))
    assert beside == before
    for deltas in answers:
        found = json.loads(text_of(deltas))
        assert found["state"] in ORDER["properties"]["state"]["enum"]  # type: ignore[index]
        assert 0 <= found["days"] <= 99
        assert deltas[-1].finish_reason == "stop"
    assert len({text_of(deltas) for deltas in answers}) > 1, "nothing was left to chance"


async def test_a_minimum_length_gives_way_to_the_grammar(served: Served, order: Grammar) -> None:
    deltas = await served.deltas("hi", "r", replace(HOT, grammar=order, min_tokens=50))
    json.loads(text_of(deltas))
    assert deltas[-1].finish_reason == "stop"


async def test_a_stop_token_that_the_grammar_demands_may_come_early(
    served: Served, tokenizer: LLTokenizer
) -> None:
    (brace,) = served.ids("}")
    only = Grammar(tokenizer, 'start: "}"\n')
    sampling = replace(HOT, grammar=only, min_tokens=5, stop_token_ids=frozenset({brace}))
    assert tokens_of(await served.deltas("hi", "r", sampling)) == [brace]


AMBIGUOUS = 'start: a "!"\na: a a | b\nb: b b | /[a-z]/\n'  # each token takes longer than the last
REASONS = {"limits": "Current row", "time": "for each token"}


@pytest.mark.parametrize("reason", REASONS)
async def test_a_grammar_that_takes_too_much_ends_its_own_answer_only(
    served: Served, tokenizer: LLTokenizer, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "limits":
        few = LLParserLimits(max_items_in_row=60, verbose_errors=False)
        monkeypatch.setattr(grammar, "LIMITS", few)
    else:
        monkeypatch.setattr(grammar, "CREDIT_S", 0.01)
    heavy = Grammar(tokenizer, AMBIGUOUS)
    end = ((next(iter(served.base.eos_token_ids)), -100.0),)
    sampling = replace(HOT, grammar=heavy, max_tokens=400, logit_bias=end)
    jobs = (served.deltas("hi", "heavy", sampling), served.answers(HOT))
    deltas, answers = await asyncio.gather(*jobs)
    assert deltas[-1].finish_reason == "error"
    assert isinstance(deltas[-1].cause, GrammarTooComplex)
    assert REASONS[reason] in str(deltas[-1].cause)
    assert len(answers) == len(TEXTS)
    assert served.stats.is_healthy


@pytest.mark.parametrize("budget", [0, 1, 7])
@pytest.mark.parametrize("is_open", [True, False])
async def test_thoughts_end_at_their_budget_and_the_grammar_begins_behind_them(
    served: Served, base: Base, order: Grammar, budget: int, is_open: bool
) -> None:
    start, end = base.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    prompt = served.ids("<|user|>hello<|end|><|assistant|>")
    if is_open:
        prompt.append(start)
    bias = () if is_open else ((start, 100.0),)
    sampling = replace(
        HOT, grammar=order, thinking=Thinking(start, end, is_open, budget), logit_bias=bias
    )
    tokens = tokens_of(deltas := await served.deltas(prompt, "r", sampling))
    marks = tokens[: tokens.index(end) + 1]
    assert len(marks) == budget + (1 if is_open else 2)
    assert (marks[0] == start) == (not is_open)
    timing = deltas[-1].timing
    assert timing is not None
    assert timing.num_thinking_tokens == len(marks)
    thoughts, _, answer = text_of(deltas).partition("</think>")
    json.loads(answer)
    assert "{" not in thoughts, "the grammar held the thoughts too"


async def test_without_thoughts_the_grammar_holds_from_the_start(
    served: Served, base: Base, order: Grammar
) -> None:
    start, end = base.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    bias = ((start, -100.0),)
    sampling = replace(HOT, grammar=order, thinking=Thinking(start, end), logit_bias=bias)
    deltas = await served.deltas("hi", "r", sampling)
    json.loads(text_of(deltas))
    assert deltas[-1].timing is not None
    assert deltas[-1].timing.num_thinking_tokens == 0


async def test_a_prompts_logprobs_are_the_models(served: Served, base: Base) -> None:
    """Longer than a step scores, its beginning already in the cache, beside others."""
    ids = served.ids(TEXTS[0] * 2)
    assert len(ids) > 2 * scheduler.MAX_SCORED
    await served.deltas(ids, "warm", replace(HOT, max_tokens=1))
    scored = SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=3, top_logprobs=3)
    deltas, *_ = await asyncio.gather(served.deltas(ids, "scored", scored), served.answers(HOT))
    found = deltas[0].prompt_logprobs
    assert found[0] is None
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    is_exact = served.engine.kernels == "torch"
    tolerance = 1e-3 if is_exact else 0.3
    for position, each in enumerate(found[1:], start=1):
        assert each is not None
        assert each.token_id == ids[position]
        row = logprobs[position - 1]
        assert each.logprob == pytest.approx(float(row[ids[position]]), abs=tolerance)
        assert len(each.top) == 3
        if is_exact:
            assert [token for token, _ in each.top] == row.topk(3).indices.tolist()
    again = await served.deltas(ids, "again", scored)
    assert tokens_of(again) == tokens_of(deltas)
    plain = await served.deltas(ids, "plain", replace(scored, prompt_logprobs=None))
    assert tokens_of(plain) == tokens_of(deltas)
    assert plain[0].prompt_logprobs == ()


async def test_only_equal_salts_share_a_prefix(served: Served) -> None:
    async def num_cached(salt: str, name: str) -> int:
        request = GenerationRequest(name, tuple(served.ids(TEXTS[3])), HOT, cache_salt=salt)
        deltas = [delta async for delta in served.engine.submit(request)]
        assert deltas[-1].timing is not None
        return deltas[-1].timing.num_cached_tokens

    assert await num_cached("mine", "a") == 0
    assert await num_cached("mine", "b") > 0
    assert await num_cached("yours", "c") == 0


def test_a_salt_is_no_adapter() -> None:
    def hashes(adapter: str | None, salt: str) -> list[bytes]:
        request = GenerationRequest("r", tuple(range(8)), HOT, adapter, cache_salt=salt)
        return Sequence(request, OutputText(lambda ids: ""), 0.0).hash_blocks(4, 2)

    assert len({tuple(hashes(*each)) for each in ((None, ""), ("a", ""), (None, "a"))}) == 3
    assert BlockPool(4, 4).num_free == 4


async def test_a_keys_urgent_requests_come_first_and_the_order_is_kept() -> None:
    engine, runner = fake_engine(limits=scheduler.SchedulerLimits(1, 12))
    first = GenerationRequest("running", (1,), SamplingParams(3, temperature=0))
    engine.submit(first)
    await step(engine)
    for name, priority in (("c", 5), ("a1", -1), ("b", 0), ("a2", -1)):
        sampling = SamplingParams(2, temperature=0, ignore_eos=True)
        engine.submit(GenerationRequest(name, (2,), sampling, priority=priority))
    await run_to_idle(engine)
    order = list(dict.fromkeys(name for batch in runner.batches for name in batch))
    assert order == ["running", "a1", "a2", "b", "c"]

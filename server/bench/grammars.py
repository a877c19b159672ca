"""What grammars cost: tokens/s at 8 streams with and without one, and what others notice of heavy
ones.

``python -m server.bench.grammars --model DIR``: rounds of both in turns on one engine; one line of
JSON at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from artifacts.base import Base, open_base
from server.answers.grammars.compiler import GrammarCompiler
from server.answers.grammars.constraint import Constraint, json_expression
from server.bench.floors import percentile
from server.bench.traffic import Client, Clocked, Setup
from server.engine.grammar import Grammar
from server.engine.load import EngineLimits
from server.engine.request import GenerationRequest, SamplingParams
from server.errors import ApiError

NUM_STREAMS, PROMPT, NEW = 8, 32, 128
NUM_BESIDE = 4
ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "status": {"enum": ["sent", "lost", "delivered"]},
        "city": {"type": "string", "maxLength": 20},
        "note": {"type": ["string", "null"], "maxLength": 60},
        "prices": {"type": "array", "items": {"type": "number"}, "maxItems": 4},
    },
    "required": ["id", "status", "city", "note", "prices"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": ORDER, "minItems": 10_000}
REGEXES = ("(.{0,20}a.{0,20}b){20}", r"(\w+\s?){1,200}", "(x+x+)+y", "a?" * 2000, "(.*a){3000}")


def compiler_of(base: Base) -> GrammarCompiler:
    return GrammarCompiler(base.tokenizer, base.config.vocab_size, base.eos_token_ids)


def of_schema(schema: Any) -> Constraint:
    return Constraint(f"start: {json_expression(schema, 'bench')}", "bench")


def large_schema(number: int) -> Any:
    """100 kB, and no two alike."""
    text = {"type": "string", "maxLength": 50}
    inner = {"type": "object", "properties": {f"field_{i}_of_{number}": text for i in range(20)}}
    return {"type": "object", "properties": {f"part_{i}": inner for i in range(85)}}


async def answer(
    client: Client, name: str, num_new: int, grammar: Grammar | None, into: Clocked
) -> None:
    """One greedy answer, of fewer tokens only if its grammar ends it."""
    params = {"max_tokens": num_new, "temperature": 0.0, "ignore_eos": grammar is None}
    sampling = SamplingParams(grammar=grammar, **params)  # type: ignore[arg-type]
    into.submitted = time.perf_counter()
    request = GenerationRequest(name, client.prompt(PROMPT), sampling)
    async for delta in client.engine.submit(request):
        into.token_times += [time.perf_counter()] * len(delta.token_ids)


async def rate(client: Client, name: str, num_new: int, grammar: Grammar | None) -> float:
    """Output tokens/s of 8 streams."""
    clocked = [Clocked() for _ in range(NUM_STREAMS)]
    began = time.perf_counter()
    names = (f"{name}-{i}" for i in range(NUM_STREAMS))
    pairs = zip(names, clocked, strict=True)
    await asyncio.gather(*(answer(client, n, num_new, grammar, one) for n, one in pairs))
    num_tokens = sum(len(one.token_times) for one in clocked)
    if num_tokens != NUM_STREAMS * num_new:
        raise RuntimeError(f"{num_tokens} tokens came, {NUM_STREAMS * num_new} were asked for")
    return num_tokens / (max(one.token_times[-1] for one in clocked) - began)


async def price(client: Client, base: Base, rounds: int, num_new: int) -> dict[str, Any]:
    """Both kinds in turns, so that drift cancels out: tokens/s."""
    grammar = await compiler_of(base).compile(of_schema(ENDLESS))
    rates: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(-2, 4 * rounds):
        has_grammar = turn % 4 in (1, 2)
        name = f"{'with' if has_grammar else 'without'}-{turn}"
        measured = await rate(client, name, num_new, grammar if has_grammar else None)
        if turn >= 0:
            rates[has_grammar].append(measured)
    pairs = zip(rates[True], rates[False], strict=True)
    share = statistics.median(100 * with_ / without for with_, without in pairs)
    return {
        "tokens_s_without": round(statistics.median(rates[False]), 1),
        "tokens_s_with": round(statistics.median(rates[True]), 1),
        "share_percent": round(share, 1),
        "rounds": 2 * rounds,
    }


async def beside(client: Client, base: Base, seconds: float) -> dict[str, Any]:
    """Four plain streams alone, and beside a client that sends heavy forms one after the other."""
    compiler = compiler_of(base)
    compiler.prepare()
    found: dict[str, Any] = {}
    for what in ("alone", "beside_schemas", "beside_regexes"):
        constraints = {
            "alone": iter(()),
            "beside_schemas": (of_schema(large_schema(i)) for i in itertools.count()),
            "beside_regexes": _regexes(),
        }[what]
        heavy = asyncio.create_task(_send(client, compiler, constraints, what))
        until = time.perf_counter() + seconds
        await asyncio.gather(
            *(_stream(client, f"{what}-{i}", until, found) for i in range(NUM_BESIDE))
        )
        heavy.cancel()
        with suppress(asyncio.CancelledError):
            await heavy
        ttft = [value for one in found.pop("ttft") for value in one]
        gaps = [value for one in found.pop("gaps") for value in one]
        found[what] = {
            "ttft_p50_ms": round(1e3 * percentile(ttft, 50), 2),
            "ttft_p90_ms": round(1e3 * percentile(ttft, 90), 2),
            "itl_p50_ms": round(1e3 * percentile(gaps, 50), 2),
            "itl_p99_ms": round(1e3 * percentile(gaps, 99), 2),
            "itl_max_ms": round(1e3 * max(gaps), 2),
        }
    return found


def _regexes() -> Iterator[Constraint]:
    for number in itertools.count():
        regex = REGEXES[number % len(REGEXES)]
        yield Constraint(f"start: /{regex}{number}/", "bench")


async def _send(
    client: Client, compiler: GrammarCompiler, constraints: Iterator[Constraint], name: str
) -> None:
    for number, constraint in enumerate(constraints):
        with suppress(ApiError):
            grammar = await compiler.compile(constraint)
            await answer(client, f"heavy-{name}-{number}", 8, grammar, Clocked())
        await asyncio.sleep(0)


async def _stream(client: Client, name: str, until: float, found: dict[str, Any]) -> None:
    for number in itertools.count():
        if time.perf_counter() >= until:
            return
        one = Clocked()
        await answer(client, f"{name}-{number}", 64, None, one)
        found.setdefault("ttft", []).append([one.ttft_s])
        gaps = [b - a for a, b in itertools.pairwise(one.token_times)]
        found.setdefault("gaps", []).append(gaps)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    base = open_base(options.model)
    limits = EngineLimits(num_threads=options.threads, max_model_len=1024)
    async with Setup(base, options.dtype, limits).client() as client:
        return {
            "base": base.id,
            "kernels": client.engine.kernels,
            "vocabulary": base.config.vocab_size,
            "price": await price(client, base, options.rounds, options.num_new),
            "four_plain_streams": await beside(client, base, options.seconds),
        }


def main() -> None:
    """The process: options in, one line of JSON out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-new", type=int, default=NEW, help="tokens of each answer")
    parser.add_argument("--seconds", type=float, default=10, help="of each kind of neighbours")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()

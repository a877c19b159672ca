"""A thousand random schemas: whatever a base of random weights says under one, it fits the schema.

The model's own ranking of tokens means nothing, so that whatever a grammar lets through is said
sooner or later. Marks that end strings, lists and objects are made likelier, else no string would
end; every answer has to end by itself.
"""

from __future__ import annotations

import asyncio
import json
import string
from typing import Any

import jsonschema
import pytest

from artifacts.base import Base, open_base
from server.answers.grammars.compiler import GrammarCompiler
from server.answers.grammars.constraint import format_constraint
from server.engine.load import EngineLimits
from server.engine.request import Delta, SamplingParams
from server.schemas.formats import StructuredOutputs
from tests.conformance.schemas import Maker
from tests.conftest import TinyBase
from tests.server.engine.served import Served

NUM_SCHEMAS = 1000
MAX_TOKENS = 1000
LIMITS = EngineLimits(max_num_seqs=64, max_queue=NUM_SCHEMAS, kv_cache_tokens=65536, num_threads=1)


@pytest.fixture(scope="module")
def base(tiny_base: TinyBase) -> Base:
    return open_base(tiny_base("llama"))


def biases(base: Base) -> tuple[tuple[int, float], ...]:
    """Ends of strings, lists, objects, answers and of what holds itself; e-mail needs an ``@``."""
    texts = {base.tokenizer.decode([token]): token for token in range(len(base.tokenizer))}
    found = {texts[text]: 3.0 for text in ("@", ".", ":", *string.digits)}
    found |= {texts[text]: 6.0 for text in ('"', "}", "]", "null", "n") if text in texts}
    return tuple((found | dict.fromkeys(base.eos_token_ids, 6.0)).items())


async def text_under(served: Served, schema: dict[str, Any], **params: Any) -> tuple[str, Delta]:
    compiler: GrammarCompiler = params.pop("compiler")
    asked = StructuredOutputs.model_validate({"json": schema})
    constraint = format_constraint(None, asked)
    assert constraint is not None
    sampling = SamplingParams(grammar=await compiler.compile(constraint), **params)
    deltas = await served.deltas("hello", f"r{params['seed']}", sampling)
    return "".join(delta.text for delta in deltas), deltas[-1]


async def test_answers_under_a_thousand_random_schemas_fit_them(base: Base) -> None:
    compiler = GrammarCompiler(base.tokenizer, base.config.vocab_size, base.eos_token_ids)
    schemas = [Maker(seed).schema() for seed in range(NUM_SCHEMAS)]
    params: dict[str, Any] = {"max_tokens": MAX_TOKENS, "logit_bias": biases(base)}
    with Served(base, LIMITS) as served:
        asked = (
            text_under(served, schema, seed=seed, compiler=compiler, **params)
            for seed, schema in enumerate(schemas)
        )
        answers = await asyncio.gather(*asked)
    wrong = []
    for schema, (text, last) in zip(schemas, answers, strict=True):
        if last.finish_reason != "stop":
            wrong.append((f"ended by {last.finish_reason} {last.error}", text[:200], schema))
            continue
        if error := next(validator(schema).iter_errors(json.loads(text)), None):
            wrong.append((error.message, text[:200], schema))
    assert not wrong, f"{len(wrong)}, for instance {wrong[:3]}"
    assert len({text for text, _ in answers}) > NUM_SCHEMAS / 2  # they are no constants


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)

"""Forms of answers: what is refused and how it is said, what is compiled once, who waits for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from llguidance import LLMatcher, LLTokenizer

from artifacts.base import open_base
from server.answers.grammars.compiler import GrammarCompiler
from server.answers.grammars.constraint import Constraint, json_expression
from server.answers.grammars.schema import FORMATS, UnusableSchema, check_schema
from server.answers.grammars.vocabulary import read_vocabulary
from server.engine.grammar import LIMITS, Grammar
from server.errors import ApiError
from server.state import Server
from tests.server.fakes import FakeEngine, Script

BASE = open_base()
ENDS = BASE.eos_token_ids
CHAT = {"model": "tiny-base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def new_compiler() -> GrammarCompiler:
    return GrammarCompiler(BASE.tokenizer, BASE.config.vocab_size, ENDS)


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return read_vocabulary(BASE.tokenizer, BASE.config.vocab_size, ENDS)


@pytest.fixture
def grammars(fake_server: Server) -> GrammarCompiler:
    """The server's own, on a vocabulary that says something."""
    fake_server.grammars = new_compiler()
    return fake_server.grammars


def schema_body(schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {**CHAT, "response_format": form}


def structured(**kinds: Any) -> dict[str, Any]:
    return {**CHAT, "structured_outputs": kinds}


def admits(tokenizer: LLTokenizer, schema: Any, text: str) -> bool:
    """Whether ``text``, as a whole, may be an answer."""
    lark = f"start: {json_expression(schema, 'p')}"
    matcher = LLMatcher(tokenizer, lark, limits=LIMITS, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


SCHEMA = "response_format.json_schema.schema"
LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
ENDLESS = {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}
DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"type": "array", "items": DEEP}
CHAIN = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(3000)} | {"d3000": {}}
UNUSABLE: dict[str, tuple[Any, str]] = {
    "a keyword": ({"properties": {"a/b": {"not": {}}}}, "At #/properties/a~1b: the keyword 'not'"),
    "a typing error": ({"maxLenght": 3}, "'maxLenght'"),
    "switches of the library": ({"x-guidance": {"lenient": True}}, "'x-guidance'"),
    "a reference to itself": ({"$ref": "#"}, "could ever end"),
    "references in a circle": (LOOP, "could ever end"),
    "a property that holds all": (ENDLESS, "could ever end"),
    "another document": ({"$ref": "https://example.com/a.json"}, "'https://example.com/a.json'"),
    "nowhere": ({"items": {"$ref": "#/$defs/a"}}, "At #/$defs/a: $ref leads to this place"),
    "a format": ({"format": "iban"}, "'iban'"),
    "look-around": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "a back reference": ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
    "a number that is rounded": ({"const": 2**53 + 1}, "above 2^53"),
    "a bound that is not held": ({"exclusiveMinimum": 2, "maximum": 2.5}, "exclusive bound"),
    "names that may come twice": ({"type": "object", "minProperties": 2}, "minProperties"),
    "a control character": ({"enum": ["a\u0001"]}, "control character"),
    "depth": (DEEP, "more than 64 deep"),
    "definitions that fill the stack": ({"$defs": CHAIN, "$ref": "#/$defs/d0"}, "definitions"),
    "remainders without end": ({"type": "integer", "multipleOf": 9999991}, "multipleOf"),
    "a long pattern": ({"pattern": "a?" * 4000}, "patterns"),
    "1 MB": ({"description": "x" * 2**20}, "at most"),
    "no schema": ({"properties": {"a": 1}}, "a schema is an object"),
    "options that overlap": ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf"),
    "nothing": ({"enum": []}, "nsatisfiable"),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_a_schema_that_cannot_be_held_is_refused_by_its_place(
    web: httpx.AsyncClient, grammars: GrammarCompiler, engine: FakeEngine, name: str
) -> None:
    schema, said = UNUSABLE[name]
    body = json.dumps(schema_body(schema))
    answer = await web.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (SCHEMA, "invalid_schema")
    assert said in error["message"]
    assert len(error["message"]) < 1000
    assert not engine.requests


@pytest.mark.parametrize(
    ("kinds", "param", "code", "said"),
    [
        ({"regex": r"(?<=a)b"}, "regex", "invalid_regex", "look-around"),
        ({"regex": r"(a)\1"}, "regex", "invalid_regex", "backreferences"),
        ({"regex": "a?" * 4000}, "regex", "invalid_regex", "at most 4096"),
        ({"regex": "(" * 300}, "regex", "invalid_regex", "regex"),
        ({"grammar": "start: nobody"}, "grammar", "invalid_grammar", "nobody"),
        ({"grammar": '{"grammars": []}'}, "grammar", "invalid_grammar", "Lark"),
        ({"grammar": 'start: %json {"not": {}}'}, "grammar", "invalid_schema", "'not'"),
        ({"grammar": "start: %json"}, "grammar", "invalid_grammar", "no JSON"),
        ({"grammar": "start: " + "(" * 9000}, "grammar", "invalid_grammar", "nested"),
        ({"grammar": "start: start"}, "grammar", "invalid_grammar", "admits no text"),
        ({"json": "{"}, "json", "invalid_schema", "not JSON"),
        ({"json": "false"}, "json", "invalid_schema", "no answer"),
        ({"json": '"object"'}, "json", "invalid_schema", "a schema is an object"),
    ],
)
async def test_what_else_is_refused(
    web: httpx.AsyncClient, grammars: GrammarCompiler, kinds: Any, param: str, code: str, said: str
) -> None:
    body = {"model": "tiny-base", "prompt": "a", "structured_outputs": kinds}
    answer = await web.post("/v1/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (f"structured_outputs.{param}", code)
    assert said in error["message"]


async def test_an_expression_that_doubles_itself_is_refused_before_it_fills_the_memory(
    grammars: GrammarCompiler,
) -> None:
    lines = ["start: T14", 'T0: "a"?', *(f"T{i + 1}: T{i} T{i}" for i in range(14))]
    with pytest.raises(ApiError, match="too big"):  # and not later, 2 s and 500 MB further on
        await grammars.compile(Constraint("\n".join(lines), "p"))


async def test_combinations_without_a_meaning_are_refused(
    web: httpx.AsyncClient, grammars: GrammarCompiler
) -> None:
    twice = {**structured(regex="a"), "response_format": {"type": "json_object"}}
    endless = {**structured(regex="a"), "ignore_eos": True}
    for body, param in ((twice, "structured_outputs"), (endless, "ignore_eos")):
        answer = await web.post("/v1/chat/completions", json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert (error["param"], error["code"]) == (param, "invalid_combination")


@pytest.mark.parametrize(
    "body",
    [
        {**CHAT, "response_format": {"type": "json_object"}},
        schema_body({"type": "object"}),
        structured(regex=r"\d+"),
        structured(choice=["yes", "no"]),
        structured(grammar='start: "a"+'),
        structured(json='{"type": "null"}'),
        structured(json_object=True),
    ],
)
async def test_an_answer_is_given_its_grammar(
    web: httpx.AsyncClient, grammars: GrammarCompiler, engine: FakeEngine, body: Any
) -> None:
    assert (await web.post("/v1/chat/completions", json=body)).status_code == 200
    assert isinstance(engine.requests[0].sampling.grammar, Grammar)


async def test_text_needs_no_grammar(
    web: httpx.AsyncClient, grammars: GrammarCompiler, engine: FakeEngine
) -> None:
    body = {**CHAT, "response_format": {"type": "text"}}
    assert (await web.post("/v1/chat/completions", json=body)).status_code == 200
    assert engine.requests[0].sampling.grammar is None


def test_white_space_is_what_models_write_and_no_more(tokenizer: LLTokenizer) -> None:
    anything = {"type": "object"}
    for natural in (
        '{"a":1,"b":[2]}',
        '{"a": 1, "b": [2]}',
        json.dumps({"a": 1, "b": [{"c": None}]}, indent=4),
        json.dumps({"a": 1, "b": [{"c": None}]}, indent="\t"),
    ):
        assert admits(tokenizer, anything, natural)
    for endless in ('{  "a":1}', '{\n\n"a":1}', '{"a":1,   "b":2}', "{\n" + " " * 65 + '"a":1}'):
        assert not admits(tokenizer, anything, endless)


def test_a_listed_name_cannot_come_in_disguise(tokenizer: LLTokenizer) -> None:
    schema = {"properties": {"a": {"type": "null"}}, "additionalProperties": True}
    assert admits(tokenizer, schema, '{"a":null,"b":1}')
    assert not admits(tokenizer, schema, '{"\\u0061":1}')


def test_what_schemas_may_hold(tokenizer: LLTokenizer) -> None:
    """Each admits what it says and not its neighbour."""
    tree = {"type": "array", "items": {"$ref": "#"}}
    named = {"$defs": {"茶/a": {"type": "null"}}, "items": {"$ref": "#/$defs/茶~1a"}}
    cases: list[tuple[Any, str, str]] = [
        (tree, "[[],[[]]]", "[1]"),
        (named, "[null]", "[1]"),
        ({"type": "string", "pattern": "^a|b$"}, '"xb"', '"xc"'),
        ({"type": "string", "maxLength": 2}, '"🫖茶"', '"🫖茶!"'),
        ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, "true", "1"),
        ({"const": {"a": [1, "é"]}}, '{"a":[1,"é"]}', '{"a":[1]}'),
        ({"type": ["integer", "null"], "minimum": 3}, "3", "2"),
        (True, "[]", "]"),
    ]
    for schema, fits, not_ in cases:
        assert admits(tokenizer, schema, fits), schema
        assert not admits(tokenizer, schema, not_), schema


def test_formats_are_those_that_the_library_knows(tokenizer: LLTokenizer) -> None:
    def compiles(name: str) -> bool:
        schema = json.dumps({"type": "string", "format": name})
        return not LLMatcher(tokenizer, f"start: %json {schema}", log_level=0).is_error()

    others = {"iri", "regex", "uri-reference", "idn-email", "json-pointer", "iban"}
    assert {name for name in FORMATS | others if compiles(name)} == FORMATS


def test_recursion_is_looked_at_in_linear_time() -> None:
    """A chain of definitions, the last of which ends all of them, and one that none does."""

    def chain(last: Any) -> Any:
        length = 1200
        defs = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(length)}
        return {"$defs": {**defs, f"d{length}": last}, "$ref": "#/$defs/d0"}

    began = time.thread_time()
    check_schema(chain({"type": "null"}))
    with pytest.raises(UnusableSchema, match="ever end"):
        check_schema(chain({"$ref": "#/$defs/d0"}))
    assert time.thread_time() - began < 1


def test_special_tokens_are_written_as_such() -> None:
    grammars = new_compiler()
    call = BASE.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert grammars.literal('<tool_call>\n{"a"') == f'<[{call}]> "\\n{{\\"a\\""'
    assert grammars.literal("") == '""'


# --- and the others -------------------------------------------------------------------------------


@asynccontextmanager
async def longest_gap() -> AsyncIterator[Callable[[], float]]:
    """Seconds for which the event loop ran nothing else."""
    gaps = [0.0]

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    task = asyncio.create_task(tick())
    try:
        yield lambda: max(gaps)
    finally:
        task.cancel()


def wide(num: int) -> dict[str, Any]:
    """100 kB with ``num`` 90."""
    field = {"type": ["string", "null"], "maxLength": 50}
    inner = {"type": "object", "properties": {f"f{j}": field for j in range(20)}}
    return {"type": "object", "properties": {f"property_{i}": inner for i in range(num)}}


HEAVY: list[dict[str, Any]] = [
    schema_body({"type": "object", "patternProperties": {f"^a{i}_": {} for i in range(60)}}),
    structured(regex="a?" * 2000),
    structured(regex="(.{0,20}a.{0,20}b){20}"),
    structured(regex=r"(\w+\s?){1,200}"),
    structured(regex="(x+x+)+y"),
]


async def test_no_form_stalls_the_event_loop(
    web: httpx.AsyncClient, grammars: GrammarCompiler
) -> None:
    grammars.prepare()
    bodies = [schema_body(wide(90) | {"title": str(i)}) for i in range(4)] + HEAVY
    assert 90_000 < len(json.dumps(bodies[0])) < 200_000
    async with longest_gap() as gap:
        for body in bodies:  # parsing several at once would add up
            code = (await web.post("/v1/chat/completions", json=body)).status_code
            assert code in (200, 400)
        assert gap() < 0.5


async def test_a_grammar_that_takes_too_long_is_the_requests_fault(
    web: httpx.AsyncClient, grammars: GrammarCompiler, engine: FakeEngine
) -> None:
    engine.script = Script(fail_after=0, blames_request=True)
    answer = await web.post("/v1/chat/completions", json=structured(regex="a"))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "grammar_too_complex"
    engine.script = Script(fail_after=2, blames_request=True)
    body = {**structured(regex="a"), "stream": True}
    stream = (await web.post("/v1/chat/completions", json=body)).text
    last = [line for line in stream.split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "grammar_too_complex"

"""Answers of a wanted form, as the official client asks for them and reads them."""

from __future__ import annotations

import enum
import json
import re
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.conformance.conftest import ASK, BASE, POET

# Wild words, so that only the grammar can have made the form; thoughts need none.
WILD: dict[str, Any] = {
    "model": POET,
    "messages": ASK,
    "max_tokens": 300,
    "reasoning_effort": "none",
}
SEEDS = range(2)


class Mood(enum.StrEnum):
    """Values that a tokenizer splits."""

    CALM = "calm"
    CROSS = "très fâché"
    GLAD = "开心🦊"


class Tea(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=12)
    grams: int = Field(ge=1, le=500)


class Order(BaseModel):
    """What a shop's front end would ask for."""

    status: Literal["sent", "lost", 'it\'s "here"']
    mood: Mood
    teas: list[Tea] = Field(max_length=2)
    note: str | None = Field(max_length=8)
    gift: bool


@pytest.mark.parametrize("seed", SEEDS)
def test_parse_gives_an_instance(client: OpenAI, seed: int) -> None:
    answer = client.chat.completions.parse(**WILD, seed=seed, response_format=Order)
    message = answer.choices[0].message
    assert isinstance(message.parsed, Order)
    assert answer.choices[0].finish_reason == "stop"
    assert Order.model_validate_json(message.content or "") == message.parsed


def test_the_helper_parses_what_streams(client: OpenAI) -> None:
    whole = client.chat.completions.parse(**WILD, seed=1, response_format=Order)
    with client.chat.completions.stream(**WILD, seed=1, response_format=Order) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    partial = [event.parsed for event in events if event.type == "content.delta" and event.parsed]
    assert partial
    assert partial[-1] == json.loads(whole.choices[0].message.content or "")
    [done] = [event for event in events if event.type == "content.done"]
    assert done.parsed == whole.choices[0].message.parsed


async def test_the_async_client_parses(async_client: AsyncOpenAI, client: OpenAI) -> None:
    answer = await async_client.chat.completions.parse(**WILD, seed=2, response_format=Order)
    async with async_client.chat.completions.stream(
        **WILD, seed=2, response_format=Order
    ) as stream:
        final = await stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Order)
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


def test_an_answer_that_is_cut_off_is_the_clients_length_error(client: OpenAI) -> None:
    short = {**WILD, "max_tokens": 3}
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**short, response_format=Order)


def test_json_object_is_one(client: OpenAI) -> None:
    short = {**WILD, "max_tokens": 40, "n": 4, "seed": 0}
    for choice in client.chat.completions.create(
        **short, response_format={"type": "json_object"}
    ).choices:
        text = choice.message.content or ""
        assert text.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(text), dict)


def test_a_schema_by_hand_is_followed_strict_or_not(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {
            "城市": {"enum": ["北京", "Köln", "¯\\_(ツ)_/¯", 'quo"te']},
            "when": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0}},
        },
        "required": ["城市", "when"],
        "additionalProperties": False,
    }
    schema["properties"]["tags"]["maxItems"] = 3  # type: ignore[index]
    for strict in (True, False, None):
        wanted: Any = {"name": "where", "schema": schema, "strict": strict}
        answer = client.chat.completions.create(
            **WILD, seed=7, n=3, response_format={"type": "json_schema", "json_schema": wanted}
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content or ""), schema)


@pytest.mark.parametrize("path", ["chat", "completions"])
def test_vllms_structured_outputs(client: OpenAI, path: str) -> None:
    def say(**outputs: Any) -> str:
        extra = {"structured_outputs": outputs}
        if path == "chat":
            chat = client.chat.completions.create(**WILD, seed=3, extra_body=extra)
            return chat.choices[0].message.content or ""
        answer = client.completions.create(
            model=POET, prompt="x", max_tokens=300, seed=3, extra_body=extra
        )
        return answer.choices[0].text

    assert say(choice=["yes", "no", "也许 🍵"]) in ("yes", "no", "也许 🍵")
    assert re.fullmatch(r"[0-9]{4}-[A-F]{2}(é|🦊){3}", say(regex=r"[0-9]{4}-[A-F]{2}(é|🦊){3}"))
    tea = say(json=Tea.model_json_schema())
    assert Tea.model_validate_json(tea)
    assert Tea.model_validate_json(say(json=json.dumps(Tea.model_json_schema())))
    assert re.fullmatch("ab{1,4}!", say(grammar='start: "a" "b"{1,4} "!"\n'))


def test_what_cannot_be_followed_is_refused_by_name(client: OpenAI) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"type": "objekt"}, "response_format"),
        ({"type": "object", "properties": 3}, "response_format"),
        ({"$ref": "#/nowhere"}, "response_format"),
        ({"$ref": "https://example.com/x.json"}, "response_format"),
    ]
    for schema, param in bad:
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**WILD, response_format=wanted)
        assert (refused.value.param or "").startswith(param), schema
        assert refused.value.code
    unusable: list[dict[str, Any]] = [
        {"regex": "("},
        {"grammar": "start: nobody"},
        {"choice": []},
        {},
    ]
    for outputs in unusable:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**WILD, extra_body={"structured_outputs": outputs})
        assert (refused.value.param or "").startswith("structured_outputs"), outputs


def test_why_a_form_is_refused_can_be_read(client: OpenAI) -> None:
    never = {"regex": "[^\\s\\S]"}, {"grammar": "start: a\na: a"}
    endless = {"regex": "(.{0,1000}){1,1000}"}
    for outputs, why in [*((each, "admits no text") for each in never), (endless, "too many")]:
        with pytest.raises(openai.BadRequestError, match=why) as refused:
            client.chat.completions.create(**WILD, extra_body={"structured_outputs": outputs})
        assert "<" not in refused.value.message


def test_two_forms_at_once_are_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=BASE,
            messages=ASK,
            response_format={"type": "json_object"},
            extra_body={"structured_outputs": {"choice": ["a"]}},
        )

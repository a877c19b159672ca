"""/v1/responses by the official client, and byte for byte: answers, streams, tools, chains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from server.answers.pieces import Said, Thought
from server.app import create_app
from server.comparison.experiments import Arm
from server.settings import Settings
from server.state import Server
from tests.server import clients
from tests.server.clients import RawClient, counts, num_aborted
from tests.server.conftest import Live, Publish, serving, wait_until
from tests.server.fakes import FakeEngine, Script
from tests.server.responses import (
    BASE,
    CALL,
    TOOL,
    URL,
    NoGrammars,
    Recorder,
    Understanding,
    understand,
)


@pytest.fixture
def ai(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made


@pytest.fixture
def seen(fake_server: Server) -> Recorder:
    recorder = Recorder()
    fake_server.renderer = cast(Any, recorder)
    return recorder


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Understanding:
    return understand(monkeypatch)


def test_a_whole_response(ai: OpenAI, engine: FakeEngine, seen: Recorder) -> None:
    raw = ai.responses.with_raw_response.create(
        model=BASE, input="hi", instructions="Be brief.", metadata={"a": "b"}, temperature=0.5
    )
    response = raw.parse()
    assert response.output_text == "Hello, world!"
    assert response.id.startswith("resp_")
    assert response.status == "completed"
    assert response.error is None
    assert response.incomplete_details is None
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert (response.temperature, response.top_p, response.tool_choice) == (0.5, 1.0, "auto")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (12, 6)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert raw.headers["x-loraloop-adapter"] == "base"
    assert seen.last == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    # What the client's types call required is there, of the right type.
    Response.model_validate(json.loads(raw.text), strict=True)
    assert ai.responses.retrieve(response.id) == response


def test_a_response_that_is_cut_off_is_incomplete(ai: OpenAI) -> None:
    response = ai.responses.create(model=BASE, input="hi", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == "Hello,"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]


def test_a_stream_byte_for_byte(client: httpx.Client) -> None:
    body = {"model": BASE, "input": "hi", "stream": True, "max_output_tokens": 2}
    answer = client.post(URL, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    first, last = (json.loads(blocks[at].split("data: ")[1])["response"] for at in (0, -2))
    item = last["output"][0]["id"]
    place = f'"item_id":"{item}","output_index":0,"content_index":0'

    def event(number: int, name: str, rest: str) -> str:
        return (
            f"event: response.{name}\n"
            f'data: {{"type":"response.{name}","sequence_number":{number},{rest}}}\n\n'
        )

    def part(text: str) -> str:
        return f'{{"type":"output_text","annotations":[],"logprobs":[],"text":"{text}"}}'

    def message(status: str, content: str) -> str:
        head = f'"id":"{item}","type":"message","status":"{status}","role":"assistant"'
        return f'"output_index":0,"item":{{{head},"content":[{content}]}}'

    def response(body: dict[str, Any]) -> str:
        return '"response":' + json.dumps(body, ensure_ascii=False, separators=(",", ":"))

    assert answer.text == (
        event(0, "created", response(first))
        + event(1, "in_progress", response(first))
        + event(2, "output_item.added", message("in_progress", ""))
        + event(3, "content_part.added", f'{place},"part":{part("")}')
        + event(4, "output_text.delta", f'{place},"delta":"Hello","logprobs":[]')
        + event(5, "output_text.delta", f'{place},"delta":",","logprobs":[]')
        + event(6, "output_text.done", f'{place},"text":"Hello,","logprobs":[]')
        + event(7, "content_part.done", f'{place},"part":{part("Hello,")}')
        + event(8, "output_item.done", message("incomplete", part("Hello,")))
        + event(9, "incomplete", response(last))
    )
    assert first == last | {
        "status": "in_progress",
        "output": [],
        "usage": None,
        "incomplete_details": None,
    }
    assert client.get(f"{URL}/{last['id']}").json() == last


def test_the_stream_helper_puts_thoughts_text_and_calls_together(
    ai: OpenAI, told: Understanding
) -> None:
    told.pieces = [[Thought("Where"), Thought("?"), Said("I look."), *CALL]]
    with ai.responses.stream(model=BASE, input="hi", tools=[TOOL]) as stream:  # type: ignore[list-item]
        events = list(stream)
        final = stream.get_final_response()
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    thought, message, call = final.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "Where?"
    assert message.type == "message"
    assert final.output_text == "I look."
    assert call.type == "function_call"
    assert (call.call_id, call.name, call.arguments) == ("call_1", "find_order", '{"number":7}')
    assert ai.responses.retrieve(final.id).output[2].id == call.id


def test_an_answer_is_parsed_into_a_pydantic_model(
    ai: OpenAI, engine: FakeEngine, told: Understanding, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Order(BaseModel):
        number: int

    monkeypatch.setattr(Server, "grammars", NoGrammars())
    told.pieces = [[Said('{"number"'), Said(":7}")]] * 2
    response = ai.responses.parse(model=BASE, input="hi", text_format=Order)
    assert response.output_parsed == Order(number=7)
    asked = told.chats[0].response_format.json_schema
    assert (asked.name, asked.strict) == ("Order", True)
    assert asked.schema_["properties"]["number"]["type"] == "integer"
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    with ai.responses.stream(model=BASE, input="hi", text_format=Order) as stream:
        assert stream.get_final_response().output_parsed == Order(number=7)


def test_a_tools_loop_by_items_that_are_sent_back(
    ai: OpenAI, told: Understanding, seen: Recorder
) -> None:
    told.pieces = [[Thought("A call."), *CALL], [Said("It is on its way.")]]
    given: list[Any] = [{"role": "user", "content": "Where is 7?"}]
    choice: Any = {"type": "function", "name": "find_order"}
    first = ai.responses.create(model=BASE, input=given, tools=[TOOL], tool_choice=choice)  # type: ignore[list-item]
    assert told.chats[0].tools[0].function.name == "find_order"
    assert told.chats[0].tool_choice.function.name == "find_order"
    assert first.tool_choice.name == "find_order"  # type: ignore[union-attr]
    given += first.output
    given.append({"type": "function_call_output", "call_id": "call_1", "output": "on its way"})
    second = ai.responses.create(model=BASE, input=given, tools=[TOOL])  # type: ignore[list-item]
    assert second.output_text == "It is on its way."
    function = {"name": "find_order", "arguments": '{"number":7}'}
    assert seen.last == [
        {"role": "user", "content": "Where is 7?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "A call.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "on its way", "tool_call_id": "call_1"},
    ]


def test_a_tools_loop_by_previous_response_id(
    ai: OpenAI, told: Understanding, seen: Recorder
) -> None:
    told.pieces = [CALL]
    first = ai.responses.create(model=BASE, input="Where is 7?", tools=[TOOL])  # type: ignore[list-item]
    output: Any = {"type": "function_call_output", "call_id": "call_1", "output": "far"}
    ai.responses.create(model=BASE, input=[output], previous_response_id=first.id)
    assert [message["role"] for message in seen.last] == ["user", "assistant", "tool"]
    with pytest.raises(openai.BadRequestError, match="No tool output found") as no_output:
        ai.responses.create(model=BASE, input="And 8?", previous_response_id=first.id)
    assert no_output.value.param == "previous_response_id"


def test_a_chain_brings_back_all_that_was_said_but_no_instructions(
    ai: OpenAI, seen: Recorder, publish: Publish
) -> None:
    publish("shop")
    first = ai.responses.create(model=BASE, input="one", instructions="Be brief.")
    second = ai.responses.create(model="shop", input="two", previous_response_id=first.id)
    third = ai.responses.create(
        model=BASE, input="three", previous_response_id=second.id, instructions="Be long."
    )
    said = {"role": "assistant", "content": "Hello, world!"}
    assert seen.last == [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "one"},
        said,
        {"role": "user", "content": "two"},
        said,
        {"role": "user", "content": "three"},
    ]
    assert second.model == "shop@1"
    assert third.previous_response_id == second.id
    # All that was said before is listed too, in pages that the client follows by itself.
    ids = [item.id for item in ai.responses.input_items.list(third.id, limit=2, order="asc")]
    assert len(ids) == len(set(ids)) == 5
    assert ids[1] == first.output[0].id
    newest = ai.responses.input_items.list(third.id, limit=1).data[0]
    assert newest.content[0].text == "three"  # type: ignore[union-attr, index]
    assert ai.responses.input_tokens.count(
        input="x", previous_response_id=first.id
    ).input_tokens == (len("one" + "Hello, world!" + "x") + 1)


def test_a_chain_longer_than_the_context_is_refused(ai: OpenAI) -> None:
    asked: dict[str, Any] = {"model": BASE, "input": "hi", "max_output_tokens": 5}
    for _ in range(4):
        asked["previous_response_id"] = ai.responses.create(**asked).id
    with pytest.raises(openai.BadRequestError) as too_long:
        ai.responses.create(**asked)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "input")
    assert "max_output_tokens asks for 5" in str(too_long.value)


def test_deleted_means_gone(ai: OpenAI) -> None:
    first = ai.responses.create(model=BASE, input="one")
    second = ai.responses.create(model=BASE, input="two", previous_response_id=first.id)
    ai.responses.delete(first.id)
    for gone in (
        lambda: ai.responses.retrieve(first.id),
        lambda: ai.responses.delete(first.id),
        lambda: ai.responses.input_items.list(first.id),
        lambda: ai.responses.input_items.list(second.id),
        lambda: ai.responses.cancel(first.id),
    ):
        with pytest.raises(openai.NotFoundError, match=first.id):
            gone()
    assert ai.responses.retrieve(second.id).id == second.id
    with pytest.raises(openai.BadRequestError) as no_previous:
        ai.responses.create(model=BASE, input="three", previous_response_id=second.id)
    assert no_previous.value.code == "previous_response_not_found"
    assert no_previous.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        ai.responses.cancel(second.id)


def test_what_is_not_to_be_stored_is_not(ai: OpenAI) -> None:
    response = ai.responses.create(model=BASE, input="one", store=False)
    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(response.id)
    assert response.store is False  # type: ignore[attr-defined]


def test_logprobs_are_those_of_the_text(ai: OpenAI, told: Understanding) -> None:
    told.pieces = [[Thought("Hm"), Said("Hello"), Said("!")]]
    response = ai.responses.create(
        model=BASE, input="hi", include=["message.output_text.logprobs"], top_logprobs=2
    )
    content = response.output[1].content[0]  # type: ignore[union-attr, index]
    logprobs = content.logprobs  # type: ignore[union-attr]
    assert logprobs is not None
    # One token was thought; the last two of five were said by nobody, at the end.
    assert [one.token for one in logprobs] == [",", " wor", "ld", "!"]
    assert len(logprobs[0].top_logprobs) == 2


def test_a_failure_after_the_first_byte_is_an_event_and_the_end(
    ai: OpenAI, engine: FakeEngine
) -> None:
    engine.script.fail_after = 2
    events = list(ai.responses.create(model=BASE, input="hi", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"
    assert last.response.output_text == "Hello,"
    assert ai.responses.retrieve(last.response.id).status == "failed"
    engine.script.fail_after = None
    with pytest.raises(openai.BadRequestError) as failed:
        ai.responses.create(model=BASE, input="hi", previous_response_id=last.response.id)
    assert failed.value.code == "previous_response_failed"


def test_a_failure_before_the_first_byte_has_its_status(ai: OpenAI, engine: FakeEngine) -> None:
    engine.script.fail_after = 0
    with pytest.raises(openai.InternalServerError, match="could not be generated"):
        ai.responses.create(model=BASE, input="hi", stream=True)
    engine.script = Script(is_endless=True, delay_s=0.01)
    soon = {"x-request-timeout": "0.05"}
    with pytest.raises(openai.APIStatusError) as late:
        ai.responses.create(model=BASE, input="hi", extra_headers=soon)
    assert late.value.status_code == 408


def test_a_client_that_leaves_ends_its_response_and_leaves_nothing(
    ai: OpenAI, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script = Script(is_endless=True, delay_s=0.005)
    engine.max_model_len = 10**6
    stream = ai.responses.create(model=BASE, input="hi", stream=True)
    created = next(iter(stream))
    assert created.type == "response.created"
    stream.close()
    wait_until(lambda: num_aborted(fake_server) == 1)
    assert not engine.running
    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(created.response.id)


def test_a_client_that_does_not_read_is_dropped(
    fake_server: Server, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "CHAT", URL)
    engine.script.is_endless = True
    engine.max_model_len = 10**7
    given: dict[str, Any] = {"max_unread_tokens": 200}
    fake_server.settings = Settings(home=fake_server.settings.home, **given)
    body = {"model": BASE, "input": "hi", "stream": True, "store": False}
    with serving(create_app(fake_server)) as live:
        reader = RawClient(live.port, body, receive_buffer=4096)
        wait_until(lambda: counts(fake_server).get("dropped") == 1, timeout_s=20)
        wait_until(lambda: not engine.running)
        received = reader.read()
        events = [line for line in received.split(b"\n") if line.startswith(b"data: ")]
        last = json.loads(events[-1][6:])
    assert last["type"] == "response.failed"
    assert "reads too slowly" in last["response"]["error"]["message"]


def test_experiments_and_feedback_know_responses(
    client: httpx.Client, fake_server: Server, publish: Publish
) -> None:
    publish("shop")
    publish("shop")
    fake_server.experiments.put("shop", [Arm("shop@1", 1), Arm("shop@2", 1)])
    body = {"model": "shop", "input": "hi", "user": "u-1"}
    answers = [client.post(URL, json=body) for _ in range(3)]
    (arm,) = {answer.headers["x-loraloop-arm"] for answer in answers}
    assert {answer.json()["model"] for answer in answers} == {arm}
    assert answers[0].headers["x-loraloop-experiment"] == "shop"
    score = {"id": answers[0].json()["id"], "score": 1}
    scored = client.post("/v1/feedback", json=score).json()
    assert (scored["experiment"], scored["arm"]) == ("shop", arm)
    assert counts(fake_server, arm)["requests"] == 3

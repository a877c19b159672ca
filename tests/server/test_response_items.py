"""The items of responses: what a chat makes of them, how they are kept, how they grow."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from server.answers.pieces import CallArguments, CallBegun, Part, Piece, Said, Thought
from server.answers.responses.items import Turns, shown
from server.answers.responses.output import Event, Output
from server.engine.request import TokenLogprob
from server.errors import ApiError
from server.schemas.response_items import InputItem
from server.state import Server
from tests.server.fakes import FakeEngine, Script
from tests.server.responses import BASE, CALL, URL, Recorder, understand

ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


def chat(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    turns = Turns()
    for item in ITEMS.validate_python(items):
        turns.add(item, "input")
    turns.finish()
    return turns.messages


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": parts}


def call(number: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}


def result(number: int) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"c{number}", "output": f"r{number}"}


def shape(messages: list[dict[str, Any]]) -> list[str]:
    """Each message as one word for each thing that it has."""
    names = {"content": "says", "reasoning_content": "thinks", "tool_calls": "calls"}
    return [
        " ".join([m["role"], *(word for key, word in names.items() if m.get(key))])
        for m in messages
    ]


def test_what_was_said_in_one_go_is_one_message() -> None:
    user = {"role": "user", "content": "x"}
    one_go = [user, thought("t"), said("s"), call(1), call(2), result(2), result(1), said("s")]
    assert shape(chat(one_go)) == [
        "user says",
        "assistant says thinks calls",
        "tool says",
        "tool says",
        "assistant says",
    ]
    apart = [said("a"), said("b"), thought("t"), said("c"), thought("t"), call(1), result(1)]
    assert shape(chat(apart)) == [
        "assistant says",
        "assistant says",
        "assistant says thinks",
        "assistant thinks calls",
        "tool says",
    ]
    assert chat([thought("t"), user])[0] == {
        "role": "assistant",
        "reasoning_content": "t",
        "content": "",
    }


def test_a_call_needs_its_output_and_an_output_its_call() -> None:
    with pytest.raises(
        ApiError, match="No tool call found for function call output with call_id c1"
    ):
        chat([call(2), result(1)])
    with pytest.raises(ApiError, match="No tool output found for function call c2"):
        chat([call(1), call(2), result(1)])
    with pytest.raises(ApiError, match="No tool call found"):
        chat([call(1), result(1), result(1)])


def test_items_are_kept_whole_each_with_an_id_of_its_own() -> None:
    given: list[dict[str, Any]] = [
        {"role": "user", "content": "x", "id": "msg_same_id"},
        {"role": "user", "content": [{"type": "input_text", "text": "y"}], "id": "msg_same_id"},
        said("z"),
        thought("t"),
        call(1),
        result(1),
    ]
    kept = shown(ITEMS.validate_python(given))
    ids = [item["id"] for item in kept]
    assert len(set(ids)) == len(given)
    assert ids[0] == "msg_same_id"
    assert [item_id.split("_")[0] for item_id in ids] == ["msg", "msg", "msg", "rs", "fc", "fco"]
    assert kept[0]["content"] == [{"type": "input_text", "text": "x"}]
    # What is listed can be sent again, and means the same.
    assert chat(kept) == chat(given)


def test_what_is_not_read_of_an_item_is_not_kept(client: httpx.Client, fake_server: Server) -> None:
    """It may be no text at all, which would only show when it is written down."""
    part = '{"type": "output_text", "text": "x", "logprobs": [NaN, "\\ud800"]}'
    body = f'{{"model": "{BASE}", "input": [{{"role": "assistant", "content": [{part}]}}]}}'
    headers = {"content-type": "application/json"}
    answer = client.post(URL, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    fake_server.responses.flush()
    listed = client.get(f"{URL}/{answer.json()['id']}/input_items").json()["data"]
    assert listed[0]["content"] == [{"type": "output_text", "text": "x"}]


def grow(parts: list[Part], *, is_cut: bool = False) -> tuple[Output, list[Event]]:
    output = Output(lambda logprobs: [{"token": one.token_id} for one in logprobs])
    events = [event for part in parts for event in output.add(part)]
    return output, events + list(output.end(is_cut=is_cut))


def test_an_answer_of_no_words_is_an_empty_message() -> None:
    output, events = grow([Part()])
    assert output.items[0]["content"][0]["text"] == ""
    assert events[0]["type"] == "response.output_item.added"
    assert grow([Part()], is_cut=True)[0].items == []


def test_every_kind_of_piece_ends_the_item_before_it() -> None:
    pieces: tuple[Piece, ...] = (
        Said("a"),
        Thought("b"),
        CallBegun(0, "c1", "f"),
        CallArguments(0, "{}"),
        CallBegun(1, "c2", "g"),
        Said("d"),
    )
    output, events = grow([Part(pieces)])
    kinds = ["message", "reasoning", "function_call", "function_call", "message"]
    assert [item["type"] for item in output.items] == kinds
    assert {item["status"] for item in output.items} == {"completed"}
    open_items: list[int] = []
    for event in events:
        index = event["output_index"]
        if event["type"] == "response.output_item.added":
            assert not open_items
            open_items.append(index)
        assert open_items == [index]
        if event["type"] == "response.output_item.done":
            open_items.clear()
            assert event["item"] == output.items[index]
    assert output.items[3]["arguments"] == ""


def test_only_the_item_that_was_cut_is_incomplete() -> None:
    output, _ = grow([Part((Said("a"), CallBegun(0, "c1", "f")))], is_cut=True)
    assert [item["status"] for item in output.items] == ["completed", "incomplete"]


def test_logprobs_go_with_the_text_that_was_held_back_and_with_nothing_else() -> None:
    def part(number: int, *pieces: Piece) -> Part:
        return Part(pieces, (TokenLogprob(number, -0.5),))

    output, events = grow(
        [
            part(0),  # a mark
            part(1, Thought("t")),
            part(2),  # the other mark
            part(3, Said("a")),
            part(4),  # held back: perhaps a stop string
            part(5, Said("bc")),
            part(6),
            part(7, CallBegun(0, "c", "f")),
            part(8),
        ]
    )
    assert [one["token"] for one in output.items[1]["content"][0]["logprobs"]] == [3, 4, 5, 6]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [len(event["logprobs"]) for event in deltas] == [1, 2, 1]


def test_half_a_call_is_left_out_of_what_follows(
    client: httpx.Client,
    engine: FakeEngine,
    fake_server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder: Any = Recorder()
    fake_server.renderer = recorder
    told = understand(monkeypatch)
    told.pieces = [CALL[:2]]
    body = {"model": BASE, "input": "x", "max_output_tokens": 3}
    first = client.post(URL, json=body).json()
    assert first["output"][0]["status"] == first["status"] == "incomplete"
    second = client.post(URL, json={**body, "previous_response_id": first["id"]})
    assert second.status_code == 200, second.text
    assert shape(recorder.last) == ["user says", "user says"]


def test_a_stream_that_breaks_by_our_fault_says_so_and_ends(
    client: httpx.Client, fake_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Output, part: Part) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Output, "add", broken)
    stream = client.post(URL, json={"model": BASE, "input": "x", "stream": True})
    last = json.loads(stream.text.split("data: ")[-1])
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "The stream broke on the server."
    assert fake_server.telemetry.report()["adapters"]["base"]["errors"] == 1


def test_streams_that_run_together_are_not_mixed(client: httpx.Client, engine: FakeEngine) -> None:
    engine.script = Script(delay_s=0.002)
    body = {"model": BASE, "input": "x", "stream": True}
    with (
        client.stream("POST", URL, json=body) as one,
        client.stream("POST", URL, json=body) as other,
    ):
        texts = ["".join(stream.iter_text()) for stream in (one, other)]
    ids = [json.loads(text.splitlines()[1][6:])["response"]["id"] for text in texts]
    assert ids[0] not in texts[1]
    assert [text.count("output_text.delta\n") for text in texts] == [5, 5]

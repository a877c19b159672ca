"""Every pair of features together: what is streamed is what the whole answer says.

One seed makes both, so that they agree byte for byte in text, thoughts, calls, scores, reasons and
usage, or are refused alike. ``make test`` asks a covering array: fewer requests, each of them with
a value of every feature, so that every pair of values occurs.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.conftest import ASK, BASE, CHAT, POET, Real
from tests.conformance.test_stream_bytes import choices, streamed

Fields = dict[str, Any]

_STRING = {"type": "string", "maxLength": 6}
_PROPERTIES = {"number": {"type": "integer", "minimum": 0, "maximum": 99}, "in": _STRING}
_SCHEMA = {
    "type": "object",
    "properties": _PROPERTIES,
    "required": ["number", "in"],
    "additionalProperties": False,
}
_FUNCTIONS = [
    {"name": "find", "parameters": _SCHEMA, "strict": True, "description": "找 🦊"},
    {"name": "stop.it-now_1", "parameters": {"type": "object", "properties": {}}},
]
_TOOLS = [{"type": "function", "function": function} for function in _FUNCTIONS]
_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
_LEFT_OPEN = [*ASK, {"role": "assistant", "content": "Your order"}]
_CALLING = {"11": 4}  # <tool_call>

FEATURES: dict[str, list[Fields]] = {
    "model": [{"model": POET}, {"model": BASE}],
    "form": [
        {},
        {"tools": _TOOLS, "logit_bias": _CALLING},
        {"tools": _TOOLS, "tool_choice": "required"},
        {"tools": _TOOLS, "tool_choice": "none"},
        {"tools": _TOOLS, "tool_choice": {"type": "function", "function": {"name": "find"}}},
        {"tools": _TOOLS, "response_format": _FORMAT},
        {"response_format": _FORMAT},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "(🦊|茶|a){3,9}"}},
        {"structured_outputs": {"choice": ["yes", "也许 🍵"]}},
    ],
    "thoughts": [{}, {"reasoning_effort": "none"}, {"thinking_token_budget": 3}],
    "n": [{}, {"n": 3}],
    "scores": [{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}],
    "length": [{"max_tokens": 20}, {"max_tokens": 3}, {"max_tokens": 10, "min_tokens": 6}],
    "stop": [{}, {"stop": ["e", "的"]}, {"stop": '"'}, {"stop_token_ids": [300, 301, 302]}],
    "chance": [{"temperature": 1.3}, {"temperature": 0}, {"top_p": 0.5, "top_k": 9, "min_p": 0.1}],
    "penalties": [{}, {"presence_penalty": 2, "frequency_penalty": -2}, {"repetition_penalty": 2}],
    "parallel": [{}, {"parallel_tool_calls": False}],
    "cache": [{}, {"cache_salt": "盐"}, {"priority": -5}],
    "messages": [{}, {"messages": _LEFT_OPEN, "continue_final_message": True}],
}
REFUSALS = {"invalid_combination", "invalid_value", "unsupported_parameter"}


def bodies(row: Fields) -> Fields:
    return {"messages": ASK, "seed": 11, **{k: v for part in row.values() for k, v in part.items()}}


def covering_rows() -> Iterator[dict[str, Fields]]:
    """Rows of one value for each feature, until every pair of values has occurred."""
    chance = random.Random(7)
    names = list(FEATURES)
    wanted = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(FEATURES[a]))
        for j in range(len(FEATURES[b]))
    }

    def pairs(row: dict[str, int]) -> set[Any]:
        return set(itertools.combinations(row.items(), 2))

    while wanted:
        first = min(wanted)
        tried = []
        for _ in range(60):
            row = {name: chance.randrange(len(FEATURES[name])) for name in names}
            row |= dict(first)
            tried.append(row)
        best = max(tried, key=lambda row: len(pairs(row) & wanted))
        wanted -= pairs(best)
        yield {name: FEATURES[name][at] for name, at in best.items()}


def gathered(chunks: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """One choice of a stream as a whole answer has it; ids of calls, which are new, left out."""
    content, thoughts = "", ""
    reasons: list[str] = []
    scores: list[Any] = []
    calls: list[dict[str, str]] = []
    for choice in choices(chunks, index):
        delta = choice["delta"]
        assert not reasons or delta == {}
        content += delta.get("content", "")
        thoughts += delta.get("reasoning_content", "")
        for part in delta.get("tool_calls", []):
            if "id" in part:
                assert part["index"] == len(calls)
                calls.append({"name": part["function"]["name"], "arguments": ""})
            calls[part["index"]]["arguments"] += part["function"]["arguments"]
        scores += (choice["logprobs"] or {"content": []})["content"]
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    [reason] = reasons
    return {
        "content": content,
        "thoughts": thoughts,
        "calls": calls,
        "scores": scores,
        "reason": reason,
    }


def whole_choice(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    calls = message.get("tool_calls", [])
    return {
        "content": message["content"] or "",
        "thoughts": message.get("reasoning_content", ""),
        "calls": [call["function"] for call in calls],
        "scores": (choice["logprobs"] or {"content": []})["content"],
        "reason": choice["finish_reason"],
    }


def check(real: Real, body: Fields) -> bool:
    """Whether it was answered rather than refused, after all that must hold of it."""
    response = real.post(CHAT, body)
    if response.status_code != 200:
        error = response.json()["error"]
        assert (response.status_code, error["code"] in REFUSALS) == (400, True), error
        again = real.post(CHAT, {**body, "stream": True})
        assert (again.status_code, again.json()) == (400, response.json())
        return False
    whole = response.json()
    chunks = streamed(real, {**body, "stream_options": {"include_usage": True}})
    for index, choice in enumerate(whole["choices"]):
        ours, theirs = whole_choice(choice), gathered(chunks, index)
        check_scores(theirs.pop("scores"), ours["scores"])
        assert theirs == {key: value for key, value in ours.items() if key != "scores"}
        check_choice(body, ours)
    usage = chunks[-1]["usage"]
    for key in ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details"):
        assert usage[key] == whole["usage"][key]
    return True


def check_scores(streamed: list[dict[str, Any]], whole: list[dict[str, Any]]) -> None:
    """Alike but for rounding: a known prefix is read in other batches than a new one."""
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]
    for one, two in zip(streamed, whole, strict=True):
        assert one["bytes"] == two["bytes"]
        for ours, theirs in zip(
            [one, *one["top_logprobs"]], [two, *two["top_logprobs"]], strict=True
        ):
            assert ours["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)


def check_choice(body: Fields, choice: dict[str, Any]) -> None:
    """What holds of any answer to ``body``."""
    stops = [] if "min_tokens" in body else body.get("stop", [])  # till then, they are text
    for stop in [stops] if isinstance(stops, str) else stops:
        assert stop not in choice["content"] + choice["thoughts"]
    for mark in ("<tool_call>", "</tool_call>"):
        assert mark not in choice["content"] or "tools" not in body
    is_whole = choice["reason"] == "tool_calls"
    for call in choice["calls"]:
        if is_whole:
            assert isinstance(json.loads(call["arguments"]), dict)
    assert bool(body.get("logprobs")) or not choice["scores"]


def test_whatever_goes_together_streams_what_it_says_whole(real: Real) -> None:
    rows = list(covering_rows())
    answered = sum(check(real, bodies(row)) for row in rows)
    assert answered > len(rows) // 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(3))
def test_every_pair_of_features(real: Real, seed: int) -> None:
    plain = {name: values[0] for name, values in FEATURES.items()}
    num_answered = 0
    for a, b in itertools.combinations(FEATURES, 2):
        for one, two in itertools.product(FEATURES[a], FEATURES[b]):
            num_answered += check(real, {**bodies({**plain, a: one, b: two}), "seed": seed})
    assert num_answered > 100

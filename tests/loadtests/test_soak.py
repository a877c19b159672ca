"""The soak sees each way in which a request can be lost, and takes no legal end for one."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from loadtests.soak.asks import CHAT, Ask, Call
from loadtests.soak.book import Book, Outcome
from loadtests.soak.client import Client
from loadtests.soak.meaning import GONE, Meaning, Sayings, Stickiness
from loadtests.soak.world import World
from tests.loadtests.soak_fake import (
    DONE,
    VERSION,
    Reply,
    chunk,
    event,
    fake_server,
    refused,
    streamed,
    usage,
)

JSON = dict[str, Any]
BODY = {"model": VERSION, "stream": True, "temperature": 0, "max_tokens": 4, "messages": []}
ASK = Ask("chat", BODY)
WITH_USAGE = Ask("chat", BODY | {"stream_options": {"include_usage": True}})
GOOD = streamed(chunk("Hel"), chunk("lo"), chunk("", "stop"), DONE)


def new_world(**meanings: Meaning) -> World:
    world = World("base-model", Sayings(is_exact=True), random.Random(0))
    world.add(VERSION)
    world.meanings.update(meanings)
    return world


async def ask(world: World, reply: Reply, *asks: Ask | Call, timeout_s: float = 5.0) -> Book:
    """Send each to a server that answers so; the account of it."""
    async with fake_server(reply) as url, Client(url, world, timeout_s) as client:
        for one in asks:
            await (client.ask(one) if isinstance(one, Ask) else client.call(one))
    assert world.book.num_open == 0
    return world.book


async def why_lost(answer: bytes, one: Ask | Call = ASK, **meanings: Meaning) -> str:
    """The reason why the answer is booked as lost; empty if it is not."""
    book = await ask(new_world(**meanings), lambda body: answer, one, timeout_s=0.5)
    assert book.num_requests == 1
    assert book.outcomes[Outcome.LOST] == len(book.lost)
    return book.lost[0].why if book.lost else ""


async def test_a_whole_stream_is_an_answer() -> None:
    assert await why_lost(GOOD) == ""


BROKEN_STREAMS: dict[str, tuple[bytes, Ask, str]] = {
    "cut": (streamed(chunk("Hel"), is_cut=True), ASK, "RemoteProtocolError"),
    "cut between events": (streamed(chunk("Hel"), chunk("", "stop")), ASK, "without [DONE]"),
    "no end of the choice": (streamed(chunk("Hel"), DONE), ASK, "finish_reason None"),
    "two ends of the choice": (
        streamed(chunk("", "stop"), chunk("", "length"), DONE),
        ASK,
        "second finish_reason",
    ),
    "text behind the end": (streamed(chunk("", "stop"), chunk("x"), DONE), ASK, "got text after"),
    "two ends of the stream": (streamed(chunk("", "stop"), DONE, DONE), ASK, "after [DONE]"),
    "an error event": (
        streamed(chunk("a"), event({"error": {"message": "m"}, "choices": []})),
        ASK,
        "error event",
    ),
    "two answers in one": (
        streamed(chunk("a"), chunk("", "stop", id="chatcmpl-2"), DONE),
        ASK,
        "one answer from two",
    ),
    "a choice is missing": (
        streamed(chunk("a", "stop"), DONE),
        replace(ASK, body=BODY | {"n": 2}),
        "asked for 2 choices",
    ),
    "no usage": (streamed(chunk("", "stop"), DONE), WITH_USAGE, "no usage"),
    "wrong sum": (
        streamed(chunk("", "stop"), event({"choices": [], "usage": usage(2, total=12)}), DONE),
        WITH_USAGE,
        "does not add up",
    ),
    "too few tokens": (
        streamed(chunk("a", "length"), event({"choices": [], "usage": usage(3)}), DONE),
        WITH_USAGE,
        "3 tokens for ['length'] at max_tokens 4",
    ),
    "usage twice": (
        streamed(chunk("", "stop"), *2 * [event({"choices": [], "usage": usage(1)})], DONE),
        WITH_USAGE,
        "two chunks carry usage",
    ),
    "an end token that was to be ignored": (
        streamed(chunk("a", "stop"), DONE),
        replace(ASK, body=BODY | {"ignore_eos": True}),
        "ignores the end token",
    ),
    "another version": (
        streamed(chunk("", "stop"), DONE, version="tea@2"),
        ASK,
        "the header says tea@2",
    ),
}


@pytest.mark.parametrize("case", BROKEN_STREAMS)
async def test_a_broken_stream_is_lost(case: str) -> None:
    answer, one, why = BROKEN_STREAMS[case]
    assert why in await why_lost(answer, one)


async def test_a_server_that_never_answers_loses_the_request() -> None:
    assert "no end within" in await why_lost(b"")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (refused(500), "HTTP 500"),
        (refused(404), "HTTP 404"),
        (refused(429), "without Retry-After"),
        (refused(429, "Retry-After: 1", shape=["detail"]), "no error of OpenAI's"),
        (refused(429, "Retry-After: 1"), ""),
        (refused(503, "Retry-After: 2"), ""),
    ],
)
async def test_only_documented_refusals_are_legal(answer: bytes, why: str) -> None:
    found = await why_lost(answer)
    assert why in found
    assert bool(found) == bool(why)


async def test_a_missing_version_is_legal_once_its_removal_was_sent() -> None:
    world = new_world()
    world.versions[VERSION].is_leaving = True
    book = await ask(world, lambda body: refused(404), ASK)
    assert book.outcomes == {Outcome.REFUSED: 1}


async def test_a_wrong_request_that_is_taken_is_lost() -> None:
    call = Call("wrong", "POST", CHAT, {}, frozenset({400}), is_wrong=True)
    assert "though it is wrong" in await why_lost(GOOD, call)
    assert await why_lost(refused(400), call) == ""


async def test_another_text_than_before_is_lost_and_can_be_sent_again() -> None:
    answers = iter([GOOD, streamed(chunk("Hollo", "stop"), DONE)])
    book = await ask(new_world(), lambda body: next(answers), ASK, ASK)
    assert book.outcomes == {Outcome.ANSWERED: 1, Outcome.LOST: 1}
    assert "says 'Hollo', before it said 'Hello'" in book.lost[0].why
    assert book.lost[0].request["body"] == BODY
    assert "Hollo" in book.lost[0].seen["content"]


async def test_an_alias_means_old_or_new_during_the_change_and_new_after_it() -> None:
    meaning = Meaning({"tea@0"}, 0.0)
    assert "right were ['tea@0']" in await why_lost(GOOD, named("tea"), tea=meaning)
    meaning.sending({VERSION}, 1.0)
    assert await why_lost(GOOD, named("tea"), tea=meaning) == ""
    meaning.sending({"tea@2"}, 2.0)
    meaning.acknowledged(3.0)
    assert "right were ['tea@2']" in await why_lost(GOOD, named("tea"), tea=meaning)


def named(model: str) -> Ask:
    return replace(ASK, body=BODY | {"model": model})


def test_a_deleted_alias_may_be_gone_and_a_standing_one_may_not() -> None:
    world = new_world(**{"tea@canary": Meaning({VERSION}, 0.0)})
    assert not world.may_be_gone("tea@canary", 1.0)
    world.meanings["tea@canary"].sending({GONE}, 2.0)
    assert world.may_be_gone("tea@canary", 1.0)


async def test_leaving_is_no_loss_and_is_counted() -> None:
    early = replace(ASK, leave_after_events=1)
    book = await ask(new_world(), lambda body: GOOD, early)
    book = await ask(World("b", Sayings(True), random.Random(0), book), lambda body: b"",
                     replace(ASK, leave_after_s=0.05))  # fmt: skip
    assert book.outcomes == {Outcome.LEFT: 2}
    assert book.unsure == {VERSION: 2}


@pytest.mark.parametrize("status", [200, 408])
async def test_a_deadline_that_passed_is_legal_for_who_set_one_only(status: int) -> None:
    late = streamed(chunk("a"), event({"error": {"code": "request_timeout"}, "choices": []}))
    answer = late if status == 200 else refused(408)
    book = await ask(new_world(), lambda body: answer, replace(ASK, deadline_s=0.5), ASK)
    assert book.outcomes == {Outcome.REFUSED: 1, Outcome.LOST: 1}
    assert book.statuses == {408: 1}


async def test_a_client_that_does_not_read_may_be_dropped_and_a_slow_one_may_not() -> None:
    dropped = streamed(chunk("a"), event({"error": {"code": "slow_reader"}, "choices": []}))
    answers = iter([dropped, dropped, *2 * [streamed(chunk("a"), is_cut=True)]])
    stalling, slow = replace(ASK, stall_s=0.01), replace(ASK, bytes_per_s=1e6)
    book = await ask(new_world(), lambda body: next(answers), stalling, slow, stalling, slow)
    assert book.outcomes == {Outcome.REFUSED: 2, Outcome.LOST: 2}


def test_seeded_answers_repeat_only_where_kernels_are_exact() -> None:
    seeded = BODY | {"temperature": 1.0, "seed": 3}
    for is_exact in (True, False):
        sayings = Sayings(is_exact)
        assert sayings.differing("a@1", CHAT, seeded, ["x"]) is None
        assert (sayings.differing("a@1", CHAT, seeded, ["y"]) is None) != is_exact
        assert sayings.differing("a@1", CHAT, seeded | {"seed": None}, ["z"]) is None
        assert sayings.differing("a@2", CHAT, seeded, ["y"]) is None, "each version speaks itself"


def test_choices_of_a_greedy_request_are_the_same_and_delivery_changes_no_text() -> None:
    sayings = Sayings(is_exact=False)
    assert sayings.differing("a@1", CHAT, BODY | {"n": 2}, ["x", "x"]) is None
    assert sayings.differing("a@1", CHAT, BODY | {"stream": False, "user": "u"}, ["x"]) is None
    assert sayings.differing("a@1", CHAT, BODY | {"n": 2}, ["x", "y"]) is not None
    other = BODY | {"n": 2, "max_tokens": 9}
    assert sayings.differing("a@1", CHAT, other, ["x", "y"]) is not None, "never asked before"


def test_a_user_of_an_experiment_keeps_the_arm() -> None:
    stickiness = Stickiness()
    assert stickiness.moved("u", "a@1") is None
    assert stickiness.moved("u", "a@2") is not None
    stickiness.forget()
    assert stickiness.moved("u", "a@2") is None

"""The soak sees what must not happen: each kind of lost request, each kind of leak."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.adapter import check_adapter, read_adapter
from artifacts.architecture import linear_shapes
from artifacts.base import EMBEDDED_BASE, open_base
from loadtests.soak import checks
from loadtests.soak.book import Book, Outcome
from loadtests.soak.checks import Check
from loadtests.soak.client import CHAT, Ask, Call, Client
from loadtests.soak.folders import write_folder
from loadtests.soak.meaning import GONE, Meaning, Sayings, Stickiness
from loadtests.soak.server import Sample
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
    stalling, slow = replace(ASK, stall_s=0.01), replace(ASK, pause_s=0.01)
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


def test_a_request_ends_once() -> None:
    book = Book()
    number = book.begin("chat", VERSION)
    assert not holds(*checks.nothing_lost(book)), "one has not ended"
    book.leave(number)
    assert holds(*checks.nothing_lost(book))
    with pytest.raises(KeyError):
        book.leave(number)


def test_a_lost_request_fails_the_run() -> None:
    book = Book()
    book.lose(book.begin("chat", VERSION), "why", {}, {}, 1.0)
    assert not holds(*checks.nothing_lost(book))


def holds(*found: Check) -> bool:
    return all(check.holds for check in found)


STATS: JSON = {
    "engine": {
        "running": 0,
        "waiting": 0,
        "kv_blocks_free": 8,
        "kv_blocks_total": 8,
        "known_adapters": 20,
    }
}
METRICS = 'vllm:lora_requests_info{max_lora="6",running_lora_adapters="",waiting="x"} 1.0\n'
ADAPTER = {"id": VERSION, "state": {"running_requests": 0}}


def test_rest_means_that_nothing_is_held() -> None:
    assert holds(*checks.idle(STATS, METRICS, [ADAPTER]))
    for key, value in (
        ("running", 1),
        ("waiting", 1),
        ("kv_blocks_free", 7),
        ("known_adapters", 21),
    ):
        leaking = {"engine": STATS["engine"] | {key: value}}
        assert not holds(*checks.idle(leaking, METRICS, [ADAPTER])), key
    assert not holds(*checks.idle(STATS, METRICS.replace('ers=""', 'ers="a@1"'), [ADAPTER]))
    assert not holds(*checks.idle(STATS, "", [ADAPTER])), "a metric that is gone shows nothing"
    pinned = ADAPTER | {"state": {"running_requests": 1}}
    assert not holds(*checks.idle(STATS, METRICS, [pinned]))


def sample(mib: float, fds: int = 30, threads: int = 12) -> Sample:
    return Sample(0.0, int(mib * 2**20), fds, threads, 0)


def test_memory_that_grows_is_seen_and_a_single_peak_is_not_growth() -> None:
    flat = [sample(500.0)] * 50
    assert holds(checks.memory_is_flat(flat))
    assert holds(checks.memory_is_flat([*flat, sample(900.0)]))
    growing = [sample(500.0 + 0.6 * minute) for minute in range(50)]
    assert "+4.8%" in checks.memory_is_flat(growing).evidence
    assert holds(checks.memory_is_flat(growing))
    assert not holds(checks.memory_is_flat([sample(500.0 + 0.7 * m) for m in range(50)]))


def test_only_a_short_run_on_torch_may_grow() -> None:
    assert checks.allowed_growth(45, is_exact=True) == checks.MAX_GROWTH
    assert checks.allowed_growth(1200, is_exact=False) == checks.MAX_GROWTH
    assert checks.allowed_growth(45, is_exact=False) > checks.MAX_GROWTH


def test_descriptors_and_threads_come_back() -> None:
    before = sample(1.0)
    assert holds(*checks.process_is_as_before(before, sample(2.0, fds=28, threads=9)))
    assert not holds(*checks.process_is_as_before(before, sample(1.0, fds=60)))
    assert not holds(*checks.process_is_as_before(before, sample(1.0, threads=30)))


def test_the_registry_must_hold_what_was_made() -> None:
    found = {"data": [{"id": VERSION}], "aliases": {"tea": {"champion": 1}}}
    champion = {"tea@champion": 1}
    assert holds(*checks.registry_is_whole(0, "", found, {VERSION}, champion))
    assert not holds(*checks.registry_is_whole(1, "damaged", found, {VERSION}, champion))
    assert not holds(*checks.registry_is_whole(0, "", found, {VERSION, "tea@2"}, champion))
    assert not holds(*checks.registry_is_whole(0, "", found, {VERSION}, {"tea@champion": 2}))


def test_the_audit_log_must_have_exactly_what_was_done() -> None:
    book = Book()
    book.done(book.begin("load"), ("adapter.load", VERSION))
    entry = {"who": "loopback", "action": "adapter.load", "subject": VERSION}
    assert holds(checks.audit_is_complete(book, [entry, entry | {"who": "server"}]))
    assert not holds(checks.audit_is_complete(book, []))
    assert not holds(checks.audit_is_complete(book, [entry, entry]))


@pytest.mark.parametrize(
    ("change", "is_right"),
    [
        ({}, True),
        ({"requests": 4, "aborted": 1}, True),
        ({"requests": 4}, True),  # it was whole before the server saw us leave
        ({"requests": 5}, False),
        ({"requests": 1}, False),
        ({"aborted": 2}, False),
        ({"requests": 4, "errors": 1}, False),
        ({"requests": 4, "timed_out": 1}, True),
        ({"requests": 5, "dropped": 2}, False),
        ({"rejected": 0}, False),
        ({"rejected": 3}, False),
    ],
)
def test_the_servers_counts_must_be_possible(change: dict[str, int], is_right: bool) -> None:
    """Three answered, one refused, one left: the server may have answered or aborted that."""
    book = Book()
    for _ in range(3):
        book.answer(book.begin("chat", VERSION), VERSION, None)
    book.refuse(book.begin("chat", VERSION), 429)
    book.leave(book.begin("chat", VERSION))
    row = dict.fromkeys(checks.COUNTS, 0) | {"requests": 3, "rejected": 1} | change
    assert holds(*checks.counters_agree(book, {"adapters": {VERSION: row}, "arms": {}})) == is_right


def test_answers_under_another_version_do_not_agree() -> None:
    book = Book()
    book.answer(book.begin("chat", VERSION), VERSION, "tea/tea@1")
    row = dict.fromkeys(checks.COUNTS, 0) | {"requests": 1}
    right: JSON = {"adapters": {VERSION: row}, "arms": {"tea/tea@1": row}}
    assert holds(*checks.counters_agree(book, right))
    assert not holds(*checks.counters_agree(book, right | {"adapters": {"tea@2": row}}))
    assert not holds(*checks.counters_agree(book, right | {"arms": {}}))


def test_a_server_that_ends_late_or_badly_fails() -> None:
    assert holds(checks.stopped(0, 3.0, 20.0))
    for code, seconds in ((1, 3.0), (None, 30.0), (0, 25.0)):
        assert not holds(checks.stopped(code, seconds, 20.0))
    assert not holds(checks.log_is_quiet(["ERROR: request req_1 failed"]))


def test_the_load_gate_takes_every_kind_of_folder_that_is_written(tmp_path: Path) -> None:
    shapes = linear_shapes(open_base(None).config)
    made: set[tuple[int, tuple[str, ...]]] = set()
    hashes: set[str] = set()
    config = json.loads((EMBEDDED_BASE / "config.json").read_text(encoding="utf-8"))
    for seed in range(30):
        folder = write_folder(tmp_path / str(seed), config, seed)
        weights = read_adapter(folder)
        check_adapter(weights, shapes, max_rank=16)
        made.add((weights.rank, weights.target_modules))
        hashes.add(weights.content_hash)
    assert len(made) == 30
    assert len(hashes) == 30

"""The end of a soak: each kind of leak and disagreement fails it, what is possible does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.adapter import check_adapter, read_adapter
from artifacts.architecture import linear_shapes
from artifacts.base import EMBEDDED_BASE, open_base
from loadtests.soak import checks
from loadtests.soak.book import Book
from loadtests.soak.checks import Check
from loadtests.soak.folders import write_folder
from loadtests.soak.server import Sample

JSON = dict[str, Any]
VERSION = "tea@1"


def holds(*found: Check) -> bool:
    return all(check.holds for check in found)


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


def test_a_soak_in_which_something_never_happened_fails() -> None:
    book = Book()
    assert not holds(checks.everything_happened(book))
    book.kinds.update(checks.WANTED)
    assert holds(checks.everything_happened(book))
    engine = {"preemptions": 1, "suspensions": 1}
    assert holds(checks.was_tight({"engine": engine}))
    assert not holds(checks.was_tight({"engine": engine | {"preemptions": 0}}))


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
        ({"requests": 4, "dropped": 1}, True),
        ({"requests": 3, "dropped": 1}, False),  # then only two were answered
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

"""Feedback refers to answers that were given, replaces itself, and survives odd text."""

from __future__ import annotations

import math

import pytest
from sqlalchemy import func, select

from artifacts.database import Database
from artifacts.errors import InvalidInput, NotFound
from artifacts.home import Home
from server.comparison import feedback as module
from server.comparison.feedback import Feedback
from server.comparison.journal import AnswerJournal
from server.tables import AnswerRow, FeedbackRow


@pytest.fixture
def journal(home: Home) -> AnswerJournal:
    return AnswerJournal(home.answers)


def count(database: Database, table: type[AnswerRow] | type[FeedbackRow]) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_second_score_replaces_the_first(database: Database, journal: AnswerJournal) -> None:
    feedback = Feedback(database, journal, max_answers=100)
    feedback.note_answer("chatcmpl-1", model="shop@2", experiment="shop", arm="shop@2", subject="a")
    feedback.record("chatcmpl-1", 0.25, "slow")
    row = feedback.record("chatcmpl-1", 1.0)
    assert (row.score, row.comment, row.arm, row.subject) == (1.0, None, "shop@2", "a")
    assert count(database, FeedbackRow) == 1


def test_unknown_answers_and_bad_scores_are_refused(
    database: Database, journal: AnswerJournal
) -> None:
    feedback = Feedback(database, journal, max_answers=100)
    with pytest.raises(NotFound, match="chatcmpl-9"):
        feedback.record("chatcmpl-9", 1)
    feedback.note_answer("chatcmpl-1", model="base")
    for score in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidInput, match="from 0 to 1"):
            feedback.record("chatcmpl-1", score)
    assert count(database, FeedbackRow) == 0


def test_answers_of_a_former_process_can_be_scored(
    database: Database, journal: AnswerJournal
) -> None:
    first = Feedback(database, journal, max_answers=100)
    first.note_answer("chatcmpl-1", model="shop@1")
    first.flush()
    assert Feedback(database, journal, max_answers=100).record("chatcmpl-1", 0.5).model == "shop@1"


def test_a_killed_process_forgets_no_answer(database: Database, home: Home) -> None:
    first = Feedback(database, AnswerJournal(home.answers), max_answers=100)
    first.note_answer("chatcmpl-1", model="shop@1", subject="用户")
    first.flush()
    for number in (2, 3):  # not flushed: SIGKILL comes first
        first.note_answer(f"chatcmpl-{number}", model="shop@2", subject="用户")
    second = Feedback(database, AnswerJournal(home.answers), max_answers=100)
    row = second.record("chatcmpl-3", 0.5)
    assert (row.model, row.subject) == ("shop@2", "用户")
    assert count(database, AnswerRow) == 3
    assert not list(home.answers.iterdir()), "the database has them all"


def test_an_answer_that_was_written_twice_is_one(database: Database, home: Home) -> None:
    first = Feedback(database, AnswerJournal(home.answers), max_answers=10_000)
    for number in range(1200):
        first.note_answer(f"chatcmpl-{number}", model="shop@1")
    [file] = home.answers.iterdir()
    written = file.read_bytes()
    first.flush()
    file.write_bytes(written)  # killed between the commit and the removal
    second = Feedback(database, AnswerJournal(home.answers), max_answers=10_000)
    second.note_answer("chatcmpl-new", model="shop@1")
    second.flush()
    assert count(database, AnswerRow) == 1201
    assert not list(home.answers.iterdir())


def test_a_torn_line_costs_no_other_answer(database: Database, home: Home) -> None:
    first = Feedback(database, AnswerJournal(home.answers), max_answers=100)
    first.note_answer("chatcmpl-1", model="shop@1")
    first.note_answer("chatcmpl-2", model="shop@1")
    [file] = home.answers.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    second = Feedback(database, AnswerJournal(home.answers), max_answers=100)
    assert second.record("chatcmpl-1", 1).model == "shop@1"
    with pytest.raises(NotFound):
        second.record("chatcmpl-2", 1)


def test_while_the_database_fails_the_journal_grows_and_nothing_is_lost(
    database: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Feedback(database, AnswerJournal(home.answers), max_answers=100)
    with monkeypatch.context() as broken:
        broken.setattr(database, "session", lambda: 1 / 0)
        for number in range(3):
            first.note_answer(f"chatcmpl-{number}", model="shop@1")
            with pytest.raises(ZeroDivisionError):
                first.flush()
    assert len(list(home.answers.iterdir())) == 3
    second = Feedback(database, AnswerJournal(home.answers), max_answers=100)
    assert [second.record(f"chatcmpl-{n}", 1).score for n in range(3)] == [1, 1, 1]
    first.flush()  # the same answers again: known by now
    assert count(database, AnswerRow) == 3


def test_a_full_disk_costs_no_answer(
    database: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = AnswerJournal(home.answers)
    feedback = Feedback(database, journal, max_answers=100)

    def fail(record: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "append", fail)
    feedback.note_answer("chatcmpl-1", model="shop@1")
    assert feedback.record("chatcmpl-1", 1).model == "shop@1"


def test_odd_text_of_one_client_does_not_spoil_the_batch(
    database: Database, journal: AnswerJournal
) -> None:
    feedback = Feedback(database, journal, max_answers=100)
    feedback.note_answer("chatcmpl-1", model="base", subject="\ud800\0x")
    feedback.note_answer("chatcmpl-2", model="base")
    feedback.flush()
    assert count(database, AnswerRow) == 2
    assert feedback.record("chatcmpl-2", 1.0, "\udfff").comment == "?"


def test_old_answers_are_pruned_but_their_feedback_stays(
    database: Database, journal: AnswerJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRUNE_EVERY", 10)
    feedback = Feedback(database, journal, max_answers=15)
    feedback.note_answer("chatcmpl-0", model="shop@1")
    feedback.record("chatcmpl-0", 0.5)
    for number in range(1, 100):
        feedback.note_answer(f"chatcmpl-{number}", model="shop@1")
        feedback.flush()
    assert count(database, AnswerRow) <= 25
    assert feedback.record("chatcmpl-0", 0.75).score == 0.75
    with pytest.raises(NotFound):
        feedback.record("chatcmpl-5", 1)

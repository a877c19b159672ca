"""Feedback refers to answers that were given, replaces itself, and survives odd text."""

from __future__ import annotations

import math

import pytest
from sqlalchemy import func, select

from artifacts.database import Database
from artifacts.errors import InvalidInput, NotFound
from server.comparison import feedback as module
from server.comparison.feedback import Feedback
from server.tables import AnswerRow, FeedbackRow


def count(database: Database, table: type[AnswerRow] | type[FeedbackRow]) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_second_score_replaces_the_first(database: Database) -> None:
    feedback = Feedback(database, max_answers=100)
    feedback.note_answer("chatcmpl-1", model="shop@2", experiment="shop", arm="shop@2", subject="a")
    feedback.record("chatcmpl-1", 0.25, "slow")
    row = feedback.record("chatcmpl-1", 1.0)
    assert (row.score, row.comment, row.arm, row.subject) == (1.0, None, "shop@2", "a")
    assert count(database, FeedbackRow) == 1


def test_unknown_answers_and_bad_scores_are_refused(database: Database) -> None:
    feedback = Feedback(database, max_answers=100)
    with pytest.raises(NotFound, match="chatcmpl-9"):
        feedback.record("chatcmpl-9", 1)
    feedback.note_answer("chatcmpl-1", model="base")
    for score in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidInput, match="from 0 to 1"):
            feedback.record("chatcmpl-1", score)
    assert count(database, FeedbackRow) == 0


def test_answers_of_a_former_process_can_be_scored(database: Database) -> None:
    first = Feedback(database, max_answers=100)
    first.note_answer("chatcmpl-1", model="shop@1")
    first.flush()
    assert Feedback(database, max_answers=100).record("chatcmpl-1", 0.5).model == "shop@1"


def test_odd_text_of_one_client_does_not_spoil_the_batch(database: Database) -> None:
    feedback = Feedback(database, max_answers=100)
    feedback.note_answer("chatcmpl-1", model="base", subject="\ud800\0x")
    feedback.note_answer("chatcmpl-2", model="base")
    feedback.flush()
    assert count(database, AnswerRow) == 2
    assert feedback.record("chatcmpl-2", 1.0, "\udfff").comment == "?"


def test_old_answers_are_pruned_but_their_feedback_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRUNE_EVERY", 10)
    feedback = Feedback(database, max_answers=15)
    feedback.note_answer("chatcmpl-0", model="shop@1")
    feedback.record("chatcmpl-0", 0.5)
    for number in range(1, 100):
        feedback.note_answer(f"chatcmpl-{number}", model="shop@1")
        feedback.flush()
    assert count(database, AnswerRow) <= 25
    assert feedback.record("chatcmpl-0", 0.75).score == 0.75
    with pytest.raises(NotFound):
        feedback.record("chatcmpl-5", 1)

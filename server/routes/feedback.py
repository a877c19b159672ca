"""POST /v1/feedback: how good an answer was."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from server.comparison.feedback import MAX_COMMENT
from server.deps import Infer, ServerDep
from server.fields import StrictBody, Text
from server.routes.openapi import ERRORS, error

router = APIRouter(tags=["experiments"])


class FeedbackBody(StrictBody):
    """``id`` is a completion's; a second score of the same answer replaces the first."""

    id: Text = Field(min_length=1, max_length=128)
    score: float = Field(ge=0, le=1)
    comment: Text | None = Field(None, max_length=MAX_COMMENT)


@router.post(
    "/v1/feedback",
    summary="Score an answer",
    responses={400: ERRORS[400], 404: error("No answer has this id.")},
)
def give_feedback(body: FeedbackBody, server: ServerDep, caller: Infer) -> dict[str, Any]:
    row = server.feedback.record(body.id, body.score, body.comment)
    return {
        "id": row.answer_id,
        "object": "feedback",
        "score": row.score,
        "comment": row.comment,
        "model": row.model,
        "experiment": row.experiment,
        "arm": row.arm,
        "created_at": int(row.created_at),
        "updated_at": int(row.updated_at),
    }

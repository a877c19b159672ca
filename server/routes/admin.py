"""The operator's routes: adapters, aliases, experiments, the audit trail; and feedback."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from artifacts.audit import AuditRow
from server.deps import Admin, ServerDep
from server.paging import Order, Paging, list_json
from server.routes import adapters, experiments, feedback

router = APIRouter()
router.include_router(adapters.router)
router.include_router(experiments.router)
router.include_router(feedback.router)


@router.get("/admin/audit", summary="Who changed what, and when", tags=["operations"])
def audit_trail(
    server: ServerDep,
    caller: Admin,
    after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Order = "desc",
    subject: str | None = None,
) -> dict[str, Any]:
    """Newest first; ``subject`` is what was changed, such as ``shop@3`` or a job's id."""
    paging = Paging(None if after is None else str(after), limit, order)
    return list_json(server.audit.page(paging, subject).map(_entry))


def _entry(row: AuditRow) -> dict[str, Any]:
    return {
        "id": row.sequence,
        "at": row.at,
        "who": row.who,
        "action": row.action,
        "subject": row.subject,
        "detail": row.detail,
    }

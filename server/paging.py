"""OpenAI's list paging (``after``, ``limit``, ``order``) over rows with a growing ``sequence``.

Knows rows and queries; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

Order = Literal["asc", "desc"]
Item = TypeVar("Item")
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list: up to ``limit`` items behind the one whose id is ``after``."""

    after: str | None = None
    limit: int = 20
    order: Order = "desc"


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Items in the asked order; ``has_more`` tells whether the list goes on."""

    items: list[Item]
    has_more: bool

    def map(self, function: Callable[[Item], Other]) -> Page[Other]:
        return Page([function(item) for item in self.items], self.has_more)


def page_of(
    session: Session,
    query: Select[Item],
    sequence: InstrumentedAttribute[Any],
    paging: Paging,
    after: int | None,
) -> Page[Item]:
    """The rows of ``query`` behind the one whose ``sequence`` is ``after`` (None: from the top)."""
    is_ascending = paging.order == "asc"
    if after is not None:
        query = query.where(sequence > after if is_ascending else sequence < after)
    query = query.order_by(sequence.asc() if is_ascending else sequence.desc())
    rows = list(session.scalars(query.limit(paging.limit + 1)))
    return Page(rows[: paging.limit], has_more=len(rows) > paging.limit)


def list_json(page: Page[dict[str, Any]]) -> dict[str, Any]:
    """A list object with what OpenAI's client pages by."""
    return {
        "object": "list",
        "data": page.items,
        "first_id": page.items[0].get("id") if page.items else None,
        "last_id": page.items[-1].get("id") if page.items else None,
        "has_more": page.has_more,
    }

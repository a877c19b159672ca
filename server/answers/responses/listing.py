"""What a response was made from, in pages."""

from __future__ import annotations

from collections.abc import Sequence

from artifacts.errors import InvalidInput
from server.answers.responses.items import Item
from server.answers.responses.store import StoredResponse
from server.paging import Page, Paging


def page_of_input(chain: Sequence[StoredResponse], paging: Paging) -> Page[Item]:
    """The input of the last response of ``chain``, and all that came before it.

    Raises:
        InvalidInput: ``paging.after`` is none of these items.
    """
    items = [item for stored in chain[:-1] for item in stored.items] + chain[-1].own_items
    if paging.order == "desc":
        items.reverse()
    start = 0
    if paging.after is not None:
        places = [at for at, item in enumerate(items) if item["id"] == paging.after]
        if not places:
            raise InvalidInput(f"No input item has the id {paging.after!r}.", param="after")
        start = places[0] + 1
    rest = items[start:]
    return Page(rest[: paging.limit], has_more=len(rest) > paging.limit)

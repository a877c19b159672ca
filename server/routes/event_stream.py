"""A job's events as server-sent events: all there are, then each as it comes, then ``[DONE]``.

OpenAI's earlier API had this (``stream=true``); its client reads it as any stream of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

from artifacts.errors import StorageError
from server.errors import to_api_error
from server.jobs.states import ENDED
from server.jobs.store import event_id
from server.jobs.view import event_json
from server.paging import Paging
from server.state import Server

log = logging.getLogger("loraloop.server")

POLL_S = 0.3
PAGE = 100
DONE = b"data: [DONE]\n\n"


async def follow_events(server: Server, job_id: str, after: str | None) -> AsyncIterator[bytes]:
    """Events behind ``after`` in order, until the job has ended; a pause does not end it.

    A server that drains ends the stream without ``[DONE]``: follow on from the last id.
    """
    store = server.jobs.store
    while not server.lifecycle.is_draining:
        try:
            # The state first: what a job says before it ends is then never missed.
            job = await asyncio.to_thread(store.get, job_id)
            page = await asyncio.to_thread(store.events, job_id, Paging(after, PAGE, "asc"))
        except StorageError as error:
            log.error("the events of %s cannot be read: %s", job_id, error)
            problem = to_api_error(error)
            assert problem is not None
            yield _data(problem.body())
            return
        for event in page.items:
            yield _data(event_json(event))
            after = event_id(event)
        if page.has_more:
            continue
        if job.status in ENDED:
            yield DONE
            return
        await asyncio.sleep(POLL_S)


def _data(body: object) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"

"""The events of a job as server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from artifacts.errors import StorageError
from server.routes import event_stream
from server.state import Server
from tests.server.conftest import Live
from tests.server.control.scripts import ENDLESS, GOOD
from tests.server.control.test_http_jobs import upload, wait_for


def test_streamed_events_reach_the_official_client(
    api: openai.OpenAI, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "PAGE", 2)
    monkeypatch.setattr(event_stream, "POLL_S", 0.02)
    job = api.fine_tuning.jobs.create(model="tiny-base", training_file=upload(api, *GOOD))
    path = f"/fine_tuning/jobs/{job.id}/events"
    stream = api.get(
        path,
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
        options={"params": {"stream": "true"}},
    )
    streamed = [event.id for event in stream]
    listed = [event.id for event in api.fine_tuning.jobs.list_events(job.id)]
    assert streamed == listed[::-1]
    assert len(streamed) > 4
    headers = {"accept": "text/event-stream"}
    rest = httpx.get(f"{live.url}/v1{path}", headers=headers, params={"after": streamed[-2]})
    assert rest.headers["content-type"].startswith("text/event-stream")
    assert rest.text.count("data: ") == 2
    assert rest.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("params", "status"),
    [({"order": "desc"}, 400), ({"limit": 3}, 400), ({"after": "nonsense"}, 400)],
)
def test_a_stream_refuses_what_belongs_to_pages(
    api: openai.OpenAI, live: Live, params: dict[str, Any], status: int
) -> None:
    job = api.fine_tuning.jobs.create(model="tiny-base", training_file=upload(api, *GOOD))
    url = f"{live.url}/v1/fine_tuning/jobs"
    answer = httpx.get(f"{url}/{job.id}/events", params={"stream": True, **params})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, next(iter(params)))
    assert httpx.get(f"{url}/ftjob-none/events?stream=true").status_code == 404


def read_until(live: Live, job_id: str, happened: Callable[[list[str]], None]) -> list[str]:
    """The lines of a stream until the server ends it; ``happened`` sees them all at each."""
    url = f"{live.url}/v1/fine_tuning/jobs/{job_id}/events?stream=true"
    lines: list[str] = []
    with httpx.stream("GET", url, timeout=20) as answer:
        for line in answer.iter_lines():
            lines += [line] if line else []
            happened(lines)
    return lines


def test_a_server_that_drains_ends_the_stream_without_done(
    api: openai.OpenAI, live: Live, fake_server: Server
) -> None:
    job = api.fine_tuning.jobs.create(model="tiny-base", training_file=upload(api, *ENDLESS))

    def drain_once_it_runs(lines: list[str]) -> None:
        if any("Training started" in line for line in lines):
            fake_server.lifecycle.begin_drain()

    lines = read_until(live, job.id, drain_once_it_runs)
    assert "data: [DONE]" not in lines
    assert "Created fine-tuning job" in lines[0]
    api.fine_tuning.jobs.cancel(job.id)


def test_a_disk_that_fails_is_told_in_the_stream(
    api: openai.OpenAI, live: Live, fake_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.fine_tuning.jobs.create(model="tiny-base", training_file=upload(api, *ENDLESS))
    wait_for(api, job.id, "running")

    def fail(*_: Any) -> None:
        raise StorageError("the disk fails")

    def then_the_disk_fails(lines: list[str]) -> None:
        if any("Training started" in line for line in lines):
            monkeypatch.setattr(fake_server.jobs.store, "events", fail)

    lines = read_until(live, job.id, then_the_disk_fails)
    assert '"storage_failed"' in lines[-1]
    monkeypatch.undo()
    api.fine_tuning.jobs.cancel(job.id)

"""/v1/fine_tuning/jobs with the official client, and every body that it should refuse."""

from __future__ import annotations

import os
import time
from typing import Any

import httpx
import openai
import pytest

from artifacts.home import Home
from artifacts.registry import Registry
from tests.server.conftest import Live, wait_until
from tests.server.control.conftest import steps
from tests.server.control.scripts import ENDLESS, GOOD


def upload(api: openai.OpenAI, *lines: dict[str, Any]) -> str:
    return api.files.create(file=("data.jsonl", steps(*lines)), purpose="fine-tune").id


def wait_for(api: openai.OpenAI, job_id: str, status: str, timeout_s: float = 15) -> Any:
    deadline = time.monotonic() + timeout_s
    while (job := api.fine_tuning.jobs.retrieve(job_id)).status != status:
        assert time.monotonic() < deadline, job
        assert job.status not in ("failed", "cancelled", "succeeded"), job.error
        time.sleep(0.02)
    return job


def test_the_official_client_trains_and_asks_the_result(
    api: openai.OpenAI, registry: Registry
) -> None:
    file_id = upload(api, *GOOD)
    job = api.fine_tuning.jobs.create(
        model="tiny-base",
        training_file=file_id,
        suffix="shop",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        metadata={"team": "support"},
        extra_body={"loraloop": {"rank": 4, "target_modules": ["q_proj"]}},
    )
    assert job.status in ("queued", "validating_files")
    assert (job.seed, job.training_file, job.metadata) == (7, file_id, {"team": "support"})
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto"
    done = wait_for(api, job.id, "succeeded")
    assert done.fine_tuned_model == "ft:tiny-base:loraloop:shop:1"
    assert done.finished_at >= done.created_at
    answer = api.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.model == "shop@1"
    events = list(api.fine_tuning.jobs.list_events(job.id, limit=2))  # pages by itself
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == "Created fine-tuning job"
    metrics: list[Any] = [event.data for event in events if event.type == "metrics"]
    assert (metrics[0]["step"], metrics[0]["train_loss"]) == (10, 1.5)
    with pytest.raises(openai.APIStatusError) as caught:
        api.fine_tuning.jobs.cancel(job.id)
    assert caught.value.status_code == 409
    assert api.files.delete(file_id).deleted


def test_lists_page_and_filter(api: openai.OpenAI) -> None:
    file_id = upload(api, {"sleep": 60})
    jobs = [
        api.fine_tuning.jobs.create(
            model="tiny-base", training_file=file_id, metadata={"n": str(n % 2)}
        ).id
        for n in range(5)
    ]
    assert [job.id for job in api.fine_tuning.jobs.list(limit=2)] == jobs[::-1]
    odd = api.fine_tuning.jobs.list(metadata={"n": "1"})
    assert [job.id for job in odd] == [jobs[3], jobs[1]]
    with pytest.raises(openai.NotFoundError):
        api.fine_tuning.jobs.list(after="ftjob-none")
    for job_id in jobs:
        assert api.fine_tuning.jobs.cancel(job_id).status == "cancelled"


def test_a_file_in_use_cannot_be_deleted(api: openai.OpenAI) -> None:
    file_id = upload(api, {"sleep": 60})
    job = api.fine_tuning.jobs.create(model="tiny-base", training_file=file_id)
    with pytest.raises(openai.ConflictError) as caught:
        api.files.delete(file_id)
    assert job.id in caught.value.message
    api.fine_tuning.jobs.cancel(job.id)
    assert api.files.delete(file_id).deleted


def test_the_child_is_another_process(api: openai.OpenAI, live: Live) -> None:
    job = api.fine_tuning.jobs.create(model="tiny-base", training_file=upload(api, *ENDLESS))
    wait_for(api, job.id, "running")
    facts = httpx.get(f"{live.url}/v1/fine_tuning/jobs/{job.id}").json()["loraloop"]
    assert facts["pid"] not in (None, os.getpid())
    api.fine_tuning.jobs.cancel(job.id)


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-4o-mini"}, 404, "model"),
    ({"model": ""}, 400, "model"),
    ({"training_file": "file-none"}, 400, "training_file"),
    ({"training_file": 5}, 400, "training_file"),
    ({"validation_file": "file-none"}, 400, "validation_file"),
    ({"suffix": "Not A Name"}, 400, "suffix"),
    ({"suffix": "x" * 65}, 400, "suffix"),
    ({"suffix": "tiny-base"}, 400, "suffix"),
    ({"suffix": "../../etc"}, 400, "suffix"),
    ({"seed": -1}, 400, "seed"),
    ({"seed": "7"}, 400, "seed"),
    ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": "many"}}, 400, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"beta": 0.1}}, 400, "hyperparameters.beta"),
    ({"method": {"type": "reinforcement"}}, 400, "method.type"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}}, 400, "method.dpo"),
    ({"method": {"type": "dpo", "supervised": {}}}, 400, "method.supervised"),
    ({"method": {"type": "dpo"}, "hyperparameters": {"n_epochs": 1}}, 400, "hyperparameters"),
    ({"loraloop": {"dpo_loss": "ipo"}}, 400, "dpo_loss"),
    ({"loraloop": {"method": "full"}}, 400, "loraloop.method"),
    ({"loraloop": {"suite": "suite.yaml"}}, 400, "loraloop.suite"),
    ({"loraloop": {"trackers": ["wandb"]}}, 400, "loraloop.trackers"),
    ({"loraloop": {"start_from": "shop@1"}}, 400, "loraloop.start_from"),
    ({"loraloop": {"validation_data": ["/etc/passwd"]}}, 400, "loraloop.validation_data"),
    ({"method": {"type": "supervised", "dpo": {}}}, 400, "method.dpo"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 400, "integrations"),
    ({"metadata": {"k": "v" * 513}}, 400, "metadata"),
    ({"metadata": {str(n): "v" for n in range(17)}}, 400, "metadata"),
    ({"loraloop": {"rang": 8}}, 400, "loraloop.rang"),
    ({"loraloop": {"rank": 65}}, 400, "rank"),
    ({"loraloop": {"output_dir": "/tmp/x"}}, 400, "loraloop.output_dir"),
    ({"loraloop": {"num_threads": 64}}, 400, "loraloop.num_threads"),
    ({"loraloop": {"learning_rate": "fast"}}, 400, "loraloop.learning_rate"),
    (
        {"loraloop": {"epochs": 1}, "hyperparameters": {"n_epochs": 2}},
        400,
        "loraloop.epochs",
    ),
    ({"n_epochs": 3}, 400, "n_epochs"),
]


def test_what_cannot_be_done_is_named(
    live: Live, api: openai.OpenAI, home: Home, subtests: pytest.Subtests
) -> None:
    good = {"model": "tiny-base", "training_file": upload(api, *GOOD)}
    for change, status, param in REFUSED:
        with subtests.test(change=change):
            answer = httpx.post(f"{live.url}/v1/fine_tuning/jobs", json={**good, **change})
            error = answer.json()["error"]
            assert (answer.status_code, bool(error["message"])) == (status, True), error
            assert (error["param"] or "").startswith(param), error
    assert api.fine_tuning.jobs.list().data == []
    assert list(home.jobs.iterdir()) == []


def test_a_wrong_key_names_the_nearest(live: Live) -> None:
    body = {"model": "tiny-base", "training_file": "x", "loraloop": {"leaning_rate": 1e-4}}
    answer = httpx.post(f"{live.url}/v1/fine_tuning/jobs", json=body)
    assert "learning_rate" in answer.json()["error"]["message"]


def test_malformed_json_and_unknown_jobs(live: Live, subtests: pytest.Subtests) -> None:
    url, headers = f"{live.url}/v1/fine_tuning/jobs", {"content-type": "application/json"}
    for body in (b"{", b"", b"[]", b'"x"', b"\xff"):
        with subtests.test(body=body):
            answer = httpx.post(url, content=body, headers=headers)
            assert answer.status_code == 400
            assert set(answer.json()) == {"error"}
    for path in ("", "/events", "/checkpoints"):
        with subtests.test(path=path):
            answer = httpx.get(f"{url}/ftjob-none{path}")
            assert answer.status_code == 404
            assert "ftjob-none" in answer.json()["error"]["message"]


def test_events_can_be_followed_forwards(api: openai.OpenAI, live: Live) -> None:
    job = api.fine_tuning.jobs.create(model="tiny-base", training_file=upload(api, *GOOD))
    url = f"{live.url}/v1/fine_tuning/jobs/{job.id}/events"
    seen: list[dict[str, Any]] = []
    after: str | None = None

    def follow() -> bool:
        nonlocal after
        params: dict[str, Any] = {"order": "asc", "limit": 2}
        if after is not None:
            params["after"] = after
        page = httpx.get(url, params=params).json()
        seen.extend(page["data"])
        after = page["last_id"] or after
        return bool(seen) and seen[-1]["message"] == "The job has successfully completed"

    wait_until(follow, 15)
    assert len({event["id"] for event in seen}) == len(seen)
    assert seen[0]["message"] == "Created fine-tuning job"
    bad = httpx.get(url, params={"after": "nonsense"})
    assert bad.status_code == 400

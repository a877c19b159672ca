"""What goes into a job and what comes out of it: files, errors of rows, results, its turn."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import httpx
import openai
import pytest

from artifacts.home import Home
from tests.server.conftest import Live, Publish
from tests.server.control.conftest import steps
from tests.server.control.scripts import GOOD, STARTED
from tests.server.control.test_http_jobs import upload, wait_for


def config_of(home: Home, job_id: str) -> dict[str, Any]:
    facts = json.loads((home.jobs / job_id / "work" / "env.json").read_text())
    config: dict[str, Any] = facts["config"]
    return config


def failed(api: openai.OpenAI, **body: Any) -> Any:
    job = api.fine_tuning.jobs.create(model="tiny-base", **body)
    while (job := api.fine_tuning.jobs.retrieve(job.id)).status != "failed":
        assert job.status in ("queued", "validating_files", "running"), job
    return job


def test_a_validation_file_is_what_training_validates_on(api: openai.OpenAI, home: Home) -> None:
    held_out = upload(api, {"anything": 1})
    job = api.fine_tuning.jobs.create(
        model="tiny-base", training_file=upload(api, *GOOD), validation_file=held_out
    )
    assert job.validation_file == held_out
    wait_for(api, job.id, "succeeded")
    config = config_of(home, job.id)
    assert config["validation_data"] == [str(home.files / f"{held_out}.jsonl")]


def test_bad_rows_come_back_with_their_file_and_line(
    api: openai.OpenAI, home: Home, subtests: pytest.Subtests
) -> None:
    held_out = api.files.create(file=("held-out.jsonl", b"{}\n"), purpose="fine-tune").id
    for param in ("training_file", "validation_file"):
        with subtests.test(param=param):
            path = "{data}" if param == "training_file" else str(home.files / f"{held_out}.jsonl")
            rows = [{"file": path, "line": n, "reason": f"reason {n}"} for n in (3, 7)]
            event = {
                "event": "failed",
                "code": "invalid_data",
                "message": f"2 of 9 rows cannot be used (max_bad_rows=0):\n  {path}:3: reason 3",
                "rows": rows,
            }
            file_id = upload(api, {"emit": STARTED}, {"fail": event})
            job = failed(api, training_file=file_id, validation_file=held_out)
            name = "data.jsonl" if param == "training_file" else "held-out.jsonl"
            assert (job.error.code, job.error.param) == ("invalid_training_file", param)
            assert f"{name}:3: reason 3" in job.error.message
            assert f"{name}:7: reason 7" in job.error.message
            assert "file-" not in job.error.message
            assert job.loraloop["rows"] == [{**row, "file": name} for row in rows]


def test_a_file_that_is_gone_is_named(api: openai.OpenAI, home: Home) -> None:
    held_out = upload(api, {"anything": 1})
    first = api.fine_tuning.jobs.create(model="tiny-base", training_file=upload(api, {"sleep": 60}))
    job = api.fine_tuning.jobs.create(
        model="tiny-base", training_file=upload(api, *GOOD), validation_file=held_out
    )
    with pytest.raises(openai.ConflictError):
        api.files.delete(held_out)
    (home.files / f"{held_out}.jsonl").unlink()
    api.fine_tuning.jobs.cancel(first.id)
    while (job := api.fine_tuning.jobs.retrieve(job.id)).status != "failed":
        assert job.status != "succeeded"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_training_file", "validation_file")


def test_dpo_is_shown_as_it_was_asked(api: openai.OpenAI, home: Home) -> None:
    job = api.fine_tuning.jobs.create(
        model="tiny-base",
        training_file=upload(api, *GOOD),
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2}}},
    )
    assert job.method is not None
    assert job.method.type == "dpo"
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2
    assert job.method.dpo.hyperparameters.batch_size == "auto"
    wait_for(api, job.id, "succeeded")
    config = config_of(home, job.id)
    assert (config["objective"], config["dpo_beta"], config["epochs"]) == ("dpo", 0.2, 2)


def test_a_job_may_go_on_from_an_adapter(
    api: openai.OpenAI, publish: Publish, home: Home, live: Live
) -> None:
    publish("shop")
    publish("shop")
    file_id = upload(api, *GOOD)
    job = api.fine_tuning.jobs.create(model="shop", training_file=file_id)
    assert job.model == "shop@1"  # its champion, pinned when the job was made
    wait_for(api, job.id, "succeeded")
    assert config_of(home, job.id)["start_from"] == "shop@1"
    body = {"name": "next", "file_id": file_id, "start_from": "shop@9"}
    answer = httpx.post(f"{live.url}/admin/adapters/train", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "start_from")
    body["start_from"] = "shop@2"
    answer = httpx.post(f"{live.url}/admin/adapters/train", json=body)
    assert answer.json()["model"] == "shop@2"


def test_the_results_are_a_file(api: openai.OpenAI) -> None:
    told = [
        {"event": "progress", "step": 1, "total_steps": 4, "loss": 2.5, "learning_rate": 1e-3},
        {"event": "progress", "step": 2, "total_steps": 4, "loss": 2.0, "learning_rate": 5e-4},
        {"event": "evaluated", "step": 2, "validation_loss": 2.25},
    ]
    script: list[dict[str, Any]] = [{"emit": event} for event in (STARTED, *told)]
    script.append({"publish": True})
    job = api.fine_tuning.jobs.create(
        model="tiny-base", training_file=upload(api, *script), suffix="shop"
    )
    assert job.result_files == []
    done = wait_for(api, job.id, "succeeded")
    (file_id,) = done.result_files
    file = api.files.retrieve(file_id)
    assert (file.purpose, file.filename) == ("fine-tune-results", "shop-1-results.csv")
    text = api.files.content(file_id).text
    assert file.bytes == len(text)
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"step": "1", "train_loss": "2.5", "valid_loss": "", "learning_rate": "0.001"},
        {"step": "2", "train_loss": "2.0", "valid_loss": "2.25", "learning_rate": "0.0005"},
    ]
    with pytest.raises(openai.BadRequestError, match="fine-tune-results") as caught:
        api.fine_tuning.jobs.create(model="tiny-base", training_file=file_id)
    assert caught.value.param == "training_file"
    assert api.files.delete(file_id).deleted


def test_waiting_jobs_know_their_place(api: openai.OpenAI) -> None:
    file_id = upload(api, {"sleep": 60})
    jobs = [
        api.fine_tuning.jobs.create(model="tiny-base", training_file=file_id).id for _ in range(4)
    ]
    wait_for(api, jobs[0], "validating_files")

    def places() -> list[Any]:
        shown: list[Any] = [api.fine_tuning.jobs.retrieve(job_id) for job_id in jobs]
        return [job.loraloop["queue_position"] for job in shown]

    assert places() == [None, 1, 2, 3]
    listed: list[Any] = list(api.fine_tuning.jobs.list())
    assert [job.loraloop["queue_position"] for job in listed] == [3, 2, 1, None]
    api.fine_tuning.jobs.pause(jobs[1])
    assert places() == [None, None, 1, 2]
    resumed: Any = api.fine_tuning.jobs.resume(jobs[1])
    assert resumed.loraloop["queue_position"] == 3
    for job_id in jobs[::-1]:
        api.fine_tuning.jobs.cancel(job_id)


def test_each_route_refuses_the_states_that_do_not_allow_it(api: openai.OpenAI) -> None:
    jobs = api.fine_tuning.jobs
    job = jobs.create(model="tiny-base", training_file=upload(api, *GOOD))
    wait_for(api, job.id, "succeeded")
    for change in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError) as caught:
            change(job.id)
        assert "succeeded" in caught.value.message
        with pytest.raises(openai.NotFoundError):
            change("ftjob-none")


def test_bytes_of_a_data_file_are_what_was_uploaded(api: openai.OpenAI) -> None:
    content = steps(*GOOD)
    file_id = api.files.create(file=("data.jsonl", content), purpose="fine-tune").id
    assert api.files.content(file_id).content == content

"""A fine-tuning job as OpenAI's client sees it, with the real trainer on the embedded base."""

from __future__ import annotations

import csv
import io
from typing import Any

import openai
import pytest
from openai.types.fine_tuning import FineTuningJobEvent

from tests.live.conftest import REPOSITORY, LiveServer

BASE = "loraloop-embedded"
ROWS = (REPOSITORY / "examples" / "lantern-tea.jsonl").read_bytes().splitlines(keepends=True)
QUICK = {"rank": 4, "eval_steps": 2, "max_length": 96, "near_duplicates": "off"}


def upload(client: openai.OpenAI, name: str, rows: list[bytes]) -> str:
    return client.files.create(file=(name, b"".join(rows)), purpose="fine-tune").id


def follow(client: openai.OpenAI, job_id: str) -> list[FineTuningJobEvent]:
    """Every event of the job, as they come, until it ends."""
    stream = client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=FineTuningJobEvent,
        stream=True,
        stream_cls=openai.Stream[FineTuningJobEvent],
        options={"params": {"stream": "true"}},
    )
    return list(stream)


def say(client: openai.OpenAI, model: str) -> Any:
    return client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "How do I brew jasmine needles?"}],
        temperature=0,
        max_tokens=8,
    )


@pytest.mark.timeout(300)
def test_a_job_with_validation_checkpoints_events_and_results(live: LiveServer) -> None:
    client = live.openai
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, "tea.jsonl", ROWS[:48]),
        validation_file=upload(client, "held-out.jsonl", ROWS[48:56]),
        suffix="brew",
        seed=3,
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 4}}},
        extra_body={"loraloop": {**QUICK, "max_steps": 8}},
    )
    events = follow(client, job.id)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    assert events[-1].message == "The job has successfully completed"
    validated = [event.data for event in events if "validation loss" in event.message]
    assert validated
    checkpoints: list[Any] = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [each.step_number for each in checkpoints] == [8, 6, 4]  # the last three of four
    assert done.fine_tuned_model is not None
    for model in (done.fine_tuned_model, *(c.fine_tuned_model_checkpoint for c in checkpoints)):
        assert say(client, model).choices[0].message.content
    text = client.files.content(done.result_files[0]).text
    results = list(csv.DictReader(io.StringIO(text)))
    assert [row["step"] for row in results if row["valid_loss"]] == ["2", "4", "6", "8"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_goes_on_from_a_checkpoint(live: LiveServer) -> None:
    client = live.openai
    file_id = upload(client, "tea.jsonl", ROWS[:48])
    settings = {**QUICK, "max_steps": 6, "batch_size": 4}

    def losses(model: str) -> tuple[str, list[float]]:
        job = client.fine_tuning.jobs.create(
            model=model,
            training_file=file_id,
            seed=3,
            extra_body={"loraloop": settings},
        )
        follow(client, job.id)
        done = client.fine_tuning.jobs.retrieve(job.id)
        text = client.files.content(done.result_files[0]).text
        return job.id, [float(row["train_loss"]) for row in csv.DictReader(io.StringIO(text))]

    job_id, before = losses(BASE)
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job_id)))
    del settings["rank"]  # the checkpoint's
    _, after = losses(checkpoint.fine_tuned_model_checkpoint)
    assert after[0] < before[0]


@pytest.mark.timeout(120)
def test_bad_rows_are_the_jobs_error_with_their_lines(live: LiveServer) -> None:
    client = live.openai
    bad = [ROWS[0], ROWS[1], b'{"messages": "no"}\n', ROWS[2], b"not json\n"]
    job: Any = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=upload(client, "tea.jsonl", ROWS[:20]),
        validation_file=upload(client, "held-out.jsonl", bad),
        suffix="rotten",
        extra_body={"loraloop": QUICK},
    )
    follow(client, job.id)
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "failed"
    assert (job.error.code, job.error.param) == ("invalid_training_file", "validation_file")
    for line in (3, 5):
        assert f"held-out.jsonl:{line}:" in job.error.message
    rows = [(row["file"], row["line"]) for row in job.loraloop["rows"]]
    assert rows == [("held-out.jsonl", 3), ("held-out.jsonl", 5)]

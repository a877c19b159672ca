"""Checkpoints of a job as models: listed while kept, asked by their ids, gone with the job."""

from __future__ import annotations

import json
import shutil
from typing import Any

import httpx
import openai
import pytest

from artifacts.home import Home
from tests.server.conftest import Live, wait_until
from tests.server.control.conftest import Trained
from tests.server.control.scripts import GOOD, STARTED
from tests.server.control.test_http_jobs import upload, wait_for

HELLO: list[Any] = [{"role": "user", "content": "hi"}]


def kept(trained: Trained, step: int, **changes: Any) -> dict[str, Any]:
    record = trained.draft.model_copy(update=changes).model_dump(mode="json")
    return {"keep": {"step": step, "folder": str(trained.folder), "record": record}}


def waiting(trained: Trained, *steps: int) -> list[dict[str, Any]]:
    return [{"emit": STARTED}, *(kept(trained, step) for step in steps), {"wait": True}]


@pytest.fixture
def paused(api: openai.OpenAI, trained: Trained) -> Any:
    """A paused job with two checkpoints kept, and a third that was not."""
    script: list[dict[str, Any]] = [{"checkpoint": 2}, *waiting(trained, 3, 5)]
    job = api.fine_tuning.jobs.create(
        model="tiny-base", training_file=upload(api, *script), suffix="shop"
    )
    wait_for(api, job.id, "running")
    wait_until(lambda: len(checkpoints(api, job.id)) == 2)
    paused_job: Any = api.fine_tuning.jobs.pause(job.id)
    assert paused_job.status == "paused"
    return paused_job


def checkpoints(api: openai.OpenAI, job_id: str) -> list[Any]:
    return list(api.fine_tuning.jobs.checkpoints.list(job_id, limit=1))


def ask(api: openai.OpenAI, model: str) -> Any:
    return api.chat.completions.create(model=model, messages=HELLO)


def test_those_that_are_kept_are_listed_and_answer(api: openai.OpenAI, paused: Any) -> None:
    listed = checkpoints(api, paused.id)
    assert [checkpoint.step_number for checkpoint in listed] == [5, 3]
    assert listed[0].loraloop == {"marks": ["ungated"]}
    name = listed[0].fine_tuned_model_checkpoint
    assert name == f"ft:tiny-base:loraloop:shop:{paused.id}:ckpt-step-5"
    answer = ask(api, name)
    assert (answer.model, answer.choices[0].message.content) == (name, "Hello, world!")
    described: Any = api.models.retrieve(name)
    assert (described.id, described.root) == (name, name)
    raw = api.chat.completions.with_raw_response.create(model=name, messages=HELLO)
    assert raw.headers["x-loraloop-adapter"] == name


def test_they_go_with_the_job(api: openai.OpenAI, paused: Any) -> None:
    name = checkpoints(api, paused.id)[0].fine_tuned_model_checkpoint
    ask(api, name)
    assert api.fine_tuning.jobs.cancel(paused.id).status == "cancelled"
    assert checkpoints(api, paused.id) == []
    with pytest.raises(openai.NotFoundError) as caught:
        ask(api, name)
    assert caught.value.param == "model"


def test_ids_that_mean_no_checkpoint_are_not_found(
    api: openai.OpenAI, paused: Any, home: Home, subtests: pytest.Subtests
) -> None:
    good = f"ft:tiny-base:loraloop:shop:{paused.id}:ckpt-step-5"
    ask(api, good)
    for change in (
        ("step-5", "step-2"),
        ("step-5", "step-4"),
        ("step-5", "step-05"),
        ("tiny-base", "other-base"),
        (":shop:", ":shoe:"),
        (paused.id, "ftjob-" + "0" * 24),
        (paused.id, "../" + paused.id),
    ):
        with subtests.test(change=change), pytest.raises(openai.NotFoundError) as caught:
            ask(api, good.replace(*change))
        assert caught.value.param == "model"


def test_a_checkpoint_passes_the_load_gate_like_any_version(
    api: openai.OpenAI, trained: Trained, home: Home
) -> None:
    script = [{"emit": STARTED}, kept(trained, 3, template_hash="0" * 64), {"wait": True}]
    job = api.fine_tuning.jobs.create(
        model="tiny-base", training_file=upload(api, *script), suffix="shop"
    )
    wait_until(lambda: len(checkpoints(api, job.id)) == 1)
    name = checkpoints(api, job.id)[0].fine_tuned_model_checkpoint
    with pytest.raises(openai.BadRequestError, match="chat template"):
        ask(api, name)
    damaged = home.jobs / job.id / "work" / "checkpoints" / "step-3" / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(openai.InternalServerError, match="damaged"):
        ask(api, name)
    api.fine_tuning.jobs.cancel(job.id)


def test_no_alias_and_no_experiment_points_to_one(
    api: openai.OpenAI, paused: Any, live: Live
) -> None:
    name = checkpoints(api, paused.id)[0].fine_tuned_model_checkpoint
    arms = {"arms": [{"model": name, "weight": 1}, {"model": "tiny-base", "weight": 1}]}
    answer = httpx.put(f"{live.url}/admin/experiments/shop", json=arms)
    assert answer.status_code == 404


def test_a_job_may_start_from_a_checkpoint(
    api: openai.OpenAI, paused: Any, trained: Trained, home: Home
) -> None:
    name = checkpoints(api, paused.id)[0].fine_tuned_model_checkpoint
    job = api.fine_tuning.jobs.create(model=name, training_file=upload(api, *GOOD))
    assert job.model == name
    wait_for(api, job.id, "succeeded")
    facts = json.loads((home.jobs / job.id / "work" / "env.json").read_text())
    folder = home.jobs / paused.id / "work" / "checkpoints" / "step-5"
    assert facts["config"]["start_from"] == str(folder)
    assert facts["config"]["kept_checkpoints"] == 3
    shutil.rmtree(folder)
    with pytest.raises(openai.NotFoundError):
        api.fine_tuning.jobs.create(model=name, training_file=job.training_file)


def test_one_can_be_deleted_for_itself(
    api: openai.OpenAI, paused: Any, home: Home, live: Live
) -> None:
    newest, oldest = checkpoints(api, paused.id)
    url = f"{live.url}/v1/fine_tuning/jobs/{paused.id}/checkpoints"
    assert httpx.delete(f"{url}/{newest.id}").json()["deleted"] is True
    assert [each.step_number for each in checkpoints(api, paused.id)] == [oldest.step_number]
    assert not (home.jobs / paused.id / "work" / "checkpoints" / "step-5").exists()
    with pytest.raises(openai.NotFoundError):
        ask(api, newest.fine_tuned_model_checkpoint)
    assert ask(api, oldest.fine_tuned_model_checkpoint).choices[0].message.content
    for checkpoint_id in (newest.id, "ftckpt-none"):
        assert httpx.delete(f"{url}/{checkpoint_id}").status_code == 404
    other = url.replace(paused.id, "ftjob-" + "0" * 24)
    assert httpx.delete(f"{other}/{oldest.id}").status_code == 404

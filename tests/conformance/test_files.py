"""Models, files and fine-tuning jobs as the official client asks for them.

A job that trains is in ``tests/live/test_fine_tuning.py``.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.conformance.conftest import BASE

ROW = (
    '{"messages": [{"role": "user", "content": "茶？"}, {"role": "assistant", "content": "🍵"}]}\n'
)
ROWS = ROW.encode() * 3


def test_models(client: OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert set(found) >= {BASE, "poet", "poet@1"}
    for name, model in found.items():
        assert client.models.retrieve(name) == model
        assert (model.object, type(model.created)) == ("model", int)
        assert model.owned_by
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-4o")
    assert unknown.value.code == "model_not_found"


def test_files_come_back_byte_for_byte_and_go(client: OpenAI) -> None:
    made = [
        client.files.create(file=(f"茶 {i}.jsonl", ROWS), purpose="fine-tune") for i in range(3)
    ]
    assert (made[0].object, made[0].bytes, made[0].filename) == ("file", len(ROWS), "茶 0.jsonl")
    assert client.files.retrieve(made[1].id) == made[1]
    assert client.files.content(made[2].id).read() == ROWS
    ids = [file.id for file in client.files.list(limit=2)]  # the client reads all pages
    assert [each for each in ids if each in {file.id for file in made}] == [
        file.id for file in reversed(made)
    ]
    for file in made:
        assert client.files.delete(file.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        method: Any = ask
        with pytest.raises(openai.NotFoundError):
            method(made[0].id)


async def test_files_of_the_async_client(async_client: AsyncOpenAI) -> None:
    made = await async_client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    assert made.id in [file.id async for file in async_client.files.list()]
    assert (await async_client.files.content(made.id)).read() == ROWS
    assert (await async_client.files.delete(made.id)).deleted


@pytest.mark.parametrize(
    ("file", "purpose"),
    [
        (("a.jsonl", b""), "fine-tune"),
        (("a.png", b"\x89PNG"), "fine-tune"),
        (("a.jsonl", b"\xff\xfe"), "fine-tune"),
        (("a.jsonl", ROWS), "assistants"),
    ],
)
def test_unusable_files_are_refused(client: OpenAI, file: Any, purpose: Any) -> None:
    before = [each.id for each in client.files.list()]
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=file, purpose=purpose)
    assert refused.value.code
    assert [each.id for each in client.files.list()] == before


def test_jobs_that_cannot_be_are_refused_and_listed_never(client: OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"training_file": "file-nobody"}, "training_file"),
        ({"model": "gpt-4o"}, "model"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters"),
        ({"suffix": "../x"}, "suffix"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"method": {"type": "reinforcement"}}, "method"),
    ]
    for fields, param in refused:
        job: dict[str, Any] = {"model": BASE, "training_file": file.id, **fields}
        with pytest.raises(openai.APIStatusError) as caught:
            client.fine_tuning.jobs.create(**job)
        assert caught.value.status_code in (400, 404), fields
        assert (caught.value.param or "").startswith(param), fields
    assert list(client.fine_tuning.jobs.list()) == []
    jobs = client.fine_tuning.jobs
    for ask in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        method: Any = ask
        with pytest.raises(openai.NotFoundError):
            method("ftjob-nobody")
    client.files.delete(file.id)

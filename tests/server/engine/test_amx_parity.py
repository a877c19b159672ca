"""The whole decoder on AMX: no further from float32 than transformers' own bfloat16."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.runner_amx import AmxRunner
from tests.server.engine.amx import BF16, LogitsRecord, needs_amx
from tests.server.engine.test_parity import (
    ADAPTERS,
    CONFIGS,
    World,
    make_world,
    prompts,
    request_id,
)

pytestmark = needs_amx

NUM_TOKENS = 10


@pytest.fixture(scope="module", params=list(CONFIGS))
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    made = make_world(folder, CONFIGS[request.param], dtype="bfloat16")
    yield made
    made.engine.stop()


def logits_of(model: Any, adapter: int | None, prompt: list[int], answer: list[int]) -> Tensor:
    """What ``answer`` was chosen from, ``[len(answer), vocab]``, by transformers and PEFT."""
    ids = torch.tensor([prompt + answer[:-1]])
    with torch.no_grad():
        if adapter is None:
            with model.disable_adapter():
                logits = model(ids).logits
        else:
            model.set_adapter(f"a{adapter}")
            logits = model(ids).logits
    rows: Tensor = logits[0, len(prompt) - 1 :].float()
    return rows


async def test_logits_of_base_and_adapters_are_transformers_and_pefts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(world.engine._runner, AmxRunner)
    record = LogitsRecord(monkeypatch)
    jobs = list(zip(prompts(), [None, *range(len(ADAPTERS))], strict=True))
    answers = await asyncio.gather(*[world.answer(p, a, NUM_TOKENS) for p, a in jobs])
    rounded = deepcopy(world.reference).to(BF16)
    ours, theirs = [], []
    num_clear = 0
    for (prompt, adapter), answer in zip(jobs, answers, strict=True):
        exact = logits_of(world.reference, adapter, prompt, answer)
        ours.append(record.of(request_id(prompt, adapter)) - exact)
        theirs.append(logits_of(rounded, adapter, prompt, answer) - exact)
        best = exact.topk(2).values
        is_clear = best[:, 0] - best[:, 1] > 2 * theirs[-1].abs().amax(-1)
        assert torch.equal(exact.argmax(-1)[is_clear], torch.tensor(answer)[is_clear])
        num_clear += int(is_clear.sum())
    assert torch.cat(ours).pow(2).mean() < torch.cat(theirs).pow(2).mean()
    assert num_clear > len(jobs) * NUM_TOKENS / 4

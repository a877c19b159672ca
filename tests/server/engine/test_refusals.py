"""What cannot be served is refused with its numbers, before anything is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.base import open_base
from artifacts.home import Home
from server.assembly import build_server
from server.engine.errors import OutOfMemory, RequestTooLong, UnsupportedModel
from server.engine.load import EngineLimits, build_engine
from server.engine.request import GenerationRequest, SamplingParams
from server.settings import Settings
from tests.server.engine.fake import fake_engine, run_to_idle


def request(num_prompt: int, max_tokens: int, name: str = "r") -> GenerationRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return GenerationRequest(name, tuple(range(1, num_prompt + 1)), sampling)


async def test_more_than_the_context_is_refused_with_all_numbers() -> None:
    engine, _ = fake_engine()
    with pytest.raises(RequestTooLong, match=r"60 tokens .* 5, together 65; the context is 64"):
        engine.submit(request(60, 5))
    with pytest.raises(RequestTooLong, match="no tokens"):
        engine.submit(request(0, 5))
    stream = engine.submit(request(60, 4))
    await run_to_idle(engine)
    assert stream.take_ready()[-1].finish_reason == "length"


async def test_more_than_the_whole_cache_is_refused_and_all_of_it_can_be_used() -> None:
    engine, _ = fake_engine(num_blocks=5, block_size=4)
    assert engine.max_model_len == 20, "what HTTP derives a default answer length from"
    with pytest.raises(
        RequestTooLong, match=r"together 21; the KV cache holds 20 .* 64 \(raise kv_cache_tokens\)"
    ):
        engine.submit(request(11, 10))
    streams = [engine.submit(request(10, 10, f"r{i}")) for i in range(3)]
    await run_to_idle(engine)
    assert [s.take_ready()[-1].finish_reason for s in streams] == ["length"] * 3


async def test_two_open_requests_cannot_share_an_id() -> None:
    """One of them would never end."""
    engine, _ = fake_engine()
    engine.submit(request(4, 4))
    with pytest.raises(AssertionError, match="not unique"):
        engine.submit(request(4, 4))
    await run_to_idle(engine)
    engine.submit(request(4, 4))  # the first has ended


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (EngineLimits(kv_cache_tokens=8), "kv_cache_tokens 8 is smaller than one block of 16"),
        (EngineLimits(max_model_len=4096), r"max_model_len 4096 is outside 1 … 2048"),
    ],
)
def test_sizes_that_cannot_be_are_refused_at_start(limits: EngineLimits, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        build_engine(open_base(None), limits=limits)


def test_a_base_that_does_not_fit_says_so_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("server.assembly.build_engine", fail)
    settings = Settings(home=tmp_path)
    with pytest.raises(OutOfMemory, match=r"while loading loraloop-embedded\. Take --quantization"):
        build_server(settings, Home.open(settings.home))

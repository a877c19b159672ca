"""One whole server on the embedded base, as a front-end team finds it behind its base URL.

Beside the base it serves ``poet``, an adapter of random weights: what it says is nonsense in every
script, which is what tests of bytes want. What the base says is not tested here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from artifacts.home import Home
from server.app import create_app
from server.assembly import build_server
from server.settings import Settings
from server.state import Server
from tests.server.conftest import serving
from tests.server.test_real_server import write_adapter

BASE = "loraloop-embedded"
POET = "poet"
CHAT = "/v1/chat/completions"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where is my order 4711?"}]


@dataclass(frozen=True)
class Real:
    """Where the server listens, and what it holds."""

    url: str
    server: Server
    http: httpx.Client

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(path, json=body)


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    root = tmp_path_factory.mktemp("conformance")
    given: dict[str, Any] = {"dtype": "float32", "kv_cache_tokens": 16384, "num_threads": 1}
    settings = Settings(home=root / "home", **given)
    folder = write_adapter(root / POET, rank=16, seed=3)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 16 * 16}))
    server = build_server(settings, Home.open(settings.home), [(POET, folder)])
    with (
        serving(create_app(server)) as live,
        httpx.Client(base_url=live.url, timeout=60) as http,
    ):
        yield Real(live.url, server, http)
    server.database.close()


@pytest.fixture
def client(real: Real) -> Iterator[OpenAI]:
    with OpenAI(base_url=real.url + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
async def async_client(real: Real) -> AsyncIterator[AsyncOpenAI]:
    made = AsyncOpenAI(base_url=real.url + "/v1", api_key="none", max_retries=0, timeout=60)
    async with made:
        yield made

"""A whole server on a real engine and a tiny base, with traffic beside whatever goes wrong."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import save_file

from artifacts.architecture import linear_shapes
from artifacts.base import open_base
from artifacts.database import Database
from artifacts.home import Home
from artifacts.importing import import_adapter
from artifacts.registry import AdapterVersion, Registry
from server.app import create_app
from server.assembly import build_server
from server.settings import Settings
from server.state import Server
from tests.artifacts.drafts import DRAFT, adapter_folder
from tests.conftest import TinyBase
from tests.server.conftest import serving

ROW = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
NUM_TOKENS = 60  # of a stream beside a fault


@pytest.fixture
def registry(home: Home) -> Iterator[Registry]:
    registry = Registry(home, Database(home.database_url))
    yield registry
    registry.database.close()


@pytest.fixture
def publish(registry: Registry, tmp_path: Path) -> Callable[[str], AdapterVersion]:
    """Registers the next version of a name, with weights that nobody reads."""
    numbers = itertools.count()

    def publish_next(name: str) -> AdapterVersion:
        folder = adapter_folder(tmp_path / f"made-{next(numbers)}", str(numbers))
        return registry.publish(name, folder, DRAFT)

    return publish_next


def write_adapter(folder: Path, base: Path, seed: int, rank: int = 4) -> Path:
    """A PEFT folder with random weights that change every answer of ``base``."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (num_out, num_in) in linear_shapes(open_base(base).config).items():
        a = torch.randn((rank, num_in), generator=generator) / num_in**0.5
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        b = torch.randn((num_out, rank), generator=generator) * 0.1
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def folders(tiny_base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PEFT folders of four different adapters for the tiny base."""
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / f"a{seed}", tiny_base("llama"), seed) for seed in range(4)]


@dataclass
class Client:
    """What is asked of a server, wherever it runs.

    ``expected`` is what whole streams said before any fault, by model: a name means the same
    adapter in all tests.
    """

    url: str
    http: httpx.Client
    base: str
    expected: dict[str, str]

    def chat(self, model: str, **fields: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=self.body(model, max_tokens=8, **fields))

    def body(self, model: str, **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Where is my order?"}]
        greedy = {"temperature": 0, "ignore_eos": True, "messages": messages}
        return {"model": model, **greedy, **fields}

    def upload(self, content: bytes = ROW) -> httpx.Response:
        parts = {"file": ("a.jsonl", content)}
        return self.http.post("/v1/files", files=parts, data={"purpose": "fine-tune"})

    def admin(self, method: str, path: str, body: object = None) -> httpx.Response:
        return self.http.request(method, f"/admin/{path}", json=body)

    def score(self, answer: httpx.Response) -> httpx.Response:
        return self.http.post("/v1/feedback", json={"id": answer.json()["id"], "score": 1})

    def stream(self, model: str, has_begun: Callable[[], None] = lambda: None) -> str:
        """The text of one whole stream; fails if it does not end as it should."""
        body = self.body(model, stream=True, max_tokens=NUM_TOKENS)
        text, reason, lines = "", None, []
        with httpx.stream(
            "POST", f"{self.url}/v1/chat/completions", json=body, timeout=30
        ) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    choice = json.loads(line.removeprefix("data: "))["choices"][0]
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
                    has_begun()
                lines.append(line)
        assert reason == "length", lines[-4:]
        assert "data: [DONE]" in lines
        return text

    @contextmanager
    def traffic(self, *models: str) -> Iterator[None]:
        """Streams on each of ``models``, over and over, from before the block until after it.

        Each must be whole and say what it said before anything went wrong.
        """
        for model in models:
            if model not in self.expected:
                self.expected[model] = self.stream(model)
        is_over, failures, counts = threading.Event(), [], dict.fromkeys(models, 0)
        begun = [threading.Event() for _ in models]

        def talk(model: str, has_begun: threading.Event) -> None:
            try:
                while not (is_over.is_set() and counts[model]):
                    assert self.stream(model, has_begun.set) == self.expected[model]
                    counts[model] += 1
            except BaseException as failure:
                failures.append(failure)
                has_begun.set()

        threads = [
            threading.Thread(target=talk, args=pair) for pair in zip(models, begun, strict=True)
        ]
        for thread, has_begun in zip(threads, begun, strict=True):
            thread.start()
            assert has_begun.wait(20)
        try:
            yield
        finally:
            is_over.set()
            for thread in threads:
                thread.join(60)
        if failures:
            raise failures[0]


@dataclass
class Site(Client):
    """A server in this process."""

    app: FastAPI
    server: Server
    folders: list[Path]

    @property
    def home(self) -> Home:
        return self.server.home

    def register(self, name: str, number: int) -> AdapterVersion:
        """The next version of ``name``, not loaded."""
        base = self.server.base
        return import_adapter(self.server.registry, self.folders[number], name, base, max_rank=64)


@pytest.fixture(scope="session")
def expected() -> dict[str, str]:
    return {}


@contextmanager
def running_site(
    base: Path, home: Path, folders: list[Path], expected: dict[str, str], **settings: Any
) -> Iterator[Site]:
    given: dict[str, Any] = {"dtype": "float32", "kernels": "torch", "kv_cache_tokens": 8192}
    given |= {"num_threads": 1, "adapter_root": folders[0].parent}
    chosen = Settings(home=home, model=str(base), **given | settings)
    server = build_server(chosen, Home.open(chosen.home))
    app = create_app(server)
    with (
        serving(app) as live,
        httpx.Client(base_url=live.url, timeout=30) as http,
    ):
        yield Site(live.url, http, server.base.id, expected, app, server, folders)
    server.database.close()


@pytest.fixture
def site(
    tiny_base: TinyBase, folders: list[Path], expected: dict[str, str], tmp_path: Path
) -> Iterator[Site]:
    """A server of its own, with the adapter ``good`` registered."""
    with running_site(tiny_base("llama"), tmp_path / "home", folders, expected) as site:
        site.register("good", 0)
        yield site


def error_of(response: httpx.Response, status: int, code: str) -> str:
    """The message of a failure in OpenAI's shape; fails if it is another one."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert (error["code"], set(error)) == (code, {"message", "type", "param", "code"})
    message: str = error["message"]
    return message

"""A whole control plane on a fake engine and a fake trainer; nothing is shared between tests."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from fastapi import FastAPI

import server.tables  # noqa: F401  defines the server's tables before create_tables
from artifacts.adapter import read_adapter
from artifacts.architecture import linear_shapes
from artifacts.base import Base, open_base
from artifacts.chat import ChatRenderer
from artifacts.database import Database
from artifacts.home import Home
from artifacts.manifest import ManifestDraft
from artifacts.registry import AdapterVersion, Registry
from server.app import create_app
from server.control import Control, ControlLimits, TrainingSetup, build_control
from server.engine.errors import AdapterInUse, EngineClosed, UnknownAdapter
from server.jobs.pauses import FirstTokenP90
from server.settings import Settings
from server.state import Server
from tests.server.conftest import Live, serving
from tests.server.fakes import FakeEngine, FakeTokenizer

KEY = "the-admin-key"
TRAINER = Path(__file__).parent / "fake_trainer.py"
CONFIG = SimpleNamespace(
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_hidden_layers=1,
    head_dim=8,
)
LIMITS = ControlLimits(training_stop_grace_s=5.0, training_niceness=7, max_upload_bytes=1 << 20)


@dataclass
class AdapterEngine(FakeEngine):
    """The fake engine with the real one's rules for adapters in use."""

    users: dict[str, int] | None = None
    is_closed: bool = False
    num_added: int = 0

    def add_adapter(self, key: str, weights: Any) -> None:
        self.num_added += 1
        super().add_adapter(key, weights)

    async def preload_adapter(self, key: str) -> float:
        if self.is_closed:
            raise EngineClosed("the engine is shutting down")
        if key not in self.known:
            raise UnknownAdapter(f"adapter {key} is not loaded")
        return 0.0

    async def remove_adapter(self, key: str, *, wait: bool = True) -> None:
        if key not in self.known:
            raise UnknownAdapter(f"adapter {key} is not loaded")
        if (self.users or {}).get(key):
            raise AdapterInUse(f"adapter {key} has open requests")
        del self.known[key]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    database = Database(f"sqlite:///{home.root / 'registry.db'}")
    database.create_tables()
    yield database
    database.close()


@pytest.fixture
def registry(home: Home, database: Database) -> Registry:
    return Registry(home, database)


@pytest.fixture
def engine() -> AdapterEngine:
    return AdapterEngine()


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base(
        path=tmp_path / "base",
        id="tiny-base",
        config=CONFIG,
        tokenizer=FakeTokenizer(),
        fingerprint="f" * 64,
        template_hash="t" * 64,
        eos_token_ids=frozenset({1}),
        context_length=64,
    )


def write_adapter(folder: Path, *, rank: int = 2, seed: int = 0, out: int | None = None) -> Path:
    """A PEFT LoRA folder for CONFIG's q_proj."""
    import torch
    from safetensors.torch import save_file

    module = "model.layers.0.self_attn.q_proj"
    rows, columns = linear_shapes(CONFIG)[module]
    torch.manual_seed(seed)
    prefix = f"base_model.model.{module}"
    folder.mkdir(parents=True)
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(rank, columns),
        f"{prefix}.lora_B.weight": torch.randn(out or rows, rank),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def draft_of(folder: Path, base: Base, **changes: Any) -> ManifestDraft:
    weights = read_adapter(folder)
    draft = ManifestDraft(
        content_hash=weights.content_hash,
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        template_hash=base.template_hash,
        origin="trained",
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=weights.target_modules,
        num_parameters=weights.num_parameters,
        num_bytes=weights.num_bytes,
    )
    return draft.model_copy(update=changes)


Publish = Callable[..., AdapterVersion]


@pytest.fixture
def publish(registry: Registry, base: Base, tmp_path: Path) -> Publish:
    """Registers the next version of a name, with real weights."""
    made: list[Path] = []

    def publish_next(name: str = "shop", *, out: int | None = None, **changes: Any) -> Any:
        folder = write_adapter(tmp_path / f"made-{len(made)}", seed=len(made), out=out)
        made.append(folder)
        return registry.publish(name, folder, draft_of(folder, base, **changes))

    return publish_next


@dataclass
class Trained:
    """What the fake trainer publishes."""

    folder: Path
    draft: ManifestDraft


@pytest.fixture
def trained(tmp_path: Path, base: Base, registry: Registry) -> Iterator[Trained]:
    """Registers the fake trainers' results for them, as their own imports would take a second."""
    folder = write_adapter(tmp_path / "trained", seed=99)
    result = Trained(folder, draft_of(folder, base))
    is_over = threading.Event()

    def serve() -> None:
        while not is_over.wait(0.005):
            for order in registry.home.jobs.glob("*/work/register.json"):
                config = json.loads(order.read_text())
                order.unlink()
                copy = shutil.copytree(folder, registry.home.tmp / order.parent.parent.name)
                settings = {"description": config["description"]}
                draft = result.draft.model_copy(update={"settings": settings})
                version = registry.publish(config["name"], copy, draft)
                (order.parent / "answer.tmp").write_text(version.id)
                (order.parent / "answer.tmp").rename(order.parent / "registered")

    thread = threading.Thread(target=serve)
    thread.start()
    yield result
    is_over.set()
    thread.join()


MakeControl = Callable[..., Control]


@pytest.fixture
def make_control(
    registry: Registry, base: Base, engine: AdapterEngine, trained: Trained
) -> MakeControl:
    """A control plane as one server process would have it; call again for the next process."""

    def make(p90_s: FirstTokenP90 = lambda _: None, **limits: Any) -> Control:
        return build_control(
            registry,
            base,
            engine,
            replace(LIMITS, **limits),
            TrainingSetup(None, p90_s, (sys.executable, str(TRAINER))),
        )

    return make


@asynccontextmanager
async def running(control: Control) -> AsyncIterator[Control]:
    await control.start()
    try:
        yield control
    finally:
        await control.stop()


def steps(*lines: dict[str, Any]) -> bytes:
    """A data file that tells the fake trainer what to do."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.fixture
def settings(home: Home, tmp_path: Path) -> Settings:
    root = tmp_path / "adapter-root"
    root.mkdir()
    return Settings(home=home.root, port=0, adapter_root=root, max_upload_bytes=1 << 20)


@pytest.fixture
def fake_server(
    settings: Settings, fake_server: Server, base: Base, make_control: MakeControl
) -> Server:
    """The inference tests' server with a real control plane."""
    control = make_control()
    return replace(fake_server, base=base, control=control, **control.services())


@pytest.fixture
def live(fake_server: Server) -> Iterator[Live]:
    with serving(create_app(fake_server)) as running_server:
        yield running_server


@pytest.fixture
def api(live: Live) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def whole_app(
    fake_server: Server,
    settings: Settings,
    engine: AdapterEngine,
    make_control: Any,
    publish: Publish,
) -> FastAPI:
    """Everything but a model and a trainer."""
    publish()
    publish()
    control = make_control(max_running_jobs=0)  # they wait for ever
    keyed = settings.model_copy(update={"admin_keys": (KEY,), "api_keys": ("the-other-key",)})
    embedded = open_base(None)  # what grammars and templates are made of
    base = replace(fake_server.base, tokenizer=embedded.tokenizer)
    engine.vocab_size, engine.max_model_len = len(embedded.tokenizer), 1024
    fake = replace(
        fake_server,
        settings=keyed,
        base=base,
        renderer=ChatRenderer(embedded.tokenizer),
        control=control,
        **control.services(),
    )
    return create_app(fake)

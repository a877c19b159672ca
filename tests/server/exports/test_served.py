"""An exported graph behind the real API: adapters mixed per request, what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from server.state import Server
from tests.conftest import PeftAdapter
from tests.server.conftest import Live
from tests.server.exports.conftest import served

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Where is my order 4711?"}],
    "temperature": 0.8,
    "seed": 5,
    "max_tokens": 16,
    "extra_body": {"ignore_eos": True},
}


@pytest.fixture(scope="module")
def folders(tiny_base: Path, peft_adapter: PeftAdapter) -> list[tuple[str, Path]]:
    return [(name, peft_adapter(tiny_base, seed=i)) for i, name in enumerate(("shop", "poet"))]


@pytest.fixture(scope="module")
def running(
    open_folder: Path,
    folders: list[tuple[str, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Live, Server]]:
    with served(open_folder, tmp_path_factory.mktemp("open"), folders) as found:
        yield found


def answers(live: Live, models: list[str], *, at_once: bool) -> list[str]:
    def ask(model: str) -> str:
        with OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
            pieces = client.chat.completions.create(model=model, stream=True, **ASK)
            return "".join(piece.choices[0].delta.content or "" for piece in pieces)

    with ThreadPoolExecutor(len(models) if at_once else 1) as pool:
        return list(pool.map(ask, models))


def test_adapters_of_the_original_base_are_mixed_and_answer_as_there(
    running: tuple[Live, Server],
    folders: list[tuple[str, Path]],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    live, server = running
    models = [server.base.id, "shop", "poet"]
    mixed = answers(live, models * 2, at_once=True)
    with served(tiny_base, tmp_path / "plain", folders, dtype="float32") as (plain, other):
        alone = answers(plain, [other.base.id, *models[1:]], at_once=False)
    assert mixed == alone * 2
    assert len(set(alone)) == 3


def test_the_form_and_its_proof_are_said_everywhere(running: tuple[Live, Server]) -> None:
    facts = {"format": "onnx-adapters", "adapter": "random", "base": "tiny", "proof": "missing"}
    with httpx.Client(base_url=running[0].url) as client:
        stats = client.get("/admin/stats").json()["engine"]
        ready = client.get("/health/ready").json()
        models = {m["id"]: m for m in client.get("/v1/models").json()["data"]}
    assert stats["export"] == ready["export"] == models["tiny-open"]["export"] == facts
    assert stats["kernels"] == "onnx"
    assert {"shop", "shop@1", "poet"} <= set(models)
    assert "export" not in models["shop"]


def test_nothing_is_trained_on_an_export(running: tuple[Live, Server]) -> None:
    with httpx.Client(base_url=running[0].url) as client:
        job = {"model": "tiny-open", "training_file": "file-none"}
        for path, body in (
            ("/v1/fine_tuning/jobs", job),
            ("/admin/adapters/train", {"name": "tea", "file_id": "file-none"}),
        ):
            refused = client.post(path, json=body)
            assert refused.status_code == 400
            assert "training needs the original base tiny" in refused.json()["error"]["message"]


def test_an_export_with_its_adapter_inside_takes_no_other(
    closed_folder: Path, folders: list[tuple[str, Path]], tiny_base: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with served(tiny_base, home, folders[:1]):
        pass  # registers shop@1, on the original base
    with served(closed_folder, home) as (live, server):
        (home / "mine").symlink_to(folders[1][1])
        with httpx.Client(base_url=live.url) as client:
            models = [entry["id"] for entry in client.get("/v1/models").json()["data"]]
            assert models == ["tiny-closed"]
            chat = {"model": "shop", "messages": ASK["messages"]}
            for path, body in (
                ("/v1/chat/completions", chat),
                ("/admin/adapters/load", {"id": "shop@1"}),
                ("/admin/adapters/load", {"name": "new", "path": str(folders[1][1])}),
            ):
                refused = client.post(path, json=body)
                assert refused.status_code in (400, 403), refused.text
                if "id" in body or "model" in body:
                    assert "takes no others" in refused.json()["error"]["message"]
        assert server.registry.list()[0].id == "shop@1"
        assert answers(live, ["tiny-closed"], at_once=False)[0]

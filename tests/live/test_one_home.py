"""One server on a home, and the command line beside it: all of them work on one registry."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from tests.conftest import PeftAdapter, TinyBase
from tests.live.zygote import Zygote

BASE = "tiny-llama"
SEEN_WITHIN_S = 5.0  # the server looks every half second; a test machine may be busy
NUM_IMPORTS = 4


def ask(http: httpx.Client, model: str) -> tuple[int, str | None]:
    """Status, and the version that answered."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    response = http.post("/v1/chat/completions", json=body)
    return response.status_code, response.headers.get("x-loraloop-adapter")


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def folders(tiny_base: TinyBase, peft_adapter: PeftAdapter, tmp_path: Path) -> list[str]:
    base = tiny_base("llama")
    made = [peft_adapter(base, rank=2, seed=seed) for seed in range(2)]
    return [str(shutil.copytree(folder, tmp_path / folder.name)) for folder in made]


def test_the_command_line_changes_what_a_running_server_answers(
    zygote: Zygote, tiny_base: TinyBase, folders: list[str], tmp_path: Path
) -> None:
    home, base = tmp_path / "home", str(tiny_base("llama"))
    server = zygote.start(home, "--model", base, "--dtype", "float32")
    with httpx.Client(base_url=server.wait_ready(), timeout=60) as http:
        assert ask(http, "shop") == (404, None)
        for folder in folders:
            zygote.run(home, "adapters", "import", folder, "--name", "shop", "--base", base)
        assert ask(http, "shop") == (200, "shop@1")
        zygote.run(home, "adapters", "alias", "shop@champion", "2")
        until(lambda: ask(http, "shop") == (200, "shop@2"))
        zygote.run(home, "adapters", "remove", "shop@1")
        until(lambda: ask(http, "shop@1") == (404, None))

        rows = [
            {"instruction": f"Is item {i} in stock?", "output": f"Item {i} be in the hold."}
            for i in range(20)
        ]
        (tmp_path / "data.json").write_text(json.dumps(rows))
        config = {"name": "shop", "base": base, "data": [str(tmp_path / "data.json")]}
        (tmp_path / "train.yaml").write_text(json.dumps({**config, "max_steps": 20, "rank": 2}))
        zygote.run(home, "train", str(tmp_path / "train.yaml"))
        until(lambda: ask(http, "shop@latest") == (200, "shop@3"))
        assert ask(http, "shop") == (200, "shop@2")
    server.kill()


def test_imports_of_several_processes_at_once_get_numbers_of_their_own(
    zygote: Zygote, tiny_base: TinyBase, folders: list[str], tmp_path: Path
) -> None:
    home, base = tmp_path / "home", str(tiny_base("llama"))
    root = {"LORALOOP_ADAPTER_ROOT": str(tmp_path)}
    server = zygote.start(home, "--model", base, "--dtype", "float32", **root)  # type: ignore[arg-type]
    loaded: list[dict[str, Any]] = []
    with httpx.Client(base_url=server.wait_ready(), timeout=60) as http:

        def load() -> None:
            body = {"name": "shop", "path": folders[0]}
            loaded.extend(http.post("/admin/adapters/load", json=body).json() for _ in range(4))

        loading = threading.Thread(target=load)
        loading.start()
        command = ("adapters", "import", folders[1], "--name", "shop", "--base", base)
        said = [zygote.run(home, *command).split()[0] for _ in range(NUM_IMPORTS)]
        loading.join()
    server.kill()
    numbers = [version["id"] for version in loaded] + said
    assert sorted(numbers) == sorted(set(numbers)), "a number was given twice"
    registry = Registry(Home.open(home), Database(f"sqlite:///{home / 'registry.db'}"))
    assert {version.id for version in registry.list()} == set(numbers)
    for version in registry.list():
        registry.verify(version.name, version.version)
    registry.database.close()

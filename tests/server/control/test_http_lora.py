"""vLLM's two routes for adapters, on our versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from artifacts.home import Home
from tests.server.conftest import Live
from tests.server.control.conftest import write_adapter
from tests.server.test_bad_input import error_of

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def http(live: Live) -> Any:
    with httpx.Client(base_url=live.url, timeout=20) as client:
        yield client


def load(http: httpx.Client, folder: Path, **fields: Any) -> str:
    answer = http.post(LOAD, json={"lora_name": "shop", "lora_path": str(folder), **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def root_of(http: httpx.Client, model: str) -> str:
    return str(http.get(f"/v1/models/{model}").json()["root"])


def test_a_name_loaded_again_is_its_next_version(http: httpx.Client, home: Home) -> None:
    first = write_adapter(home.root / "incoming" / "a")
    second = write_adapter(home.root / "incoming" / "b", seed=1)
    third = write_adapter(home.root / "incoming" / "c", seed=2)
    text = load(http, first)
    assert text == "Success: LoRA adapter 'shop' added successfully as shop@1."
    assert root_of(http, "shop") == "shop@1"
    text = load(http, second)
    assert "as shop@2" in text
    assert "'shop' still means shop@1" in text
    assert root_of(http, "shop") == "shop@1"
    assert load(http, third, load_inplace=True).endswith("as shop@3.")
    assert root_of(http, "shop") == "shop@3"
    states = {e["id"]: e["state"]["loaded"] for e in http.get("/admin/adapters").json()["data"]}
    assert states == {"shop@1": True, "shop@2": True, "shop@3": True}
    trail = [(e["action"], e["subject"]) for e in http.get("/admin/audit").json()["data"]]
    assert trail[:2] == [("alias.put", "shop@champion"), ("adapter.import", "shop@3")]


def test_unloading_frees_a_name_or_one_version(http: httpx.Client, home: Home) -> None:
    for seed in range(3):
        load(http, write_adapter(home.root / "incoming" / str(seed), seed=seed))
    answer = http.post(UNLOAD, json={"lora_name": "shop@2"})
    assert (answer.status_code, "shop@2" in answer.text) == (200, True)
    answer = http.post(UNLOAD, json={"lora_name": "shop"})
    assert "(shop@1, shop@3)" in answer.text
    states = [entry["state"]["loaded"] for entry in http.get("/admin/adapters").json()["data"]]
    assert states == [False] * 3
    assert "not loaded" in error_of(http.post(UNLOAD, json={"lora_name": "shop"}), 404)["message"]
    trail = [(e["action"], e["subject"]) for e in http.get("/admin/audit").json()["data"]]
    assert trail[:2] == [("adapter.unload", "shop@3"), ("adapter.unload", "shop@1")]


def test_what_cannot_be_loaded_leaves_nothing(
    http: httpx.Client, home: Home, tmp_path: Path
) -> None:
    inside = write_adapter(home.root / "incoming" / "good")
    outside = write_adapter(tmp_path / "outside")
    bad = write_adapter(home.root / "incoming" / "bad", out=7)
    (home.root / "incoming" / "link").symlink_to(outside)
    for path, status, code in (
        (outside, 400, "path_escape"),
        (home.root / "incoming" / "link", 400, "path_escape"),
        ("../outside", 400, "path_escape"),
        ("incoming/nothing", 404, "not_found"),
        (bad, 400, None),
    ):
        answer = http.post(LOAD, json={"lora_name": "shop", "lora_path": str(path)})
        error = error_of(answer, status)
        assert code is None or error["code"] == code
    assert http.get("/admin/adapters").json()["data"] == []
    for name in ("Shop", "", "tiny-base"):
        answer = http.post(LOAD, json={"lora_name": name, "lora_path": str(inside)})
        assert error_of(answer, 400)["param"] == "lora_name"
    for name in ("nobody", "nobody@3", "tiny-base", "Ü"):
        error_of(http.post(UNLOAD, json={"lora_name": name}), 404)
    error = error_of(http.post(UNLOAD, json={"lora_name": "shop", "lora_int_id": 1}), 400)
    assert error["param"] == "lora_int_id"


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_only_an_admin_may(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"lora_name": "shop"}, headers={"x-forwarded-for": "1.2.3.4"})
    assert error_of(answer, 403)["code"] == "loopback_only"

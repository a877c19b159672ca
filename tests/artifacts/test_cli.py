"""The command line: what it prints, and one line with exit code 1 for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from artifacts.cli import adapters_app, init_base_command
from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from tests.artifacts.drafts import DRAFT, adapter_folder
from tests.conftest import PeftAdapter, TinyBase

app = Typer()
app.add_typer(adapters_app, name="adapters")
app.command("init-base")(init_base_command)


@pytest.fixture
def registry(home: Home, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("LORALOOP_HOME", str(home.root))
    monkeypatch.setenv("COLUMNS", "200")
    return Registry(home, Database(home.database_url))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def adapters(*arguments: object) -> str:
    result = call("adapters", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def publish(registry: Registry) -> None:
    registry.publish("support", adapter_folder(registry.home.tmp / "new"), DRAFT)


def test_list_and_show_tell_versions_aliases_and_losses(registry: Registry) -> None:
    assert "no adapter" in adapters("list")
    assert json.loads(adapters("list", "--json")) == []
    publish(registry)
    publish(registry)
    table = adapters("list")
    assert all(word in table for word in ("support@1", "champion", "latest", "3.000 → 2.000"))
    rows = json.loads(adapters("list", "support", "--json"))
    assert [(row["id"], row["aliases"]) for row in rows] == [
        ("support@1", ["champion"]),
        ("support@2", ["latest"]),
    ]
    assert json.loads(adapters("list", "other", "--json")) == []
    assert json.loads(adapters("show", "support", "--json"))["id"] == "support@1"
    assert "unknown (made elsewhere)" in adapters("show", "support@latest")


def test_alias_moves_and_goes(registry: Registry) -> None:
    publish(registry)
    publish(registry)
    assert "was support@1" in adapters("alias", "support@champion", "2")
    assert registry.aliases("support") == {"champion": 2}
    adapters("alias", "support@canary", "1")
    adapters("alias", "support@canary", "--delete")
    assert registry.aliases("support") == {"champion": 2}
    assert "@9" in refusal("adapters", "alias", "support@champion", "9")
    assert "NAME@ALIAS" in refusal("adapters", "alias", "support", "1")
    assert "--delete" in refusal("adapters", "alias", "support@canary")
    assert "latest" in refusal("adapters", "alias", "support@latest", "1")


def test_remove_asks_for_force_where_an_alias_points(registry: Registry) -> None:
    publish(registry)
    assert "support@champion" in refusal("adapters", "remove", "support@1")
    assert "NAME@VERSION" in refusal("adapters", "remove", "support")
    adapters("remove", "support@1", "--force")
    assert "no adapter" in refusal("adapters", "show", "support@1")


def test_verify_checks_all_and_names_each_damage(registry: Registry) -> None:
    publish(registry)
    publish(registry)
    assert adapters("verify").count("as recorded") == 2
    (registry.get("support", 1).path / "adapter_config.json").write_text("[]")
    result = call("adapters", "verify")
    assert result.exit_code == 1
    assert "support@1: the bytes of adapter_config.json" in result.stderr
    assert "support@2 is as recorded" in result.stdout
    adapters("verify", "support@2")


def test_import_takes_a_peft_folder(
    registry: Registry, tiny_base: TinyBase, peft_adapter: PeftAdapter, tmp_path: Path
) -> None:
    base = tiny_base("llama")
    folder = peft_adapter(base, 4)
    assert "a@1" in adapters("import", folder, "--name", "a", "--base", base)
    assert "(unverified)" in adapters("list")
    too_high = ("--base", base, "--max-rank", 2)
    assert "rank 4" in refusal("adapters", "import", folder, "--name", "a", *too_high)
    assert "no folder" in refusal("adapters", "import", tmp_path / "x", "--name", "a", *too_high)
    assert "'A'" in refusal("adapters", "import", folder, "--name", "A", *too_high)


def test_init_base_writes_a_base_and_refuses_bad_values(tmp_path: Path) -> None:
    result = call("init-base", "--shape", "tiny-llama", "--output", tmp_path / "x")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x" / "config.json").is_file()
    assert "tiny-qwen3" in refusal("init-base", "--shape", "big", "--output", tmp_path / "y")
    assert "not empty" in refusal("init-base", "--shape", "tiny-llama", "--output", tmp_path / "x")


@pytest.mark.parametrize("command", ["list", "show", "import", "alias", "remove", "verify"])
def test_every_command_teaches(command: str) -> None:
    text = call("adapters", command, "--help").stdout
    assert len(text.split()) > 20

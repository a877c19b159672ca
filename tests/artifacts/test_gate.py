"""A version whose gate failed: registered, asked by number, and nobody's alias unless forced."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from artifacts.audit import GATE_OVERRIDE, AuditRow
from artifacts.base import open_base
from artifacts.cli import adapters_app
from artifacts.database import Database
from artifacts.errors import Conflict, NotFound
from artifacts.home import Home
from artifacts.importing import import_adapter
from artifacts.manifest import GateResult
from artifacts.names import parse_ref
from artifacts.registry import AdapterVersion, Registry
from artifacts.results import Results
from tests.artifacts.drafts import DRAFT, adapter_folder
from tests.conftest import PeftAdapter, TinyBase

FAILED = GateResult(name="perplexity_drop", value=0.1, threshold=0.35, passed=False)
PASSED = GateResult(name="effect", value=0.5, threshold=0.0, passed=True)
UNKNOWN = GateResult(
    name="forgetting", value=None, threshold=0.05, passed=None, detail="no suite was named"
)

FOUND = Results(suite="s", suite_hash="h", seed=0, tasks=())


@pytest.fixture
def registry(home: Home, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("LORALOOP_HOME", str(home.root))
    monkeypatch.setenv("COLUMNS", "200")
    return Registry(home, Database(home.database_url))


def publish(registry: Registry, *gates: GateResult) -> AdapterVersion:
    scratch = Path(tempfile.mkdtemp(dir=registry.home.tmp))
    draft = DRAFT.model_copy(update={"gates": gates})
    version = registry.publish("a", adapter_folder(scratch / "new"), draft)
    scratch.rmdir()
    return version


def number(registry: Registry, ref: str) -> int:
    return registry.resolve(parse_ref(ref)).version


def overrides(registry: Registry) -> list[tuple[str, str, str]]:
    with registry.database.reading() as session:
        rows = session.scalars(select(AuditRow).where(AuditRow.action == GATE_OVERRIDE))
        return [(row.who, row.subject, row.detail["use"]) for row in rows]


def test_one_failed_gate_fails_the_version_and_an_unmeasured_one_does_not() -> None:
    for gates, verdict in (
        ((), "none"),
        ((PASSED, UNKNOWN), "passed"),
        ((PASSED, FAILED, UNKNOWN), "failed"),
    ):
        assert DRAFT.model_copy(update={"gates": gates}).gate == verdict
    assert str(FAILED) == "perplexity_drop is 0.1 (threshold 0.35)"


def test_nothing_but_its_number_means_a_version_that_failed(registry: Registry) -> None:
    first = publish(registry, PASSED, FAILED)
    assert registry.aliases("a") == {}
    assert registry.resolve(parse_ref("a@1")) == first
    for ref in ("a", "a@latest"):
        with pytest.raises(NotFound, match=r"every version of a failed its gate.*a has @1"):
            registry.resolve(parse_ref(ref))
    publish(registry, PASSED)
    publish(registry, FAILED)
    assert registry.aliases("a") == {"champion": 2}  # the first that is fit
    assert [number(registry, ref) for ref in ("a", "a@latest", "a@3")] == [2, 2, 3]


def test_a_later_fit_version_takes_no_crown_that_was_taken_away(registry: Registry) -> None:
    publish(registry, PASSED)
    registry.delete_alias("a", "champion")
    publish(registry, PASSED)
    assert registry.aliases("a") == {}


def test_an_alias_to_it_needs_force_and_leaves_a_trace(registry: Registry) -> None:
    publish(registry, PASSED)
    publish(registry, FAILED)
    with pytest.raises(Conflict, match=r"a@2 failed its gate \(perplexity_drop is 0.1"):
        registry.set_alias("a", "canary", 2)
    assert registry.aliases("a") == {"champion": 1}
    registry.set_alias("a", "canary", 2, forced_by="cli:me")
    registry.set_alias("a", "other", 1, forced_by="cli:me")  # fit: nothing was overridden
    assert registry.aliases("a") == {"champion": 1, "canary": 2, "other": 1}
    assert overrides(registry) == [("cli:me", "a@2", "the alias a@canary")]


def test_a_forced_champion_stays(registry: Registry) -> None:
    publish(registry, FAILED)
    registry.set_alias("a", "champion", 1, forced_by="cli:me")
    publish(registry, PASSED)
    assert [number(registry, ref) for ref in ("a", "a@latest")] == [1, 2]


def test_the_command_line_shows_the_verdict_and_forces_in_a_name(registry: Registry) -> None:
    publish(registry, PASSED, FAILED, UNKNOWN)
    run = CliRunner().invoke
    assert "failed: perplexity_drop" in run(adapters_app, ["list"]).stdout
    shown = run(adapters_app, ["show", "a@1"]).stdout
    assert "failed: perplexity_drop is 0.1 (threshold 0.35)" in shown
    assert "not measured: forgetting (threshold 0.05): no suite was named" in shown
    refused = run(adapters_app, ["alias", "a@champion", "1"])
    assert refused.exit_code == 1
    assert "with force" in refused.stderr
    assert run(adapters_app, ["alias", "a@champion", "1", "--force"]).exit_code == 0
    ((who, subject, _),) = overrides(registry)
    assert who.startswith("cli:")
    assert subject == "a@1"


def test_a_copy_that_is_imported_again_keeps_its_verdict(
    registry: Registry, tiny_base: TinyBase, peft_adapter: PeftAdapter, tmp_path: Path
) -> None:
    base = open_base(tiny_base("llama"))
    imported = import_adapter(registry, peft_adapter(base.path), "a", base, max_rank=64)
    copy = shutil.copytree(imported.path, tmp_path / "copy")
    record = imported.manifest.model_copy(update={"gates": (FAILED,), "evaluation": FOUND})
    (copy / "manifest.json").write_text(record.model_dump_json())
    again = import_adapter(registry, copy, "b", base, max_rank=64)
    assert again.manifest.gates == (FAILED,)
    assert again.manifest.evaluation == FOUND
    assert registry.aliases("b") == {}

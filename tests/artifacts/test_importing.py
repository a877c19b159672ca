"""Foreign adapters come in checked, marked and whole, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from artifacts.adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from artifacts.base import Base, open_base
from artifacts.database import Database
from artifacts.errors import AdapterRejected, InvalidName, NotFound
from artifacts.home import Home
from artifacts.importing import import_adapter
from artifacts.manifest import CARD_FILE, CARD_MARK, MANIFEST_FILE
from artifacts.registry import Registry
from tests.conftest import PeftAdapter, TinyBase


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home, Database(home.database_url))


@pytest.fixture(scope="module")
def base(tiny_base: TinyBase) -> Base:
    return open_base(tiny_base("llama"))


@pytest.fixture
def folder(base: Base, peft_adapter: PeftAdapter, tmp_path: Path) -> Path:
    made = peft_adapter(base.path, 4, ["q_proj"], seed=3)
    return Path(shutil.copytree(made, tmp_path / "peft"))


def reason(registry: Registry, folder: Path, base: Base, **options: Any) -> str:
    with pytest.raises(AdapterRejected) as caught:
        import_adapter(registry, folder, "a", base, **{"max_rank": 8} | options)
    assert registry.list() == []
    assert list(registry.home.tmp.iterdir()) == []
    return caught.value.reason


def test_a_foreign_adapter_is_copied_and_marked(
    registry: Registry, folder: Path, base: Base
) -> None:
    (folder / "optimizer.pt").write_bytes(b"pickle")
    (folder / CARD_FILE).write_text("their card")
    before = sorted(path.name for path in folder.iterdir())
    version = import_adapter(registry, folder, "a", base, max_rank=4)
    manifest = version.manifest
    assert (version.id, manifest.origin, manifest.base_id) == ("a@1", "imported", "tiny-llama")
    assert (manifest.base_fingerprint, manifest.template_hash) == (None, None)
    assert (manifest.rank, manifest.alpha, manifest.target_modules) == (4, 8.0, ("q_proj",))
    assert manifest.num_parameters == 3 * 4 * (64 + 64)
    assert version.content_hash == read_adapter(version.path).content_hash
    expected = {CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, MANIFEST_FILE}
    assert {path.name for path in version.path.iterdir()} == expected
    assert (version.path / CARD_FILE).read_text() == "their card"
    assert sorted(path.name for path in folder.iterdir()) == before
    registry.verify("a", 1)


def own_folder(registry: Registry, folder: Path, base: Base, **changes: Any) -> Path:
    """An exported copy of a version that was trained here, then changed."""
    version = import_adapter(registry, folder, "own", base, max_rank=8)
    path = Path(shutil.copytree(version.path, folder.parent / "own"))
    registry.remove("own", 1, force=True)
    record = json.loads((path / MANIFEST_FILE).read_text()) | {
        "origin": "trained",
        "base_fingerprint": base.fingerprint,
        "template_hash": base.template_hash,
        "metrics": {"adapter_loss": 1.5},
    }
    (path / MANIFEST_FILE).write_text(json.dumps(record | changes))
    (path / CARD_FILE).write_text(f"{CARD_MARK}\n# own@1")
    return path


def test_our_own_manifest_is_kept_and_checked(registry: Registry, folder: Path, base: Base) -> None:
    own = own_folder(registry, folder, base)
    manifest = import_adapter(registry, own, "a", base, max_rank=8).manifest
    assert (manifest.base_fingerprint, manifest.template_hash) == (
        base.fingerprint,
        base.template_hash,
    )
    assert manifest.metrics == {"adapter_loss": 1.5}
    assert (manifest.id, manifest.settings["imported_from"]) == ("a@1", "own@1")
    assert "a@1" in (registry.get("a", 1).path / CARD_FILE).read_text()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base_fingerprint": "0" * 64}, "base_mismatch"),
        ({"template_hash": "0" * 64}, "template_mismatch"),
        ({"content_hash": "0" * 64}, "hash_mismatch"),
        ({"rank": "many"}, "unreadable_manifest"),
        ({"unknown": 1}, "unreadable_manifest"),
    ],
)
def test_a_manifest_that_contradicts_is_refused(
    registry: Registry, folder: Path, base: Base, changes: dict[str, Any], expected: str
) -> None:
    own = own_folder(registry, folder, base, **changes)
    assert reason(registry, own, base) == expected


def test_an_adapter_of_another_shape_or_rank_is_refused(
    registry: Registry, folder: Path, tiny_base: TinyBase, base: Base
) -> None:
    assert reason(registry, folder, open_base(tiny_base("qwen3"))) == "shape_mismatch"
    assert reason(registry, folder, open_base(tiny_base("qwen2"))) == "unknown_module"
    assert reason(registry, folder, base, max_rank=3) == "rank_too_high"


def test_files_must_lie_inside_the_roots(
    registry: Registry, folder: Path, base: Base, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert reason(registry, folder, base, roots=[root]) == "path_escape"
    (root / "link").symlink_to(folder)
    assert reason(registry, root / "link", base, roots=[root]) == "path_escape"
    inside = Path(shutil.copytree(folder, root / "in"))
    (inside / WEIGHTS_FILE).unlink()
    (inside / WEIGHTS_FILE).symlink_to(folder / WEIGHTS_FILE)
    assert reason(registry, inside, base, roots=[root]) == "path_escape"
    assert import_adapter(registry, inside, "a", base, max_rank=8).id == "a@1"  # no roots: allowed


def test_missing_folders_and_bad_names_change_nothing(
    registry: Registry, folder: Path, base: Base, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="PEFT"):
        import_adapter(registry, tmp_path / "none", "a", base, max_rank=8)
    with pytest.raises(InvalidName):
        import_adapter(registry, folder, "A", base, max_rank=8)
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    assert reason(registry, folder, base) == "pickle_refused"
    (folder / CONFIG_FILE).unlink()
    assert reason(registry, folder, base) == "missing_config"

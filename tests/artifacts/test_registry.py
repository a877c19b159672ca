"""Versions, aliases and removal against a plain model of what they should be."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts import version_folder
from artifacts.database import Database
from artifacts.errors import Conflict, Corrupt, InvalidInput, InvalidName, NotFound
from artifacts.home import Home
from artifacts.manifest import CARD_FILE, MANIFEST_FILE, read_manifest
from artifacts.names import parse_ref
from artifacts.registry import AdapterVersion, Registry
from tests.artifacts.drafts import DRAFT, adapter_folder


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home, Database(home.database_url))


def publish(registry: Registry, name: str = "a", content: str = "weights") -> AdapterVersion:
    scratch = Path(tempfile.mkdtemp(dir=registry.home.tmp))
    version = registry.publish(name, adapter_folder(scratch / "new", content), DRAFT)
    scratch.rmdir()  # publish moved the folder away
    return version


def test_publish_moves_the_folder_in_and_records_it(registry: Registry) -> None:
    version = publish(registry)
    assert (version.id, version.path) == ("a@1", registry.home.adapters / "a" / "1")
    assert sorted(path.name for path in version.path.iterdir()) == [
        CARD_FILE,
        "adapter_config.json",
        "adapter_model.safetensors",
        MANIFEST_FILE,
    ]
    assert read_manifest(version.path) == version.manifest
    assert registry.get("a", 1) == version
    assert "a@1" in (version.path / CARD_FILE).read_text()


def test_first_version_is_champion_and_later_ones_change_no_alias(registry: Registry) -> None:
    for _ in range(3):
        publish(registry)
    assert registry.aliases("a") == {"champion": 1}
    assert [registry.resolve(parse_ref(ref)).version for ref in ("a", "a@latest", "a@2")] == [
        1,
        3,
        2,
    ]


def test_a_bare_name_without_champion_means_latest(registry: Registry) -> None:
    publish(registry)
    publish(registry)
    registry.delete_alias("a", "champion")
    assert registry.resolve(parse_ref("a")).version == 2


def test_set_alias_returns_what_it_pointed_at(registry: Registry) -> None:
    publish(registry)
    publish(registry)
    assert registry.set_alias("a", "canary", 2) is None
    assert registry.set_alias("a", "canary", 1) == 2
    assert registry.resolve(parse_ref("a@canary")).version == 1


@pytest.mark.parametrize("ref", ["a@9", "a@canary", "b", "b@1", "b@canary", "b@latest"])
def test_what_does_not_exist_is_not_found_and_says_what_does(registry: Registry, ref: str) -> None:
    publish(registry)
    with pytest.raises(NotFound, match=r"@1|registered: a|a@champion"):
        registry.resolve(parse_ref(ref))


def test_alias_to_a_missing_version_is_refused(registry: Registry) -> None:
    publish(registry)
    with pytest.raises(NotFound):
        registry.set_alias("a", "canary", 2)
    with pytest.raises(NotFound):
        registry.delete_alias("a", "canary")
    for alias in ("latest", "12", "UPPER", ""):
        with pytest.raises(InvalidName):
            registry.set_alias("a", alias, 1)


def test_remove_refuses_while_an_alias_points_and_force_deletes_it(registry: Registry) -> None:
    version = publish(registry)
    with pytest.raises(Conflict, match="a@champion"):
        registry.remove("a", 1)
    assert version.path.is_dir()
    registry.remove("a", 1, force=True)
    assert not version.path.exists()
    assert registry.aliases("a") == {}
    assert list(registry.home.tmp.iterdir()) == []


def test_removed_numbers_are_never_given_again(registry: Registry) -> None:
    publish(registry)
    registry.remove("a", 1, force=True)
    second = publish(registry)
    assert second.id == "a@2"
    assert registry.aliases("a") == {"champion": 2}  # the only version there is


def test_a_lost_database_makes_no_version_rubbish(registry: Registry) -> None:
    kept = publish(registry).path
    registry.database.close()
    for file in registry.home.root.glob("registry.db*"):
        file.unlink()
    fresh = Registry(registry.home, Database(registry.home.database_url))
    assert fresh.recover() == []
    assert publish(fresh).id == "a@2"
    assert kept.is_dir()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", MANIFEST_FILE])
@pytest.mark.parametrize("damage", ["change", "delete"])
def test_verify_names_the_damaged_file(registry: Registry, file: str, damage: str) -> None:
    version = publish(registry)
    registry.verify("a", 1)
    path = version.path / file
    if damage == "change":
        path.write_bytes(path.read_bytes().replace(b"e", b"3"))
    else:
        path.unlink()
    with pytest.raises(Corrupt, match=file):
        registry.verify("a", 1)
    shutil.rmtree(version.path)
    with pytest.raises(Corrupt, match="gone"):
        registry.verify("a", 1)


def test_names_links_and_missing_folders_are_refused(registry: Registry, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "new")
    for name in ("", "A", "../x", "a@1", "a" * 65, "a/b", ".a", "a\n"):
        with pytest.raises(InvalidName):
            registry.publish(name, folder, DRAFT)
    with pytest.raises(InvalidInput, match="not a folder"):
        registry.publish("a", tmp_path / "none", DRAFT)
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="link"):
        registry.publish("a", folder, DRAFT)
    assert registry.list() == []


def test_a_failed_publish_leaves_nothing_and_can_be_tried_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_folder(tmp_path / "new")
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError("disk full")

        patch.setattr(version_folder, "write_json", full)
        with pytest.raises(OSError, match="disk full"):
            registry.publish("a", folder, DRAFT)
    assert registry.list() == []
    version = registry.publish("b", folder, DRAFT)
    assert "b@1" in (version.path / CARD_FILE).read_text()
    registry.verify("b", 1)


def test_a_folder_on_another_file_system_is_copied(registry: Registry) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == registry.home.root.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        folder = adapter_folder(Path(elsewhere) / "new")
        version = registry.publish("a", folder, DRAFT)
        assert not folder.exists()
    registry.verify("a", version.version)
    assert list(registry.home.tmp.iterdir()) == []


def test_an_imported_card_is_kept(registry: Registry, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "new")
    (folder / CARD_FILE).write_text("my card")
    draft = DRAFT.model_copy(update={"origin": "imported"})
    assert (registry.publish("a", folder, draft).path / CARD_FILE).read_text() == "my card"


PUBLISHER = """
import sys
from pathlib import Path
from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from tests.artifacts.drafts import DRAFT, adapter_folder

home = Home.open(sys.argv[1])
registry = Registry(home, Database(home.database_url))
for i in range(5):
    folder = adapter_folder(home.tmp / f"{sys.argv[2]}-{i}", sys.argv[2])
    print(registry.publish("a", folder, DRAFT).version)
"""


def test_processes_publishing_at_once_get_distinct_numbers(home: Home) -> None:
    command = [sys.executable, "-c", PUBLISHER, str(home.root)]
    children = [
        subprocess.Popen([*command, mark], stdout=subprocess.PIPE, text=True) for mark in "xyz"
    ]
    numbers = [int(line) for child in children for line in child.communicate()[0].split()]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert sorted(numbers) == list(range(1, 16))
    registry = Registry(home, Database(home.database_url))
    for version in registry.list():
        registry.verify("a", version.version)
    assert registry.aliases("a") == {"champion": 1}


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "remove", "force", "alias", "delete"]),
        st.sampled_from(["a", "b"]),
        st.integers(1, 4),
    ),
    max_size=12,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations=OPERATIONS)
def test_any_sequence_agrees_with_a_model(operations: list[tuple[str, str, int]]) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as root:
        home = Home.open(root)
        registry = Registry(home, Database(home.database_url))
        model = Model()
        for operation in operations:
            assert model.apply(*operation) == outcome(registry, *operation)
        assert {version.id for version in registry.list()} == {
            f"{name}@{number}" for name in "ab" for number in model.versions[name]
        }
        assert {name: registry.aliases(name) for name in "ab"} == model.aliases
        registry.database.close()


class Model:
    """The registry in a few dictionaries."""

    def __init__(self) -> None:
        self.versions: dict[str, list[int]] = {"a": [], "b": []}
        self.aliases: dict[str, dict[str, int]] = {"a": {}, "b": {}}
        self.next = {"a": 1, "b": 1}

    def apply(self, operation: str, name: str, number: int) -> object:
        versions, aliases = self.versions[name], self.aliases[name]
        if operation == "publish":
            if not versions:
                aliases["champion"] = self.next[name]
            versions.append(self.next[name])
            self.next[name] += 1
            return versions[-1]
        if operation == "delete":
            return None if aliases.pop("champion", None) else NotFound
        if number not in versions:
            return NotFound
        if operation == "alias":
            aliases["champion"] = number
            return None
        if operation == "remove" and number in aliases.values():
            return Conflict
        versions.remove(number)
        self.aliases[name] = {alias: n for alias, n in aliases.items() if n != number}
        return None


def outcome(registry: Registry, operation: str, name: str, number: int) -> object:
    try:
        if operation == "publish":
            return publish(registry, name).version
        if operation == "delete":
            registry.delete_alias(name, "champion")
        elif operation == "alias":
            registry.set_alias(name, "champion", number)
        else:
            registry.remove(name, number, force=operation == "force")
    except (NotFound, Conflict) as error:
        return type(error)
    return None

"""What the README and the architecture page name, exists. The examples run in tests/live."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from server.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_settings_table_lists_every_setting() -> None:
    listed = re.findall(rf"^\| `({PREFIX}\w+)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(PREFIX + name.upper() for name in Settings.model_fields)


def test_the_settings_table_shows_the_defaults() -> None:
    rows = dict(re.findall(rf"^\| `{PREFIX}(\w+)` \| `([\w.-]+)` \|", README, re.MULTILINE))
    assert len(rows) > 10
    for name, shown in rows.items():
        default = Settings.model_fields[name.lower()].default
        assert shown == (str(default).lower() if isinstance(default, bool) else f"{default:g}"
                         if isinstance(default, float) else str(default))  # fmt: skip


def test_every_command_that_is_mentioned_exists() -> None:
    from loraloop import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    mentioned = set(
        re.findall(r"loraloop (serve|train|adapters|init-base|demo|bench|export|eval)\b", README)
    )
    assert mentioned <= known
    assert {"serve", "train", "adapters", "init-base"} <= mentioned


def test_the_tree_lists_every_package_and_links_lead_somewhere() -> None:
    tree = README.split("## What lies where", 1)[1].split("```")[1]
    listed = set(re.findall(r"^(\w+)/", tree, re.MULTILINE))
    tracked = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert tracked <= listed
    assert not [name for name in listed if not (ROOT / name).is_dir()]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_file_that_the_architecture_page_names_exists() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", page)) - {"loraloop.py"}
    assert len(named) > 15
    assert len(page.splitlines()) <= 75  # one page
    folders = ("artifacts", "training", "export", "server", "tests")
    files = [str(path) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in files)]


def test_every_make_verb_that_is_mentioned_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for verb in set(re.findall(r"`?make ([a-z]+)\b(?=[ `\n])", pages)):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE) or verb in ("and",), verb


def test_every_error_code_in_the_table_is_raised_somewhere() -> None:
    table = README.split("## Errors", 1)[1].split("## ", 1)[0]
    rows = [line for line in table.splitlines() if re.match(r"\| \d", line)]
    codes = {code for row in rows for code in re.findall(r"`([a-z_]+)`", row.split("|")[2])}
    assert len(codes) > 10
    source = "".join(
        path.read_text(encoding="utf-8")
        for package in ("artifacts", "server")
        for path in (ROOT / package).rglob("*.py")
    )
    assert not [code for code in codes if f'"{code}"' not in source]

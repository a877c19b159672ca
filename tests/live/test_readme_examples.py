"""Every example of the README that is marked ``test``, run in the order of the page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.conftest import REPOSITORY, LiveServer

DEFAULT_URL = "http://127.0.0.1:8000"
BLOCK = re.compile(r"^```(bash|python) test\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = ("loraloop-embedded", "[DONE]", "succeeded ft:", "tea@2", '"arms"', '"deleted":true')


@pytest.fixture
def workplace(start_live: Callable[..., LiveServer], tmp_path: Path) -> tuple[Path, str]:
    """A folder that looks like the repository to the examples, and the URL of a fresh server."""
    live = start_live()
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    (tmp_path / ".loraloop").symlink_to(live.home)
    return tmp_path, live.url


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples need curl")
def test_every_example_runs_in_the_order_of_the_page(workplace: tuple[Path, str]) -> None:
    folder, url = workplace
    blocks = BLOCK.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert {language for language, _ in blocks} == {"bash", "python"}
    shells = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    printed = ""
    for language, text in blocks:
        command = [*shells[language], text.replace(DEFAULT_URL, url)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    assert not [part for part in PRINTED if part not in printed]

"""One export of the tiny base with the adapter merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.forms.form import Options, Workshop
from export.forms.torchscript import TORCHSCRIPT
from export.source import Source, open_source


@pytest.fixture(scope="session")
def source(tiny_base: Path, adapter: Path) -> Source:
    return open_source(str(adapter), str(tiny_base))


@pytest.fixture(scope="session")
def written(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder and the settings."""
    folder = tmp_path_factory.mktemp("torchscript")
    workshop = Workshop(source, lambda *_: None)
    return folder, TORCHSCRIPT.write(workshop, Options(), folder)

"""Arguments of ``loraloop train`` as they reach the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraloop import app


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        ([], []),
        (["epochs=2", "rank=4"], ["epochs=2", "rank=4"]),
        (["epochs=2", "--auto-remedy"], ["epochs=2", "auto_remedy=true"]),
    ],
)
def test_options_become_keys(
    arguments: list[str], overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def run(config: Path, given: list[str], progress: str) -> int:
        asked.extend([config, given, progress])
        return 3

    monkeypatch.setattr("training.run.main", run)
    result = CliRunner().invoke(app, ["train", "run.yaml", *arguments])
    assert result.exit_code == 3
    assert asked == [Path("run.yaml"), overrides, "bar"]

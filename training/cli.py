"""The command ``loraloop train`` and ``python -m training``: arguments in, exit code out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ProgressForm(StrEnum):
    """How a run tells what it does."""

    BAR = "bar"
    JSON = "json"


def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file, ours (training/configs/lora.yaml) or LLaMA-Factory's")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file's"),
    ] = None,
    progress: Annotated[
        ProgressForm, typer.Option(help="A bar for people, JSON lines on stdout for programs")
    ] = ProgressForm.BAR,
    auto_remedy: Annotated[
        bool, typer.Option("--auto-remedy", help="Out of memory: go on with fewer rows at a time")
    ] = False,
) -> None:
    """Train an adapter, or a whole model, and register it as a new version.

    Exit codes: 0 published, 1 failed, 3 interrupted by SIGTERM or SIGINT with a checkpoint kept, 4
    no disk or database, 5 registered although a gate failed: it answers under its number only.
    """
    from training.run import main

    asked = [*(overrides or []), *(["auto_remedy=true"] if auto_remedy else [])]
    raise typer.Exit(main(config, asked, progress.value))

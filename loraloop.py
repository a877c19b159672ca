"""The command ``loraloop``: the top floor. It parses options and calls one function below.

Imports stand inside the commands, so that ``loraloop --help`` answers at once and a server never
loads what only training needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Serve one base model with many LoRA adapters, train new ones beside the traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=PASS_THROUGH)
def train(ctx: typer.Context) -> None:
    """Train one adapter version: CONFIG.yaml [key=value …] [--progress bar|json]."""
    from training.__main__ import main as run_training

    raise typer.Exit(run_training(ctx.args))


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="alpaca, ShareGPT or OpenAI-messages file instead of the example data"),
    ] = None,
    keep: Annotated[bool, typer.Option(help="keep the demo's folder with its adapters")] = False,
) -> None:
    """The main job, end to end: train, hot-load, chat, split traffic, measure. Minutes on a CPU."""
    from demo.story import run_demo

    raise typer.Exit(run_demo(data, keep=keep))


def main() -> None:
    """Console entry point."""
    app()


if __name__ == "__main__":
    main()

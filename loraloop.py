"""The command ``loraloop``: the top floor. It parses options and calls one function below.

Heavy imports stand inside the commands, here and in the floors below: ``loraloop --help`` answers
at once, and a server never loads what only training needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifacts.cli import adapters_app, init_base_command
from export.command import ExportFile, export_app
from server.bench.cli import bench_app
from server.main import serve
from training.bench.cli import bench_train
from training.cli import train
from training.doctor.cli import data_app
from training.evaluate.cli import evaluate_command

app = typer.Typer(
    help="Serve one base model with many LoRA adapters, train new ones beside the traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command()(serve)
app.command()(train)
app.command("eval")(evaluate_command)
app.add_typer(data_app, name="data")
app.add_typer(adapters_app, name="adapters")
app.command("init-base")(init_base_command)
bench_app.command("train")(bench_train)
app.add_typer(bench_app, name="bench")


def _export_file(what: str) -> ExportFile:
    """What ``loraloop export`` was given: a LLaMA-Factory file, else an adapter."""
    from training.llamafactory import export_file

    if Path(what).suffix in (".yaml", ".yml"):
        return export_file.read_export(Path(what))
    return export_file.ExportFile(what)


app.add_typer(export_app, name="export", context_settings={"obj": _export_file})


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="alpaca, ShareGPT or OpenAI-messages file instead of the example data"),
    ] = None,
    keep: Annotated[bool, typer.Option(help="keep the demo's folder with its adapters")] = False,
) -> None:
    """The main job, end to end: train, hot-load, chat, split traffic, measure. Minutes on a CPU."""
    try:
        from demo.story import run_demo
    except ModuleNotFoundError as error:
        typer.secho(
            f"{error}: the demo needs a checkout; run `make demo` there", err=True, fg="red"
        )
        raise typer.Exit(2) from None
    raise typer.Exit(run_demo(data, keep=keep))


def main() -> None:
    """Console entry point."""
    app()


if __name__ == "__main__":
    main()

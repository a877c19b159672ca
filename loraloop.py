"""The command ``loraloop``: the top floor. It parses options and calls one function below.

Heavy imports stand inside the commands, here and in the floors below: ``loraloop --help`` answers
at once, and a server never loads what only training needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from artifacts.cli import adapters_app, init_base_command
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


@app.command()
def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION|FOLDER|FILE.yaml",
            help="an adapter, a PEFT folder, or a LLaMA-Factory file with export_dir",
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="a new folder")] = None,
    form: Annotated[Literal["merged"], typer.Option("--format", help="what to make")] = "merged",
    model: Annotated[
        str | None, typer.Option(help="the base: folder or hub id; default: the embedded one")
    ] = None,
    shard_gb: Annotated[float | None, typer.Option(help="largest file in GB; default 5")] = None,
    verify: Annotated[
        bool, typer.Option(help="compare the logits with the adapter's, in float32")
    ] = True,
) -> None:
    """Merge an adapter into its base: a folder that any transformers program loads."""
    from export.cli import export_and_tell, one_line_errors
    from training.llamafactory.export_file import ExportFile, read_export

    with one_line_errors():
        file = (
            read_export(Path(what)) if Path(what).suffix in (".yaml", ".yml") else ExportFile(what)
        )
        for note in file.notes:
            typer.echo(f"note: {note}", err=True)
        export_and_tell(
            file.adapter,
            output or file.output,
            base=model or file.base,
            shard_gb=file.shard_gb if shard_gb is None else shard_gb,
            is_verified=verify,
        )


def main() -> None:
    """Console entry point."""
    app()


if __name__ == "__main__":
    main()

"""The command ``loraloop``: the top floor. It parses options and calls one function below.

Heavy imports stand inside the commands, here and in the floors below: ``loraloop --help`` answers
at once, and a server never loads what only training needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifacts.cli import adapters_app, init_base_command
from server.main import serve
from training.cli import train

app = typer.Typer(
    help="Serve one base model with many LoRA adapters, train new ones beside the traffic.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command()(serve)
app.command()(train)
app.add_typer(adapters_app, name="adapters")
app.command("init-base")(init_base_command)


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


bench = typer.Typer(help="Measure on this machine, beside its own ceilings.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("engine")
def bench_engine(
    model: Annotated[
        str | None, typer.Option(help="folder or hub id; the embedded base if left out")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="a real shape with random weights instead, such as qwen2.5-0.5b; kept "
            "under the home"
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto|float32|bfloat16|float16")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="of the forward pass")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="rounds; the median is shown")] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROWS",
            help="ttft|streams|adapters|untouched|rank256|chat|hotload|zipf|memory; repeatable",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option(help="short answers: to try it out, not to quote")] = False,
) -> None:
    """First-token time, tokens per second and the price of adapters, in process.

    Prints what the machine can do at best, then every figure beside the floor that follows from
    it, the aim and whether it is met; the last line is JSON.

    loraloop bench engine --shape qwen2.5-0.5b --threads 2

    loraloop bench engine --only hotload --only chat
    """
    from artifacts.errors import LoraloopError
    from server.bench.command import Options
    from server.bench.command import bench_engine as run
    from server.engine.errors import EngineError

    try:
        run(Options(model, shape, dtype, threads, repeats, tuple(only or ()), quick))
    except (LoraloopError, EngineError) as error:
        typer.secho(f"loraloop bench: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


@bench.command("base")
def bench_base(
    shape: Annotated[str, typer.Option(help="as in loraloop init-base")] = "qwen2.5-0.5b",
) -> None:
    """Make the base that --shape measures, unless it is there; print its folder."""
    from artifacts.errors import LoraloopError
    from artifacts.home import Home
    from server.bench.shape import cached_base

    try:
        typer.echo(cached_base(shape, Home.open()))
    except LoraloopError as error:
        typer.secho(f"loraloop bench: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


def main() -> None:
    """Console entry point."""
    app()


if __name__ == "__main__":
    main()

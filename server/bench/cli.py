"""``loraloop bench …``: options in, one function call. Heavy imports stand inside the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from artifacts.errors import LoraloopError

STREAMS = (1, 4, 8, 16)

bench_app = typer.Typer(
    help="Measure on this machine, beside its own ceilings.", no_args_is_help=True
)


@bench_app.command("engine")
def engine_command(
    model: Annotated[
        str | None, typer.Option(help="folder or hub id; the embedded base if left out")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="instead: random weights at a real shape, such as qwen2.5-0.5b; made "
            "once, kept under the home"
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
    streams: Annotated[
        list[int] | None,
        typer.Option(min=1, help="requests at once in the rows streams [1 4 8 16]; repeatable"),
    ] = None,
    quick: Annotated[bool, typer.Option(help="short answers: to try it out, not to quote")] = False,
) -> None:
    """First-token time, tokens per second and the price of adapters, in process.

    Prints what the machine can do at best, then every figure beside the floor that follows from
    it, the aim and whether it is met; the last line is JSON.

    loraloop bench engine --shape qwen2.5-0.5b --threads 2

    loraloop bench engine --only hotload --only chat
    """
    with _one_line_errors():
        from server.bench.command import Options, bench_engine

        bench_engine(
            Options(
                model=model,
                shape=shape,
                dtype=dtype,
                threads=threads,
                repeats=repeats,
                only=tuple(only or ()),
                streams=tuple(streams or STREAMS),
                is_quick=quick,
            )
        )


@bench_app.command("base")
def base_command(
    shape: Annotated[str, typer.Option(help="as in loraloop init-base")] = "qwen2.5-0.5b",
) -> None:
    """Make the base that --shape measures, unless it is there; print its folder."""
    with _one_line_errors():
        from artifacts.home import Home
        from server.bench.shape import cached_base

        typer.echo(cached_base(shape, Home.open()))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from server.engine.errors import EngineError

    try:
        yield
    except (LoraloopError, EngineError) as error:
        typer.secho(f"loraloop bench: {error}", err=True, fg="red")
        raise typer.Exit(2) from None

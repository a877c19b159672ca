"""The command ``loraloop eval``: options in, a folder with the report out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """The number format of the weights; ``auto`` is float32 on a CPU, else bfloat16."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def evaluate_command(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="NAME, NAME@3, NAME@ALIAS, a folder (./FOLDER) with an adapter or a whole model, "
            "or `base`",
            show_default=False,
        ),
    ],
    suite: Annotated[Path, typer.Option(help="YAML file; see docs/evaluation.md")],
    against: Annotated[
        str | None, typer.Option(help="another version or folder to compare with, beside the base")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="folder of the suite's relative data paths [this one]")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="folder or hub id of the base [the embedded base]")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="where versions are kept [env LORALOOP_HOME, ./.loraloop]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the report [reports/eval-ADAPTER-SUITE]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of samples, noise and intervals")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="questions asked at once")] = 64,
    limit: Annotated[
        int | None, typer.Option(min=1, help="only the first rows of every task")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="of the weights; auto: float32 on a CPU")
    ] = Dtype.AUTO,
) -> None:
    """Measure an adapter beside its base on a suite of tasks: JSON, Markdown and plots.

    Seeded: the same command on the same files gives the same bytes.
    """
    from rich.console import Console

    from artifacts.errors import LoraloopError
    from training.evaluate.run import EvalOptions, evaluate

    options = EvalOptions(
        adapter=adapter,
        suite=suite,
        against=against,
        data=data,
        base=base,
        home=home,
        output=output,
        seed=seed,
        batch_size=batch_size,
        limit=limit,
        dtype=dtype.value,
    )
    try:
        evaluate(options, Console(stderr=True))
    except LoraloopError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error

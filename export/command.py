"""The commands ``loraloop export NAME@VERSION``, ``export verify`` and ``export bench``.

Heavy imports stand inside the functions: ``--help`` and a wrong option are answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from artifacts.errors import InvalidInput
from artifacts.exported.formats import FORMATS
from export.source import MergeChoice

_RUN = "run"
_FORMATS = ", ".join(FORMATS)


class ExportFile(Protocol):
    """What a LLaMA-Factory file, or a plain name, asks for."""

    @property
    def adapter(self) -> str: ...

    @property
    def base(self) -> str | None: ...

    @property
    def output(self) -> Path | None: ...

    @property
    def shard_gb(self) -> float | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...


class _RunByDefault(TyperGroup):
    """A first argument that names no command is an adapter: ``run`` is left out."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args and args[0] not in self.commands:
            args = [_RUN, *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_option = bool(args) and args[0].startswith("-") and args[0] != "--help"
        return super().parse_args(ctx, [_RUN, *args] if is_option else args)


export_app = typer.Typer(
    cls=_RunByDefault,
    help="Bring an adapter into a form that other programs run, and prove that it answers the "
    "same. `loraloop export NAME@VERSION --help` lists the options.",
    no_args_is_help=True,
)
"""``context_settings`` must give as ``obj`` what reads the argument of ``run``."""

Model = Annotated[
    str | None, typer.Option(help="the base: folder or hub id; default: the embedded one")
]


@export_app.command(_RUN)
def run_command(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION|FOLDER|FILE.yaml",
            help="an adapter, a PEFT folder, or a LLaMA-Factory file with export_dir",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="a new folder; with several formats, of a folder for each")
    ] = None,
    forms: Annotated[
        list[str] | None, typer.Option("--format", help=f"again for more: {_FORMATS}")
    ] = None,
    model: Model = None,
    merge: Annotated[
        MergeChoice | None,
        typer.Option(
            help="what the adapter is added to; default: the base as it was while training, so "
            "dequantized for QLoRA"
        ),
    ] = None,
    shard_gb: Annotated[float | None, typer.Option(help="merged: largest file, default 5")] = None,
    block_size: Annotated[
        int | None, typer.Option(help="onnx-int4: weights that share a scale, default 64")
    ] = None,
    keep_head: Annotated[
        bool, typer.Option("--keep-head", help="onnx-int4, -int8: wider embedding and lm_head")
    ] = False,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="onnx-int4, nf4, gguf-q4_0: fit the rounding to texts that the model writes "
            "itself (default; takes the whole model in float32), or round to nearest",
        ),
    ] = None,
    pt2: Annotated[
        bool | None, typer.Option("--pt2/--no-pt2", help="torchscript: model.pt2 beside it")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="verify on these (JSONL or text) instead of the held-out rows"),
    ] = None,
    verify: Annotated[bool, typer.Option(help="prove that it answers as the adapter does")] = True,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="keep what fails its proof, marked so")
    ] = False,
) -> None:
    """Export an adapter. What is there already and the same is left as it is."""
    from export.cli import export_and_tell, one_line_errors
    from export.run import Asked

    read_file: Callable[[str], ExportFile] = context.obj

    with one_line_errors():
        file = read_file(what)
        for note in file.notes:
            typer.echo(f"note: {note}", err=True)
        shard_gb = file.shard_gb if shard_gb is None else shard_gb
        given: dict[str, Any] = {
            "shard_bytes": None if shard_gb is None else _bytes(shard_gb),
            "block_size": block_size,
            "keep_head": keep_head or None,
            "calibrate": calibrate,
            "pt2": pt2,
        }
        chosen = output or file.output
        if chosen is None:
            raise InvalidInput("--output is missing: name a new folder", param="output")
        export_and_tell(
            Asked(
                adapter=file.adapter,
                output=chosen,
                formats=tuple(forms or ("merged",)),
                base=model or file.base,
                merge=merge,
                options={key: value for key, value in given.items() if value is not None},
                prompts=prompts,
                is_verified=verify,
                allow_unverified=allow_unverified,
            )
        )


def _bytes(shard_gb: float) -> int:
    if not 0 < shard_gb < math.inf:
        raise InvalidInput(f"shard_gb={shard_gb:g} must be above 0 and finite", param="shard_gb")
    return int(shard_gb * 1e9)


@export_app.command("verify")
def verify_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="exports")],
    model: Annotated[
        str | None, typer.Option(help="the base, where it is no longer as the export recorded it")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="the adapter: NAME@VERSION or folder; else as recorded")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL or text instead of the adapter's held-out rows")
    ] = None,
    max_prompts: Annotated[int, typer.Option(min=1, help="how many at most")] = 32,
) -> None:
    """Prove again that exports answer as their adapter does, and write proof.json anew."""
    from export.cli import one_line_errors
    from export.proof.cli import verify_and_tell
    from export.proof.process import ProofAsk

    with one_line_errors():
        code = verify_and_tell(folders, ProofAsk(model, adapter, prompts, max_prompts))
    raise typer.Exit(code)


@export_app.command("bench")
def bench_command(
    what: Annotated[str, typer.Argument(metavar="NAME@VERSION|FOLDER", help="an adapter")],
    forms: Annotated[
        list[str] | None, typer.Option("--format", help="again for more; default: all of them")
    ] = None,
    model: Model = None,
    output: Annotated[Path | None, typer.Option(help="keep the exports in this folder")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="in turns; figures are medians")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="default: all cores")] = None,
    verify: Annotated[bool, typer.Option(help="prove each, which finds its loss too")] = True,
) -> None:
    """Size, speed, memory and loss of every form of an adapter, side by side."""
    from export.bench.run import ALL, BenchAsked
    from export.cli import bench_and_tell, one_line_errors

    formats = tuple(forms or ALL)
    with one_line_errors():
        bench_and_tell(BenchAsked(what, formats, model, output, rounds, threads, verify))

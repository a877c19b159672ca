"""``loraloop export``: options in, folders out, a line about each."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from artifacts.errors import LoraloopError
from artifacts.exported.record import read_record
from export.bench.run import BenchAsked, bench_forms
from export.bench.table import markdown, verdicts
from export.forms.form import Progress
from export.run import Asked, Exported, export_forms


def export_and_tell(asked: Asked) -> None:
    """Raises LoraloopError for whatever cannot be exported, and Exit(1) if a proof failed."""
    _quiet_libraries()
    with progress_bar() as progress:
        done = export_forms(asked, progress)
    for exported in done:
        typer.echo(_line(exported))
        if exported.state != "refused":
            _warn(exported)
    refused = [each for each in done if each.state == "refused"]
    for each in refused:
        assert each.proof is not None
        for failure in each.proof.failures:
            typer.echo(f"error: {each.format} was not kept: {failure}", err=True)
    if refused:
        typer.echo("error: --allow-unverified keeps them, marked so", err=True)
        raise typer.Exit(1)


def bench_and_tell(asked: BenchAsked) -> None:
    """The table on stdout. Raises LoraloopError."""
    _quiet_libraries()
    with progress_bar() as progress:
        rows = bench_forms(asked, progress)
    typer.echo(markdown(rows))
    for sentence in verdicts(rows):
        typer.echo(sentence)


def _quiet_libraries() -> None:
    """Progress bars and notes of libraries that would stand between the lines of our own."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for module in ("torch", "transformers", "bitsandbytes", "onnxscript"):
        warnings.filterwarnings("ignore", module=module)


def _line(exported: Exported) -> str:
    proof = exported.proof
    if proof is None:
        found = "not verified"
    elif proof.passed:
        found = f"verified on {proof.prompts.count} prompts ({proof.prompts.source})"
    else:
        found = f"FAILED: {proof.failures[0]}"
    return f"{exported.format}: {exported.state}, {found}: {exported.folder}"


def _warn(exported: Exported) -> None:
    """Of what the proof cannot see, which gives tokens to the model and not texts."""
    settings = read_record(exported.folder).settings
    if str(settings.get("pre_tokenizer_is")).startswith("the nearest"):
        typer.echo(
            f"warning: {exported.format}: llama.cpp knows no rule that splits text as this base's "
            f"tokenizer does; {settings['pre_tokenizer']} is {settings['pre_tokenizer_is']}",
            err=True,
        )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """An error that we raise on purpose becomes one line on stderr and exit code 1."""
    try:
        yield
    except LoraloopError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """On stderr; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("opening", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield progress

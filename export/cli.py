"""``loraloop export``: options in, a folder out, one line about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from artifacts.errors import InvalidInput, LoraloopError
from export.run import Asked, export_merged


def export_and_tell(
    adapter: str, output: Path | None, *, base: str | None, shard_gb: float, is_verified: bool
) -> None:
    """Raises LoraloopError for whatever cannot be exported."""
    if output is None:
        raise InvalidInput("--output is missing: name a new folder", param="output")
    asked = Asked(adapter, output, base, shard_gb, is_verified)
    with _bar() as on_tensor:
        facts = export_merged(asked, on_tensor)
    line = f"{facts['adapter']} merged into {facts['base']}: {asked.output}"
    if "difference" in facts:
        line += (
            f" (logits within {facts['difference']:.1e} of the adapter's, which moves them by "
            f"{facts['effect']:.1e} of the base's largest)"
        )
    typer.echo(line)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """An error that we raise on purpose becomes one line on stderr and exit code 1."""
    try:
        yield
    except LoraloopError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("merging", total=None)

        def on_tensor(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)
            if done == total:
                progress.update(task, description="comparing")

        yield on_tensor

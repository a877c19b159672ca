"""The command ``loraloop data check``: options in, the report and an exit code out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.doctor.check import Checked

data_app = typer.Typer(help="Look at data before it is trained on.", no_args_is_help=True)

EXIT_USABLE = 0
EXIT_UNUSABLE = 1
EXIT_USAGE = 2


@data_app.callback()
def _data() -> None:
    """Keeps ``check`` a word of its own."""


@data_app.command("check")
def check_command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="data files, dataset_info.json:ENTRY or hub:NAME; or one training YAML, to check "
            "exactly what it would train on",
            show_default=False,
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="folder or hub id of the base [the embedded base]")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="rows kept for an evaluation; may be repeated")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="tokens of a row that are trained [at most 2048]")
    ] = None,
    max_bad_rows: Annotated[
        int | None, typer.Option(help="more unusable rows than this fail [0]")
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option(help="rules to try: all, or html,nfkc,control,whitespace,dates,numbers"),
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="try placeholders for personal data")
    ] = False,
    preview: Annotated[
        int, typer.Option(min=0, help="show this many rows with the loss in colour")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="the whole report, for programs")] = False,
    plot: Annotated[Path | None, typer.Option(help="write the lengths of rows as a PNG")] = None,
) -> None:
    """Say what is wrong with data, and what a training would make of it. Changes nothing.

    Exit codes: 0 it can be trained, 1 it cannot (too many bad rows, too few rows), 2 the question
    is at fault.
    """
    from artifacts.errors import InvalidData, LoraloopError
    from training.doctor.check import check_data

    asked = {"base": base, "max_length": max_length, "max_bad_rows": max_bad_rows}
    keys: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    if clean is not None:
        keys["clean"] = True if clean == "all" else [rule.strip() for rule in clean.split(",")]
    if redact:
        keys["redact_personal_data"] = True
    try:
        answers = check_data(files, keys, against or [])
        if plot is not None:
            _plot(answers, plot)
    except LoraloopError as error:
        typer.secho(str(error), err=True, fg="red")
        raise typer.Exit(EXIT_UNUSABLE if isinstance(error, InvalidData) else EXIT_USAGE) from None
    if json:
        _print_json(answers)
    else:
        for number, checked in enumerate(answers, start=1):
            if len(answers) > 1:
                typer.echo(f"stage {number}")
            _print(checked, preview)
    is_usable = all(checked.report.problem is None for checked in answers)
    raise typer.Exit(EXIT_USABLE if is_usable else EXIT_UNUSABLE)


def _plot(answers: Sequence[Checked], path: Path) -> None:
    from training.doctor.plot import plot_lengths
    from training.errors import InvalidConfig

    if len(answers) > 1 or not answers[0].lengths:
        raise InvalidConfig("--plot needs the rows of one run in memory", param="plot")
    try:
        plot_lengths(answers[0].lengths, answers[0].report.settings["max_length"], path)
    except OSError as error:
        raise InvalidConfig(f"cannot write {path}: {error.strerror}", param="plot") from error


def _print_json(answers: Sequence[Checked]) -> None:
    """One report, or an object with the reports of all stages."""
    import json

    reports = [checked.report.as_dict() | {"notes": checked.notes} for checked in answers]
    value = reports[0] if len(reports) == 1 else {"stages": reports}
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _print(checked: Checked, num_rows: int) -> None:
    from rich.console import Console

    from training.doctor.preview import preview
    from training.doctor.words import report_lines

    console = Console(highlight=False, soft_wrap=True)
    for line in [*(f"note: {note}" for note in checked.notes), *report_lines(checked.report)]:
        console.print(line, markup=False)
    if num_rows:
        console.print()
        has_colour = console.color_system is not None
        for text in preview(checked.rows[:num_rows], checked.base.tokenizer, has_colour):
            console.print(text)

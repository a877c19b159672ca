"""``loraloop adapters …`` and ``loraloop init-base``: options in, one function call, tables out.

Every error that we raise on purpose becomes one line on stderr and exit code 1. Whatever takes long
to import comes in with the command that needs it: ``loraloop --help`` answers at once.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from artifacts.errors import Corrupt, InvalidName, LoraloopError
from artifacts.home import Home
from artifacts.manifest import GateResult
from artifacts.names import LATEST, parse_ref

if TYPE_CHECKING:
    from rich.table import Table

    from artifacts.registry import AdapterVersion, Registry

SHAPE_HELP = (
    "deepseek-llm-7b, qwen2.5-0.5b, qwen2.5-1.5b, llama-3.2-1b, tiny-llama, tiny-mistral, "
    "tiny-qwen2, tiny-qwen3"
)

adapters_app = typer.Typer(
    help="""Look at and change the stored adapter versions.

    A version is written name@3 and never changes. An alias such as name@champion points at one
    version and can be moved; name@latest is always the newest. A bare name means its champion.
    """,
    no_args_is_help=True,
)

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="where versions are kept [env LORALOOP_HOME, else ./.loraloop]"),
]
RefArgument = Annotated[str, typer.Argument(metavar="NAME[@VERSION|@ALIAS]", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


@adapters_app.command("list")
def list_adapters(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="only this adapter's versions")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """All versions with their aliases, held-out losses and sizes."""
    with _one_line_errors(), _registry(home) as registry:
        versions = [each for each in registry.list() if name in (None, each.name)]
        rows = [_summary(registry, version) for version in versions]
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        elif rows:
            _print(_versions_table(rows))
        else:
            typer.echo(
                f"no adapter in {registry.home.root} yet: `loraloop train CONFIG.yaml` makes one, "
                "`loraloop adapters import FOLDER --name NAME` takes one in"
            )


@adapters_app.command()
def show(ref: RefArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Everything that is recorded about one version."""
    with _one_line_errors(), _registry(home) as registry:
        version = registry.resolve(parse_ref(ref))
        record = version.manifest.model_dump(mode="json") | {
            "id": version.id,
            "path": str(version.path),
            "gate": version.manifest.gate,
            "aliases": _aliases_of(registry, version),
        }
        if as_json:
            typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
        else:
            _print(_record_table(record))


@adapters_app.command("import")
def import_folder(
    folder: Annotated[Path, typer.Argument(help="a PEFT LoRA folder", show_default=False)],
    name: Annotated[str, typer.Option(help="the adapter's name here", show_default=False)],
    base: Annotated[
        str | None, typer.Option(help="folder or hub id of its base [the embedded base]")
    ] = None,
    max_rank: Annotated[int, typer.Option(min=1, help="refuse adapters of a higher rank")] = 64,
    home: HomeOption = None,
) -> None:
    """Take in an adapter made elsewhere as the next version of NAME.

    Any target list, rsLoRA, rank and alpha patterns; safetensors only. What cannot be served as
    PEFT would run it (DoRA, modules_to_save, …) is refused with the reason.
    """
    from artifacts.base import open_base
    from artifacts.importing import import_adapter

    with _one_line_errors(), _registry(home) as registry:
        version = import_adapter(registry, folder, name, open_base(base), max_rank=max_rank)
        typer.echo(f"{version.id} from {folder} (content {version.content_hash[:12]})")


@adapters_app.command()
def alias(
    ref: Annotated[str, typer.Argument(metavar="NAME@ALIAS", show_default=False)],
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", help="the version to point at", min=1)
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="forget the alias instead")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="also a version that failed its gate; it is recorded")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Point an alias at a version: `alias support@champion 3` serves version 3 as `support`."""
    with _one_line_errors(), _registry(home) as registry:
        parsed = parse_ref(ref)
        if parsed.alias is None:
            raise InvalidName(f"{ref!r} names no alias; write it as NAME@ALIAS, such as a@champion")
        if delete == (version is not None):
            raise InvalidName(f"give either the version that {ref} shall point at, or --delete")
        if version is None:
            registry.delete_alias(parsed.name, parsed.alias)
            typer.echo(f"{ref} is gone")
            return
        by = f"cli:{getpass.getuser()}" if force else None
        before = registry.set_alias(parsed.name, parsed.alias, version, forced_by=by)
        was = f", was {parsed.name}@{before}" if before is not None else ""
        typer.echo(f"{ref} is now {parsed.name}@{version}{was}")


@adapters_app.command()
def remove(
    ref: Annotated[str, typer.Argument(metavar="NAME@VERSION", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="also delete aliases to it")] = False,
    home: HomeOption = None,
) -> None:
    """Delete one version for good. Its number is never used again."""
    with _one_line_errors(), _registry(home) as registry:
        name, version = _explicit(ref)
        registry.remove(name, version, force=force)
        typer.echo(f"{ref} is gone")


@adapters_app.command()
def verify(
    ref: Annotated[
        str | None, typer.Argument(metavar="[NAME[@VERSION|@ALIAS]]", help="all if left out")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Hash the stored files again and compare them with the record."""
    with _one_line_errors(), _registry(home) as registry:
        versions = registry.list() if ref is None else [registry.resolve(parse_ref(ref))]
        damaged = [version for version in versions if not _is_as_recorded(registry, version)]
        if damaged:
            raise typer.Exit(1)


def init_base_command(
    shape: Annotated[str, typer.Option(help=SHAPE_HELP, show_default=False)],
    output: Annotated[Path, typer.Option(help="a new folder", show_default=False)],
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder with a tokenizer [the embedded base's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "bfloat16",
) -> None:
    """Write a base with random weights at a real shape, for measurements and tests.

    It loads, trains and serves like the real one and answers nonsense.
    """
    from artifacts.base import open_base
    from artifacts.init_base import init_base

    with _one_line_errors():
        folder = init_base(shape, output, tokenizer, seed, dtype)
        size = sum(path.stat().st_size for path in folder.iterdir())
        typer.echo(f"{folder}: {shape}, {size / 1e6:,.1f} MB, {open_base(folder).fingerprint[:12]}")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except LoraloopError as error:
        _print_error(error)
        raise typer.Exit(1) from error


def _print_error(error: LoraloopError) -> None:
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)


def _is_as_recorded(registry: Registry, version: AdapterVersion) -> bool:
    try:
        registry.verify(version.name, version.version)
    except Corrupt as error:
        _print_error(error)
        return False
    typer.echo(f"{version.id} is as recorded")
    return True


@contextmanager
def _registry(home: Path | None) -> Iterator[Registry]:
    from artifacts.database import Database
    from artifacts.registry import Registry

    place = Home.open(home)
    database = Database(place.database_url)
    try:
        yield Registry(place, database)
    finally:
        database.close()


def _explicit(ref: str) -> tuple[str, int]:
    parsed = parse_ref(ref)
    if parsed.version is None:
        raise InvalidName(f"{ref!r} names no version; write it as NAME@VERSION, such as a@1")
    return parsed.name, parsed.version


def _aliases_of(registry: Registry, version: AdapterVersion) -> list[str]:
    stored = registry.aliases(version.name)
    names = [alias for alias, number in stored.items() if number == version.version]
    newest = registry.catalog().latest(version.name)
    return [*names, LATEST] if newest == version else names


def _summary(registry: Registry, version: AdapterVersion) -> dict[str, Any]:
    manifest = version.manifest
    keys = {"base_id", "origin", "rank", "num_parameters", "num_bytes", "metrics", "created_at"}
    return {
        "id": version.id,
        "aliases": _aliases_of(registry, version),
        **manifest.model_dump(mode="json", include=keys),
        "is_verified_base": manifest.base_fingerprint is not None,
        "content_hash": version.content_hash,
        "gate": manifest.gate,
        "failed_gates": [gate.name for gate in manifest.failed_gates],
    }


def _versions_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("version", "aliases", "gate", "base", "origin")
    for heading in ("rank", "loss, base → adapter", "MB"):
        table.add_column(heading, justify="right")
    table.add_column("created")
    for row in rows:
        metrics = row["metrics"]
        losses = [metrics.get(key) for key in ("base_loss", "adapter_loss")]
        known = [f"{loss:.3f}" for loss in losses if isinstance(loss, float)]
        table.add_row(
            row["id"],
            " ".join(row["aliases"]),
            ": ".join(filter(None, (row["gate"], ", ".join(row["failed_gates"])))),
            row["base_id"] + ("" if row["is_verified_base"] else " (unverified)"),
            row["origin"],
            str(row["rank"]),
            " → ".join(known) if len(known) == 2 else "",
            f"{row['num_bytes'] / 1e6:.2f}",
            row["created_at"][:16].replace("T", " "),
        )
    return table


def _record_table(record: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key in ("id", *sorted(record.keys() - {"id"})):
        value = record[key]
        if key == "gates":
            value = "\n".join(_verdict(gate) for gate in value)
        if isinstance(value, dict | list):
            value = json.dumps(value, indent=1, ensure_ascii=False) if value else ""
        table.add_row(key, "unknown (made elsewhere)" if value is None else str(value))
    return table


def _verdict(gate: dict[str, Any]) -> str:
    words = {True: "passed", False: "failed", None: "not measured"}
    return f"{words[gate['passed']]}: {GateResult(**gate)}"


def _print(table: Table) -> None:
    """As wide as the terminal; not cut when piped, where a program may read it."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, width=200)
    console.print(table)

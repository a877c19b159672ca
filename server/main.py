"""``loraloop serve``: check, load, listen. What is wrong is said in one line before it is loaded.

Heavy imports stand inside the functions: a wrong option or a taken port is answered at once.
"""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from artifacts.home import Home
    from server.settings import Settings
    from server.state import Server

BACKLOG = 2048


class CannotStart(Exception):
    """One line for the operator: what is wrong and what to do."""


def serve(
    model: Annotated[
        str | None, typer.Option(help="folder or hub id; the embedded base if left out")
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port to listen on [8000]; 0: any free")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto|float32|bfloat16|float16 [auto: the checkpoint's]")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="none|nf4|int8 [none]")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="register and load a PEFT folder; repeatable"),
    ] = None,
) -> None:
    """Serve a base and its adapters over OpenAI's API. All else is set by LORALOOP_* variables."""
    options = {"model": model, "host": host, "port": port, "dtype": dtype}
    try:
        run({**options, "quantization": quantization}, adapter or [])
    except CannotStart as error:
        typer.secho(f"loraloop serve: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


def run(options: dict[str, Any], adapters: list[str]) -> None:
    """Serve until stopped. Raises CannotStart."""
    from artifacts.errors import LoraloopError
    from artifacts.home import Home
    from artifacts.storage import storage_errors
    from server.engine.errors import EngineError
    from server.home_lock import HomeLock
    from server.settings import read_settings

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        settings = read_settings(options)
        folders = [parse_folder(text) for text in adapters]
        listener = bind(settings.host, settings.port)
        home = Home.open(settings.home)
        with storage_errors(home.root), HomeLock(home.root):
            _serve(_load(settings, home, folders), listener)
    except (LoraloopError, EngineError) as error:
        raise CannotStart(" ".join(str(error).split())) from error


def parse_folder(text: str) -> tuple[str, Path]:
    """``name=path`` of ``--adapter``. Raises CannotStart, InvalidName."""
    from artifacts.names import check_name

    name, equals, path = text.partition("=")
    if not equals or not path:
        raise CannotStart(f"--adapter {text!r}: write name=path")
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise CannotStart(f"--adapter {text!r}: there is no folder {folder}")
    return check_name(name), folder


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that nobody else can take the port while the model loads.

    Raises CannotStart if somebody has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host} port {port}: {error.strerror or error}. Stop what uses it, "
            "or choose another with --port (0 takes any free one)."
        ) from error
    return listener


def _load(settings: Settings, home: Home, folders: list[tuple[str, Path]]) -> Server:
    from server.assembly import build_server

    server = build_server(settings, home, folders)
    for version in server.preload:
        typer.echo(f"adapter: {version.id}")
    return server


def _serve(server: Server, listener: socket.socket) -> None:
    import uvicorn
    from sse_starlette.sse import AppStatus

    from server.app import create_app
    from server.connection import HttpProtocol, limit_connections
    from server.draining import DrainingServer

    AppStatus.enable_automatic_graceful_drain = False  # it would cut streams at the first signal
    app = create_app(server)
    limit_connections(listener, server.settings.stall_s)
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        backlog=BACKLOG,
    )

    def say_ready() -> None:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        what = f"{server.base.id} with {_what_computes(server)}"
        typer.echo(
            f"ready: http://{shown}:{port}/v1 serves {what} "
            f"({time.time() - _process_started_at():.1f} s after start)"
        )
        _warn_if_open(server.settings, host)

    DrainingServer(app, config, server, say_ready).run(sockets=[listener])


def _what_computes(server: Server) -> str:
    if server.base.export is None:
        return f"{server.engine.kernels} kernels"
    return f"{server.base.export.format}, whose proof is {server.base.proof}"


def _process_started_at() -> float:
    import psutil

    return psutil.Process().create_time()


def _warn_if_open(settings: Settings, host: str) -> None:
    if host not in ("127.0.0.1", "::1") and not settings.api_keys:
        typer.secho("anyone who reaches this port can chat: LORALOOP_API_KEYS is not set", err=True)

"""Settings in, a whole Server out: the one place that knows how the parts fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from artifacts.adapter import read_adapter
from artifacts.base import Base, open_base
from artifacts.chat import ChatRenderer
from artifacts.database import Database
from artifacts.home import Home
from artifacts.importing import import_adapter
from artifacts.registry import AdapterVersion, Registry
from server.control import ControlLimits, TrainingSetup, build_control
from server.engine.load import EngineLimits, build_engine
from server.engine.memory import memory_bound
from server.exports import warn_of_proof
from server.reporting.telemetry import Telemetry
from server.settings import Settings
from server.state import Server

Named = tuple[str, Path]  # --adapter
REMEDIES = "Take --quantization nf4, a smaller base, or less LORALOOP_KV_CACHE_TOKENS."


def build_server(settings: Settings, home: Home, folders: Sequence[Named] = ()) -> Server:
    """Everything but a socket; nothing is started yet.

    ``folders`` are PEFT folders to register and to load at the start: whatever is wrong with them
    is said before the base is read. Raises LoraloopError or EngineError.
    """
    database = Database(settings.database_url or home.database_url)
    registry = Registry(home, database)
    database.check()
    registry.recover()
    base = open_base(settings.model)
    warn_of_proof(base)
    preload = [_register(registry, base, settings.max_rank, named) for named in folders]
    with memory_bound(f"loading {base.id}", REMEDIES):
        engine = build_engine(
            base,
            dtype=settings.dtype,
            kernels=settings.kernels,
            quantization=settings.quantization,
            limits=_engine_limits(settings),
        )
    telemetry = Telemetry()
    control = build_control(
        registry,
        base,
        engine,
        ControlLimits.of(settings),
        TrainingSetup(settings.model, telemetry.first_tokens.p90_s),
    )
    server = Server(
        settings=settings,
        home=home,
        database=database,
        registry=registry,
        base=base,
        renderer=ChatRenderer(base.tokenizer),
        engine=engine,
        telemetry=telemetry,
        preload=preload,
        control=control,
        **control.services(),
    )
    server.grammars.prepare()
    return server


def _register(registry: Registry, base: Base, max_rank: int, named: Named) -> AdapterVersion:
    """The version of the name that holds the PEFT folder's weights: a new one, unless an earlier
    start registered the same. Raises InvalidName, AdapterRejected."""
    name, folder = named
    content_hash = read_adapter(folder).content_hash
    for version in registry.list():
        if (version.name, version.content_hash) == (name, content_hash):
            return version
    return import_adapter(registry, folder, name, base, max_rank=max_rank)


def _engine_limits(settings: Settings) -> EngineLimits:
    names = [field.name for field in fields(EngineLimits)]
    return EngineLimits(**{name: getattr(settings, name) for name in names})

"""The tiny base as an export that takes adapters, and as one that has its own inside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from artifacts.base import open_base
from artifacts.exported.record import (
    RECORD_FILE,
    ExportRecord,
    export_fingerprint,
    file_entries,
)
from artifacts.home import Home
from artifacts.models import copy_without_weights
from artifacts.safe_write import write_json
from export.forms.form import Options, Workshop
from export.source import open_source
from server.app import create_app
from server.assembly import build_server
from server.settings import Settings
from server.state import Server
from tests.export.conftest import adapter
from tests.server.conftest import Live, serving
from tests.training.conftest import tiny_base

__all__ = ["adapter", "tiny_base"]


@pytest.fixture(scope="session")
def open_folder(tiny_base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``onnx-adapters``, without a proof."""
    from export.forms.onnx_adapters import ADAPTERS

    source = open_source(str(adapter), str(tiny_base))
    folder = tmp_path_factory.mktemp("exports") / "tiny-open"
    folder.mkdir()
    copy_without_weights(source.base, folder)
    workshop = Workshop(source, lambda *_: None)
    ADAPTERS.write(workshop, Options(), folder)
    write_record(folder, "onnx-adapters", tiny_base)
    return folder


@pytest.fixture(scope="session")
def closed_folder(open_folder: Path, tiny_base: Path) -> Path:
    """``onnx``: the same graph, and nobody may bring an adapter."""
    folder = open_folder.parent / "tiny-closed"
    shutil.copytree(open_folder, folder)
    write_record(folder, "onnx", tiny_base)
    return folder


def write_record(folder: Path, form: str, base: Path) -> ExportRecord:
    files, opened = file_entries(folder), open_base(base)
    record = ExportRecord(
        format=form,
        adapter_id="random",
        adapter_hash="a" * 64,
        adapter_source="random",
        base_id=opened.id,
        base_fingerprint=opened.fingerprint,
        base_source=str(base),
        quantization="none",
        merge="original",
        fingerprint=export_fingerprint(form, files),
        options={},
        settings={},
        versions={},
        created_at="2026-01-01T00:00:00+00:00",
        files=files,
    )
    write_json(folder / RECORD_FILE, record.model_dump(mode="json"))
    return record


@contextmanager
def served(
    model: Path, home: Path, folders: list[tuple[str, Path]] | None = None, **given: Any
) -> Iterator[tuple[Live, Server]]:
    """The whole server behind a socket."""
    settings = Settings(home=home, model=str(model), num_threads=1, **given)
    server = build_server(settings, Home.open(home), folders or [])
    try:
        with serving(create_app(server)) as live:
            yield live, server
    finally:
        server.database.close()

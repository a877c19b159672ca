"""An export on disk, checked and made computable. What each form needs is imported when wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import InvalidInput
from artifacts.exported.formats import Format, format_named
from artifacts.exported.record import check_files, read_record

if TYPE_CHECKING:
    from artifacts.exported.graph import ExportedModel, Loader


def open_export(folder: Path, *, num_threads: int | None = None) -> ExportedModel:
    """The computable model of a folder that ``loraloop export`` wrote.

    Raises Corrupt for files that are gone or of another size, and InvalidInput for a form that
    nothing here runs or whose library is not installed.
    """
    record = read_record(folder)
    check_files(folder, record, is_hashed=False)
    return _loader(format_named(record.format))(folder, num_threads=num_threads)


def _loader(form: Format) -> Loader:
    if form.runtime == "onnx":
        from artifacts.exported.onnx_model import load_onnx

        return load_onnx
    if form.runtime == "torchscript":
        from artifacts.exported.torchscript_model import load_torchscript

        return load_torchscript
    if form.runtime in ("transformers", "engine") or form.name.startswith("gguf"):
        from artifacts.exported.transformers_model import load_transformers

        return load_transformers
    raise InvalidInput(f"format {form.name} is no model: it needs its base", param="model")

"""What an export says about itself: ``export.json``. Import is cheap: no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.errors import Corrupt, NotFound
from artifacts.manifest import CARD_FILE
from artifacts.safe_write import sha256_file

RECORD_FILE = "export.json"
PROOF_FILE = "proof.json"
_UNHASHED = {RECORD_FILE, PROOF_FILE, CARD_FILE}

# What of the base the adapter's update is added to; none: it stays beside the base.
MergeMode = Literal["none", "original", "dequantized"]


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class ExportRecord(BaseModel):
    """Made of what, how, and every file of it but record, proof and card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    adapter_id: str  # support@3, or the PEFT folder's name
    adapter_hash: str
    adapter_source: str  # the adapter's id, or its folder's whole path
    base_id: str
    base_fingerprint: str
    base_source: str | None  # as it was asked for; None: the embedded one
    quantization: Literal["none", "nf4", "int8"]  # of the base while the adapter was trained
    merge: MergeMode
    fingerprint: str  # of this export, where it is served as a base
    options: dict[str, Any]  # what was asked of the form: block_size, …
    settings: dict[str, Any]  # what the form chose: opset, which modules stayed wider, …
    versions: dict[str, str]  # of the libraries that made it
    created_at: str  # ISO 8601, UTC
    files: dict[str, FileEntry]  # by relative path

    def is_same_work(self, other: ExportRecord) -> bool:
        """Whether both were asked for the same thing, whenever and with whatever libraries."""
        keys = ("format", "adapter_hash", "base_fingerprint", "merge", "options")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


def is_export(folder: Path) -> bool:
    return (folder / RECORD_FILE).is_file()


def read_record(folder: Path) -> ExportRecord:
    """Raises NotFound where the folder has no record, Corrupt where it cannot be read."""
    path = folder / RECORD_FILE
    if not path.is_file():
        raise NotFound(
            f"{folder} is no export: it has no {RECORD_FILE}; give a folder that `loraloop export` "
            "wrote"
        )
    try:
        return ExportRecord.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise Corrupt(
            f"{path} is no readable record of an export ({type(error).__name__}); export it again"
        ) from error


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Every file below ``folder`` but record, proof and card, hashed. Raises OSError."""
    return {
        str(path.relative_to(folder)): FileEntry(
            num_bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _UNHASHED
    }


def check_files(folder: Path, record: ExportRecord, *, is_hashed: bool = True) -> None:
    """Corrupt for a file that is gone or has changed; only by its size where not hashed."""
    for name, entry in record.files.items():
        path = folder / name
        if not path.is_file():
            raise Corrupt(f"{path} is gone; export {record.adapter_id} again")
        is_changed = path.stat().st_size != entry.num_bytes
        if is_changed or (is_hashed and sha256_file(path) != entry.sha256):
            raise Corrupt(f"the bytes of {path} have changed; export {record.adapter_id} again")


def export_fingerprint(form: str, files: dict[str, FileEntry]) -> str:
    """What tells this export from any other base: SHA-256 of its format and its files' hashes."""
    named = {name: entry.sha256 for name, entry in files.items()}
    text = json.dumps(["loraloop-export-1", form, named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

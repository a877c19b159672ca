"""Whole models of our own: numbered folders ``models/<name>@<n>`` that open like any base.

They are not adapters: no alias points at them and the registry does not know them. A folder is
there wholly or not at all.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from artifacts.base import INDEX_FILE, Base
from artifacts.exported.record import PROOF_FILE, RECORD_FILE
from artifacts.home import Home
from artifacts.manifest import CARD_FILE, CARD_MARK, MANIFEST_FILE, Metric
from artifacts.names import VERSION, check_name
from artifacts.safe_write import publish_folder, sha256_file, write_bytes, write_json
from artifacts.storage import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

MAX_SHARD_BYTES = 5 * 10**9
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}
_OWN = {
    INDEX_FILE,
    MANIFEST_FILE,
    CARD_FILE,
    RECORD_FILE,
    PROOF_FILE,
    "pytorch_model.bin.index.json",
}


class ModelDraft(BaseModel):
    """Everything about a new model but its name, number, time and files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str  # as artifacts.base sees it
    base_id: str  # what it was made from
    base_fingerprint: str
    template_hash: str | None
    data_hash: str | None = None
    num_parameters: int
    settings: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}


class ModelManifest(ModelDraft):
    """``manifest.json`` of a published model."""

    name: str
    version: int
    created_at: str  # ISO 8601, UTC
    files: dict[str, str]  # relative path → SHA-256, without manifest and card

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class PublishedModel:
    path: Path
    manifest: ModelManifest


def write_model(folder: Path, base: Base, tensors: Mapping[str, torch.Tensor]) -> None:
    """``tensors`` as safetensors beside everything else of ``base``: configuration, tokenizer,
    chat template, licence. Raises StorageError.
    """
    from huggingface_hub import save_torch_state_dict

    with storage_errors(folder):
        copy_without_weights(base, folder)
        save_torch_state_dict(
            dict(tensors), folder, max_shard_size=MAX_SHARD_BYTES, metadata={"format": "pt"}
        )


def copy_without_weights(base: Base, folder: Path) -> None:
    """Everything of ``base`` but its weights and what describes them. Raises OSError."""
    for path in sorted(base.path.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS and path.name not in _OWN:
            shutil.copyfile(path, folder / path.name)


def publish_model(home: Home, name: str, folder: Path, draft: ModelDraft) -> PublishedModel:
    """Moves the finished folder, which lies on the home's disk, to its number.

    Raises InvalidName and StorageError; then nothing is published.
    """
    check_name(name)
    with storage_errors(home.root):
        home.models.mkdir(exist_ok=True)
        files = {str(path.relative_to(folder)): sha256_file(path)
                 for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip
        while True:
            manifest = ModelManifest(
                **draft.model_dump(),
                name=name,
                version=1 + _highest(home, name),
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                files=files,
            )
            write_bytes(folder / CARD_FILE, model_card(manifest).encode())
            write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))
            final = home.models / manifest.id
            try:
                publish_folder(folder, final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                continue  # another process took the number
            return PublishedModel(final, manifest)


def model_card(manifest: ModelManifest) -> str:
    """Markdown for people who find the folder."""
    tables = [("Held-out metrics", manifest.metrics), ("Settings", manifest.settings)]
    parts = [
        CARD_MARK,
        f"# {manifest.id}",
        f"A whole model made from `{manifest.base_id}` on {manifest.created_at}. Its folder is a "
        f"base: `loraloop serve --model {manifest.id}`.",
        f"- fingerprint: `{manifest.fingerprint}`",
        f"- made from: `{manifest.base_fingerprint}`",
        f"- chat template: `{manifest.template_hash or 'none'}`",
        f"- training rows: `{manifest.data_hash or 'unknown'}`",
        f"- {manifest.num_parameters:,} parameters",
    ]
    for title, values in tables:
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in values.items())
        parts.append(f"\n## {title}\n| | |\n|---|---|\n{rows}")
    return "\n".join(parts) + "\n"


def _highest(home: Home, name: str) -> int:
    found = (path.name.removeprefix(f"{name}@") for path in home.models.glob(f"{name}@*"))
    return max((int(number) for number in found if VERSION.fullmatch(number)), default=0)

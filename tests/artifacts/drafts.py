"""Folders and drafts that the registry accepts, without any weights."""

from __future__ import annotations

from pathlib import Path

from artifacts.manifest import ManifestDraft

DRAFT = ManifestDraft(
    content_hash="c" * 64,
    base_id="tiny",
    origin="trained",
    rank=4,
    alpha=8.0,
    target_modules=("q_proj",),
    num_parameters=12,
    num_bytes=24,
    metrics={"base_loss": 3.0, "adapter_loss": 2.0},
)


def adapter_folder(folder: Path, content: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(content)
    return folder

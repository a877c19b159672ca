"""Adapters of the latest checkpoints, kept where a server can answer with them.

The run's own checkpoints go when it ends, and hold what only a resume needs. These are plain PEFT
folders with a record beside them; they have passed no gate.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from artifacts.adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from artifacts.base import Base
from artifacts.errors import AdapterRejected
from artifacts.manifest import CHECKPOINT_FILE, ManifestDraft
from artifacts.safe_write import publish_folder, write_bytes
from training.config import TrainingConfig


class KeptCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Copies each checkpoint's adapter to ``folder/step-N``; the last ``num_kept`` stay."""

    def __init__(self, folder: Path, config: TrainingConfig, base: Base, data_hash: str) -> None:
        self._folder = folder
        self._num_kept = config.kept_checkpoints
        self._name = config.name
        self._base = base
        self._data_hash = data_hash

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        source = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        metrics = {"validation_loss": losses[-1]} if losses else {}
        try:
            draft = self._draft(source, state.global_step, metrics)
        except AdapterRejected:  # it has learned nothing yet, or diverged: nobody could load it
            return
        self._keep(source, state.global_step, draft)
        for old in kept_steps(self._folder)[: -self._num_kept]:
            shutil.rmtree(self._folder / f"step-{old}")

    def _keep(self, source: Path, step: int, draft: ManifestDraft) -> None:
        part, final = self._folder / f".step-{step}", self._folder / f"step-{step}"
        for path in (part, final):  # of a run that was killed, or that repeats this step
            shutil.rmtree(path, ignore_errors=True)
        part.mkdir(parents=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(source / name, part / name)
        write_bytes(part / CHECKPOINT_FILE, draft.model_dump_json().encode())
        publish_folder(part, final)

    def _draft(self, source: Path, step: int, metrics: dict[str, float]) -> ManifestDraft:
        weights, base = read_adapter(source), self._base
        return ManifestDraft(
            content_hash=weights.content_hash,
            base_id=base.id,
            base_fingerprint=base.fingerprint,
            template_hash=base.template_hash,
            data_hash=self._data_hash,
            origin="trained",
            rank=weights.rank,
            alpha=weights.alpha,
            target_modules=weights.target_modules,
            num_parameters=weights.num_parameters,
            num_bytes=weights.num_bytes,
            settings={"name": self._name, "step": step},
            metrics=dict(metrics),
        )


def kept_steps(folder: Path) -> list[int]:
    """Steps whose adapter lies in ``folder``, ascending."""
    names = (path.name for path in folder.glob("step-*"))
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())

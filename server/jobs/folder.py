"""A job's folder ``LORALOOP_HOME/jobs/<job id>``: what lies where, and what may stay.

config.yaml      what the child was asked
progress.jsonl   what it said, line by line, over all its runs
train.log        its stderr
work/            checkpoints and TensorBoard logs, training's own
work/checkpoints/step-N   adapters of the latest checkpoints, which clients may ask
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from artifacts.safe_write import write_bytes


class JobFolder:
    """Paths of one job; everything blocks on the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.progress = root / "progress.jsonl"
        self.log = root / "train.log"
        self.work = root / "work"
        self._checkpoints = self.work / "checkpoints"

    def prepare(self, config: dict[str, Any]) -> None:
        """Make the folder and write the configuration of the next run."""
        self.root.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
        write_bytes(self.config, text.encode())

    def checkpoint(self, step: int) -> Path:
        """The adapter of a checkpoint that is kept, if it is."""
        return self._checkpoints / f"step-{step}"

    def kept_steps(self) -> list[int]:
        """Steps of the checkpoints that can be asked."""
        names = (path.name for path in self._checkpoints.glob("step-*"))
        return [int(name[5:]) for name in names if name[5:].isdigit()]

    def drop_checkpoint(self, step: int) -> bool:
        """Whether there was one to remove. Requests that have begun end on what is in memory."""
        path = self.checkpoint(step)
        if not path.is_dir():
            return False
        shutil.rmtree(path)
        return True

    def keep_logs_only(self) -> None:
        """What a failed or cancelled job leaves: progress and log, no checkpoint."""
        if self.work.exists():
            shutil.rmtree(self.work)
        self.config.unlink(missing_ok=True)

"""Keys of evaluation, checkpoints, reports and gates. All counts are in optimizer steps.

About eight evaluations per run, stop after three without improvement, and the best of them is what
gets published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from training.keys.fields import Keys, Positive


class WatchingKeys(Keys):
    """How the run is watched and judged."""

    eval_steps: Positive | Literal["epoch"] | None = None  # None: about eight evaluations per run
    early_stopping_patience: Positive | None = 3  # without improvement; None: off
    early_stopping_unit: Literal["evaluations", "steps", "epochs"] = "evaluations"
    early_stopping_threshold: float = Field(default=0.0, ge=0)  # an improvement is larger than this
    save_steps: Positive | None = None  # checkpoints besides the one at every evaluation
    # adapters of the latest evaluations, kept as PEFT folders in <output_dir>/checkpoints
    kept_checkpoints: int = Field(default=0, ge=0, le=100)
    logging_steps: Positive | None = None  # None: about a hundred progress lines per run
    # true: from the last checkpoint in output_dir, if there is one; overwrite: deletes them
    resume: bool | Literal["overwrite"] | Path = False
    copy_to_output_dir: bool = False  # the published adapter lies there too, as a PEFT folder
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb", "swanlab"], ...] = ("tensorboard",)
    auto_remedy: bool = False  # apply the live doctor's safe remedies
    gate: Literal["default", "strict"] = "default"
    suite: Path | None = None  # evaluation suite whose metrics the gate and the model card take

"""Where a run's curves go besides our own events. TensorBoard's lie in the run's logs."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.errors import InvalidConfig

_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb",
             "swanlab": "swanlab"}  # fmt: skip


def check_trackers(config: TrainingConfig) -> None:
    """Raises InvalidConfig for a tracker whose package is not installed. Imports none of them."""
    for tracker in config.trackers:
        if find_spec(_PACKAGES[tracker]) is None:
            raise InvalidConfig(
                f"trackers names {tracker!r}, which is not installed; "
                f"pip install 'loraloop[{tracker}]', or take it out of the list",
                param="trackers",
            )


def tracker_callbacks(config: TrainingConfig, logs: Path, step: int) -> list[Any]:
    """transformers' own callbacks; TensorBoard's curves of steps after ``step`` are drawn anew.

    MLflow, W&B and SwanLab take project, server and key from their own environment variables.
    """
    from transformers.integrations import MLflowCallback, SwanLabCallback, WandbCallback

    others = {"mlflow": MLflowCallback, "wandb": WandbCallback, "swanlab": SwanLabCallback}
    # Beside the run's other logs, unless the operator has a place of their own.
    os.environ.setdefault("MLFLOW_TRACKING_URI", (logs / "mlflow").as_uri())
    os.environ.setdefault("WANDB_DIR", str(logs))
    return [
        _tensorboard(logs, step) if tracker == "tensorboard" else others[tracker]()
        for tracker in config.trackers
    ]


def _tensorboard(logs: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(logs), purge_step=step + 1))

"""The remedies that ``auto_remedy`` may apply by itself: those that leave the outcome as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from training.config import TrainingConfig
from training.errors import FailureCode, failure_code
from training.events import Reporter
from training.inputs import Inputs

Result = TypeVar("Result")


def with_remedies(run: Callable[[Inputs], Result], inputs: Inputs, reporter: Reporter) -> Result:
    """Calls ``run`` until it ends, or fails in a way for which no safe remedy is left.

    A repeated run goes on from its last checkpoint: its steps see the same rows as before.
    """
    while True:
        try:
            return run(inputs)
        except Exception as error:
            code = failure_code(error)
            changes = safe_remedy(inputs.config, code)
            if changes is None:
                raise
        gc.collect()  # the failed run's model and batches; its traceback has gone with ``error``
        reporter.emit({"event": "remedy", "symptom": code, "changes": changes})
        config = inputs.config.model_copy(update={**changes, "resume": True})
        inputs = replace(inputs, config=config)


def safe_remedy(config: TrainingConfig, code: FailureCode) -> dict[str, Any] | None:
    """Keys to change before the run goes on; None if nothing safe is left or nothing was allowed.

    Out of memory: fewer rows at a time with as many more batches per step, then activations that
    are computed twice instead of kept. Packed batches are cut by tokens, so that smaller ones would
    be another run, which no checkpoint fits: there only the activations are left.
    """
    if not config.auto_remedy or code != "out_of_memory":
        return None
    rows = config.batch_size
    if rows > 1 and not config.packing:
        fewer = next(n for n in range(rows // 2, 0, -1) if rows % n == 0)
        batches = config.gradient_accumulation * (rows // fewer)
        return {"batch_size": fewer, "gradient_accumulation": batches}
    if not config.gradient_checkpointing:
        return {"gradient_checkpointing": True}
    return None

"""The outermost frame of a training process: one run from configuration to exit code.

Every end is told exactly once: published (0), failed (1), interrupted (3); failed for want of disk
or database (4), which a resumed run may outlive: its checkpoints stay; published, but a gate failed
(5), so that the version answers under its number only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from artifacts.errors import InvalidData
from artifacts.home import Home
from training.config import TrainingConfig, parse_config, read_settings
from training.doctor.keep import keep_report
from training.errors import Interrupted, InvalidConfig, failure_code, storage_problem
from training.events import JsonLines, ProgressBar, Reporter, claim_stdout
from training.inputs import load_inputs
from training.outcome import Outcome
from training.remedy import with_remedies
from training.run_folder import RunFolder
from training.signals import StopRequest
from training.stages import parse_stages, run_stages

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 3
EXIT_STORAGE = 4
EXIT_UNFIT = 5


def main(config: Path, overrides: Sequence[str], progress: Literal["json", "bar"]) -> int:
    """Trains what ``config`` asks for; returns the exit code."""
    # Before torch is loaded: OpenMP threads that wait must sleep. Spinning ones took the cores from
    # everybody, the run included: 410 s instead of 28 s beside one busy process on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's greetings on stderr
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # says that a kernel is not there
    stop = StopRequest()
    reporter = _reporter(progress, stop)
    try:
        with stop.installed():
            return _run_and_tell(config, overrides, reporter, stop)
    finally:
        reporter.close()


def _reporter(progress: Literal["json", "bar"], stop: StopRequest) -> Reporter:
    if progress == "json":
        return JsonLines(claim_stdout(), lost=stop.ask)
    from rich.console import Console

    return ProgressBar(Console(stderr=True))


def _run_and_tell(
    config: Path, overrides: Sequence[str], reporter: Reporter, stop: StopRequest
) -> int:
    try:
        settings, notes = read_settings(config, list(overrides))
        if notes:
            reporter.emit({"event": "noted", "notes": notes})
        if "stages" in settings:
            outcome = run_stages(parse_stages(settings), train_adapter, reporter, stop)
        else:
            outcome = train_adapter(parse_config(settings), reporter, stop)
    except Interrupted as interruption:
        stop.ignore()
        reporter.emit({"event": "interrupted", "step": interruption.step})
        return EXIT_INTERRUPTED
    except Exception as error:  # the loop boundary: a run never ends without saying why
        problem = storage_problem(error)
        with contextlib.suppress(OSError):  # a full disk takes no last words either
            _tell_failure(problem or error, reporter)
        return EXIT_FAILED if problem is None else EXIT_STORAGE
    return EXIT_OK if outcome.is_fit else EXIT_UNFIT


def train_adapter(config: TrainingConfig, reporter: Reporter, stop: StopRequest) -> Outcome:
    """load, train, evaluate, gate, publish; emits every event but those of a failure."""
    began = time.monotonic()
    home = Home.open(config.home)
    folder = RunFolder((config.output_dir or home.jobs / f"train-{config.name}").resolve())
    with folder.locked():
        try:
            inputs = load_inputs(config, home)
            keep_report(inputs.data.report, inputs.data.changes, folder.path)
            reporter.emit({"event": "data_checked", **inputs.data.report.totals()})
            from training.pipeline import run_pipeline  # torch, Trainer, PEFT: seconds

            outcome = with_remedies(
                lambda asked: run_pipeline(asked, folder, reporter, stop), inputs, reporter
            )
        except Interrupted as interruption:
            raise Interrupted(folder.last_step()) from interruption
        folder.discard_checkpoints()
        if config.copy_to_output_dir:
            folder.take_copy(outcome.path)
    reporter.emit({
        "event": "published",
        outcome.kind: outcome.id,
        **({"path": str(outcome.path)} if outcome.kind == "model" else {}),
        "content_hash": outcome.content_hash,
        "metrics": {k: v for k, v in outcome.metrics.items() if k in _PUBLISHED_METRICS},
        "gate": outcome.gate,
        "failed_gates": list(outcome.failed_gates),
        "duration_s": round(time.monotonic() - began, 2),
    })  # fmt: skip
    return outcome


def _tell_failure(error: Exception, reporter: Reporter) -> None:
    code = failure_code(error)
    message = str(error)
    if code == "internal":  # our mistake: the type says more than the text
        traceback.print_exc(file=sys.stderr)
        message = f"{type(error).__name__}: {error}"
    if code == "out_of_memory":
        message = (
            "the training process ran out of memory; lower batch_size or max_length, or set "
            f"gradient_checkpointing. {message}"
        ).strip()
    rows = error.rows if isinstance(error, InvalidData) else []
    reporter.emit({
        "event": "failed",
        "code": code,
        "message": message,
        "param": error.param if isinstance(error, InvalidConfig) else None,  # the key at fault
        "rows": [{"file": file, "line": line, "reason": reason} for file, line, reason in rows],
    })  # fmt: skip


_PUBLISHED_METRICS = ("base_loss", "start_loss", "adapter_loss", "model_loss",
                      "base_perplexity", "adapter_perplexity", "model_perplexity")  # fmt: skip

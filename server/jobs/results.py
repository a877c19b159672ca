"""A job's losses by step as CSV, as OpenAI's result files have them. Knows no HTTP."""

from __future__ import annotations

import csv
import io
from typing import Any

from server.jobs.folder import JobFolder
from server.jobs.progress import ProgressFile

COLUMNS = ("step", "train_loss", "valid_loss", "learning_rate")
_COLUMN_OF = {
    "progress": {"loss": "train_loss", "learning_rate": "learning_rate"},
    "evaluated": {"validation_loss": "valid_loss"},
}


def results_file_id(job_id: str) -> str:
    """The id of the job's result file, known without asking anybody."""
    return "file-" + job_id.removeprefix("ftjob-")


def results_csv(folder: JobFolder) -> bytes:
    """One line per step that training told of, over all runs of the job; the latest word counts."""
    found: dict[int, dict[str, Any]] = {}
    for event in ProgressFile(folder.progress).read_all():
        columns, step = _COLUMN_OF.get(str(event.get("event"))), event.get("step")
        if columns is not None and isinstance(step, int):
            told = {name: event[key] for key, name in columns.items() if event.get(key) is not None}
            found.setdefault(step, {"step": step}).update(told)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found[step] for step in sorted(found))
    return text.getvalue().encode()

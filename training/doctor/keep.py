"""What a run keeps of the doctor's work: the report, and what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifacts.safe_write import write_json
from training.doctor.edits import Change, write_changes
from training.doctor.report import Report

REPORT_FILE = "data_report.json"
CHANGES_FILE = "data_changes.jsonl"


def keep_report(report: Report, changes: Sequence[Change], folder: Path) -> None:
    """Writes both files; without changes the second is absent. Raises StorageError's causes."""
    write_json(folder / REPORT_FILE, report.as_dict())
    path = folder / CHANGES_FILE
    if changes:
        write_changes(changes, path)
    else:
        path.unlink(missing_ok=True)

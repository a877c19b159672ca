"""The uploaded files of one job: as training is told of them, and as people know them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from artifacts.errors import NotFound
from server.files import FileStore, StoredFile
from server.jobs.states import BAD_DATA, JobError
from server.tables import JobRow


class MissingFile(Exception):
    """A file of a job is gone; ``error`` is the job's."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.error = JobError(BAD_DATA, message, param)


@dataclass(frozen=True, slots=True)
class DataFiles:
    """What a job trains on and, if it brought rows of its own for that, validates on."""

    training: StoredFile
    validation: StoredFile | None

    @classmethod
    def of(cls, job: JobRow, files: FileStore) -> DataFiles:
        """Raises MissingFile, and StorageError."""
        validation = job.validation_file
        return cls(
            _find(files, "training_file", job.training_file),
            None if validation is None else _find(files, "validation_file", validation),
        )

    def config(self) -> dict[str, Any]:
        """Training's keys."""
        config: dict[str, Any] = {"data": [str(self.training.path)]}
        if self.validation is not None:
            config["validation_data"] = [str(self.validation.path)]
        return config

    def in_their_words(self, error: JobError) -> JobError:
        """``error`` with the names that people gave their files, and which file is at fault."""
        is_validation = self.validation is not None and _is_at_fault(self.validation, error)
        param = "validation_file" if is_validation and error.param else error.param
        return replace(
            error,
            message=self._renamed(error.message),
            param=param,
            rows=[{**row, "file": self._renamed(str(row.get("file")))} for row in error.rows],
        )

    def _renamed(self, text: str) -> str:
        for stored in (self.training, self.validation):
            if stored is not None:
                text = text.replace(str(stored.path), stored.filename)
                text = text.replace(stored.path.name, stored.filename)
        return text


def _is_at_fault(file: StoredFile, error: JobError) -> bool:
    """Whether the first row at fault is of ``file``, or nothing but the message names it."""
    if error.rows:
        return file.path.name in str(error.rows[0].get("file"))
    return file.path.name in error.message


def _find(files: FileStore, param: str, file_id: str) -> StoredFile:
    try:
        stored = files.get(file_id)
    except NotFound as error:
        raise MissingFile(param, str(error)) from error
    if not stored.path.exists():
        raise MissingFile(param, f"The bytes of {stored.id} are gone.")
    return stored

"""Errors of a training run and the one table that maps them to the codes of the ``failed`` event.

LoraloopError
├── InvalidInput
│   ├── InvalidConfig     a key, a value, or a combination that cannot be run
│   └── InvalidData       (artifacts.errors) rows that cannot be used
└── GateFailed            the adapter was trained but is not fit to be published
BaseException
└── Interrupted           SIGTERM or SIGINT; not an Exception, so that no library swallows it
"""

from __future__ import annotations

import os
import re
from typing import Literal

from artifacts.errors import InvalidData, InvalidInput, LoraloopError, NotFound, StorageError
from artifacts.storage import storage_error

FailureCode = Literal[
    "invalid_data", "invalid_config", "gate", "out_of_memory", "storage", "internal"
]


class InvalidConfig(InvalidInput):
    """A key, a value or a combination of values that cannot be run."""


class GateFailed(LoraloopError):
    """The adapter was trained but is not fit to be published; nothing was registered."""


class Interrupted(BaseException):
    """A signal asked this run to end; ``step`` is that of the last checkpoint, 0 without one."""

    def __init__(self, step: int = 0) -> None:
        super().__init__(f"interrupted; last checkpoint at step {step}")
        self.step = step


_CODES: tuple[tuple[type[BaseException], FailureCode], ...] = (  # the most specific type first
    (InvalidData, "invalid_data"),
    (InvalidInput, "invalid_config"),
    (NotFound, "invalid_config"),
    (GateFailed, "gate"),
    (MemoryError, "out_of_memory"),
    (StorageError, "storage"),
)


# torch's CPU allocator raises a bare RuntimeError: only the file it names tells it apart.
_CPU_ALLOCATOR = "alloc_cpu.cpp"


def failure_code(error: Exception) -> FailureCode:
    """The code that a program reads; torch is asked for its own type only once it is loaded."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "out_of_memory"
    if type(error) is RuntimeError and _CPU_ALLOCATOR in str(error):
        return "out_of_memory"
    return next((code for kind, code in _CODES if isinstance(error, kind)), "internal")


# What libraries written in other languages make of an error number: nothing else of it is left.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_WRITER = "inline_container.cc"


def storage_problem(error: Exception) -> StorageError | None:
    """The failure of a disk or database behind ``error``, which libraries wrap in their own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageError):
            return cause
        if isinstance(cause, OSError) and (problem := storage_error(cause)) is not None:
            return problem
        if type(cause).__name__ == "SafetensorError" and (found := _RUST_ERROR.search(str(cause))):
            number = int(found[1])
            return storage_error(OSError(number, os.strerror(number)), "the weights")
        if type(cause) is RuntimeError and _TORCH_WRITER in str(cause):
            return StorageError("a checkpoint could not be written; look for space on its disk")
        cause = cause.__cause__ or cause.__context__
    return None

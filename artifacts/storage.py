"""What a disk refuses, as errors of ours that name the place and the remedy. Knows no database.

Only failures of the storage itself are translated. That a file is missing, or is a folder, is for
the caller to judge.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from artifacts.errors import StorageBusy, StorageError, StorageFull, StorageReadOnly

Place = os.PathLike[str] | str

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM}
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
_FAILED = {errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ETIMEDOUT, errno.EFBIG}


@contextmanager
def storage_errors(place: Place) -> Iterator[None]:
    """Inside, an OSError of a failing disk becomes a StorageError; ``place`` if it names no file.

    Raises StorageFull, StorageReadOnly, StorageBusy, StorageError.
    """
    try:
        yield
    except OSError as error:
        problem = storage_error(error, place)
        if problem is None:
            raise
        raise problem from error


def storage_error(error: OSError, place: Place | None = None) -> StorageError | None:
    """What ``error`` says about the storage; None if it says nothing about that."""
    # Where two files are named, as by a copy, the second one is being written.
    named = next((n for n in (error.filename2, error.filename, place) if n is not None), None)
    where = "a file" if named is None else str(named)
    reason = error.strerror
    if error.errno in _FULL:
        return StorageFull(f"no space is left to write {where} ({reason}); free some on its disk")
    if error.errno == errno.EROFS:
        return StorageReadOnly(f"{where} cannot be written ({reason}); make its disk writable")
    if error.errno in _NO_ACCESS:
        return StorageError(f"the server has no access to {where} ({reason}); give it the right")
    if error.errno in _NO_DESCRIPTOR:
        return StorageBusy(
            f"{where} cannot be opened now ({reason}); try again, and raise the server's limit "
            "(ulimit -n) if this lasts"
        )
    if error.errno in _FAILED:
        return StorageError(f"{where} cannot be read or written ({reason}); check its disk")
    return None

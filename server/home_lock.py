"""One server per home: the second one would take the first one's jobs for crashed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from artifacts.errors import Conflict, InvalidInput

LOCK_FILE = "server.lock"


class HomeLock:
    """``with HomeLock(root):`` — the kernel frees it after any crash."""

    def __init__(self, root: Path) -> None:
        self._path = root / LOCK_FILE
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        """Raises Conflict with the holder's process id, InvalidInput where no lock can be made."""
        try:
            file = self._path.open("a+")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise Conflict(
                f"another server (process {holder or 'unknown'}) uses {self._path.parent}: stop "
                "it, or give this one its own LORALOOP_HOME"
            ) from None
        except OSError as error:
            raise InvalidInput(
                f"cannot lock {self._path}: {error.strerror}; make {self._path.parent} writable "
                "on a disk that knows locks, or choose another place with LORALOOP_HOME",
                param="LORALOOP_HOME",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

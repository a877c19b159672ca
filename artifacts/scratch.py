"""Temporary folders under ``LORALOOP_HOME/tmp``, locked by their makers as long as these live.

The kernel frees a lock after any death, so that a start can tell what a crash left behind from what
another process works in. Each is ``<prefix>…/`` with its ``lock`` and the ``folder`` itself.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK_FILE = "lock"
FOLDER = "folder"
UNLOCKED_STALE_S = 24 * 3600


@contextmanager
def scratch_folder(tmp: Path, prefix: str) -> Iterator[Path]:
    """A new folder on the file system of ``tmp``; gone afterwards, if it was not moved away."""
    root, lock = _make(tmp, prefix)
    try:
        folder = root / FOLDER
        folder.mkdir()
        yield folder
    finally:
        _remove(root)
        lock.close()


def clear_scratch(tmp: Path, prefix: str = "") -> list[Path]:
    """Remove what nobody works in any more; returns what was removed.

    What has no lock and is not empty was put there by somebody else, and gets a day.
    """
    return [path for path in sorted(tmp.glob(f"{glob.escape(prefix)}*")) if _clear(path)]


def _make(tmp: Path, prefix: str) -> tuple[Path, IO[str]]:
    while True:
        root = Path(tempfile.mkdtemp(prefix=prefix, dir=tmp))
        try:
            lock = (root / LOCK_FILE).open("w")
        except FileNotFoundError:  # somebody who clears found it empty
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / LOCK_FILE).exists():
            return root, lock
        lock.close()  # somebody who clears was here between the two lines


def _clear(path: Path) -> bool:
    try:
        lock = (path / LOCK_FILE).open("r+")
    except (FileNotFoundError, NotADirectoryError):
        return _clear_unlocked(path)
    except PermissionError:  # another user's, who works on the same home
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _remove(path)
    return True


def _remove(root: Path) -> None:
    """The lock last: whoever is killed meanwhile leaves something that can still be cleared."""
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)


def _clear_unlocked(path: Path) -> bool:
    with suppress(OSError):  # its maker was killed before the lock, or behind it
        path.rmdir()
        return True
    try:
        if time.time() - os.lstat(path).st_mtime < UNLOCKED_STALE_S:
            return False
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except FileNotFoundError:  # its maker was faster
        return False
    return True

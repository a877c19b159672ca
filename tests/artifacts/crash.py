"""Kill a process before any of its effects on disk, as kill -9 would: nothing is cleaned up."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine, event

KILLED, FINISHED = 9, 0
EFFECTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def run_until_effect(action: Callable[[], object], root: Path, count: int) -> bool:
    """Run ``action`` in a forked child that dies just before its ``count``-th effect.

    Effects are system calls on paths below ``root`` (opening a file among them), each SQL
    statement and each commit. Returns whether the child got to the end. Raises if it failed in
    any other way.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _die_before(count, str(root))
            action()
            status = FINISHED
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (KILLED, FINISHED):
        raise RuntimeError(f"the child failed by itself, status {status}")
    return status == FINISHED


def _die_before(count: int, root: str) -> None:
    left = count

    def step(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(KILLED)

    def audit(name: str, arguments: tuple[object, ...]) -> None:
        if name in EFFECTS and any(str(each).startswith(root) for each in arguments[:2]):
            step()

    sys.addaudithook(audit)
    event.listen(Engine, "before_cursor_execute", step)
    event.listen(Engine, "commit", step)

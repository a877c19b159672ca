"""The files that a training child writes: its progress as JSON lines, its log. Knows no process."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger("loraloop.server")

MAX_LINE_BYTES = 1 << 20
READ_BYTES = 4 << 20
TAIL_BYTES = 16_384


class ProgressFile:
    """JSON lines that another process appends; ``read`` returns what is new and complete."""

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self.path = path
        self._offset = offset
        self._partial = b""

    def mark_run(self, **facts: Any) -> None:
        """Say that a new run begins, and start reading behind that line."""
        line = json.dumps({"event": "run", **facts}) + "\n"
        with self.path.open("ab") as stream:
            if stream.tell():
                stream.write(b"\n")  # the last line of a killed run may lack its end
            stream.write(line.encode())
            self._offset = stream.tell()
        self._partial = b""

    def read(self) -> list[dict[str, Any]]:
        """New events, oldest first. A line that is not a JSON object is logged and skipped."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                fresh = stream.read(READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(fresh)
        *lines, self._partial = (self._partial + fresh).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            log.warning("%s: dropped a line of over %d bytes", self.path, MAX_LINE_BYTES)
            self._partial = b""
        events = [self._parse(line) for line in lines if line.strip()]
        return [event for event in events if event is not None]

    def read_all(self) -> list[dict[str, Any]]:
        """Everything up to now, in pieces."""
        events: list[dict[str, Any]] = []
        before = -1
        while before != self._offset:
            before = self._offset
            events += self.read()
        return events

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            event = json.loads(line, parse_constant=lambda _: None)  # NaN is no JSON
        except ValueError:  # JSONDecodeError and UnicodeDecodeError
            event = None
        if not isinstance(event, dict):
            log.warning("%s: not a progress event: %r", self.path, line[:200])
            return None
        return event


def last_lines(path: Path, count: int = 12) -> str:
    """The end of a log file, as text."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-count:])

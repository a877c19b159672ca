"""Errors of everything that lies on disk. Each carries the value and the remedy in its text.

LoraloopError
├── InvalidInput          the caller's value is wrong; nothing was changed
│   ├── InvalidName       a name outside [a-z0-9][a-z0-9._-]{0,63}, or a malformed reference
│   ├── InvalidChat       messages that the base's template cannot render faithfully
│   ├── InvalidData       training rows that cannot be used (file, line and reason of each)
│   └── AdapterRejected   the load gate refused an adapter (``reason`` is machine-readable)
├── NotFound              no such base, adapter, version, alias or file
├── Conflict              the request contradicts what is stored or running
├── Corrupt               stored bytes do not match their record
└── StorageError          the disk or the database failed; what was asked is not stored
    ├── StorageFull       no space is left
    ├── StorageReadOnly   it cannot be written
    └── StorageBusy       not now, but soon perhaps: a lock held elsewhere, no descriptor left
"""


class LoraloopError(Exception):
    """Root of every error that Loraloop raises on purpose."""


class InvalidInput(LoraloopError):
    """The caller's value is wrong; ``param`` names it where it has a name."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidName(InvalidInput):
    """A malformed adapter, alias or version reference."""


class InvalidChat(InvalidInput):
    """Messages that the base's chat template cannot render faithfully."""


class InvalidData(InvalidInput):
    """Training rows that cannot be used; ``rows`` lists ``(file, line, reason)``."""

    def __init__(self, message: str, rows: list[tuple[str, int, str]] | None = None) -> None:
        super().__init__(message)
        self.rows = rows or []


class AdapterRejected(InvalidInput):
    """The load gate refused an adapter; ``reason`` is a stable snake_case word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotFound(LoraloopError):
    """The named thing does not exist."""


class Conflict(LoraloopError):
    """The request contradicts what is stored or running."""


class Corrupt(LoraloopError):
    """Stored bytes do not match their record."""


class StorageError(LoraloopError):
    """The disk or the database under the home failed. The request may be fine."""


class StorageFull(StorageError):
    """No space is left: waiting alone does not help."""


class StorageReadOnly(StorageError):
    """The place cannot be written: waiting alone does not help."""


class StorageBusy(StorageError):
    """Somebody or something else holds what is needed; the same request may work later."""

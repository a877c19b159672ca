"""Where one installation keeps its things: registry, versions, uploads, jobs, exports.

Knows paths only; what lies under them belongs to the module that writes it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import InvalidInput

HOME_VARIABLE = "LORALOOP_HOME"
DATABASE_VARIABLE = "LORALOOP_DATABASE_URL"


@dataclass(frozen=True)
class Home:
    """The root folder and the fixed places below it. ``root`` is absolute."""

    root: Path

    @classmethod
    def open(cls, root: Path | str | None = None) -> Home:
        """The folder given, else ``LORALOOP_HOME``, else ``./.loraloop``; made where missing.

        Raises InvalidInput if the folder cannot be made or written.
        """
        chosen = root if root is not None else os.environ.get(HOME_VARIABLE) or ".loraloop"
        home = cls(Path(chosen).expanduser().resolve())
        for folder in (home.adapters, home.files, home.jobs, home.exports, home.tmp):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InvalidInput(
                    f"cannot make the folder {folder}: {error.strerror}; choose a writable "
                    f"place with {HOME_VARIABLE}",
                    param=HOME_VARIABLE,
                ) from error
        return home

    @property
    def adapters(self) -> Path:
        """Adapter versions: ``adapters/<name>/<version>/``."""
        return self.root / "adapters"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def models(self) -> Path:
        """Whole models of our own: ``models/<name>@<number>/``; made with the first."""
        return self.root / "models"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def heldout(self) -> Path:
        """Rows that adapters of our own were never trained on; made with the first."""
        return self.root / "heldout"

    @property
    def answers(self) -> Path:
        """What feedback may refer to and the database does not know yet."""
        return self.root / "answers"

    @property
    def responses(self) -> Path:
        """Stored responses that the database does not know yet."""
        return self.root / "responses"

    @property
    def tmp(self) -> Path:
        """Half-written things, on the same file system as their final place."""
        return self.root / "tmp"

    @property
    def database_url(self) -> str:
        return os.environ.get(DATABASE_VARIABLE) or f"sqlite:///{self.root / 'registry.db'}"

"""The folders ``adapters/<name>/<version>/`` and what a crash may leave of them.

A folder carries the mark ``.unpublished`` from before it gets its final name until its row is
committed, and again from just before its row is deleted. So a folder with mark and without row is
rubbish, a folder with row is a version whatever it carries, and a folder with neither belongs to a
database that was lost: it is kept. Knows no database; the caller says which numbers have rows and
holds the writer's lock.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import Corrupt, InvalidInput
from artifacts.home import Home
from artifacts.manifest import (
    CARD_FILE,
    CARD_MARK,
    MANIFEST_FILE,
    AdapterManifest,
    read_manifest,
)
from artifacts.model_card import model_card
from artifacts.safe_write import sha256_file, sync_folder, sync_tree, write_bytes, write_json
from artifacts.scratch import scratch_folder

log = logging.getLogger("loraloop.artifacts")

UNPUBLISHED = ".unpublished"
UNHASHED = frozenset({MANIFEST_FILE, CARD_FILE, UNPUBLISHED})


@dataclass(frozen=True)
class StagedFolder:
    """A folder ready to be renamed: on the home's file system, marked, synced, hashed."""

    path: Path
    source: Path
    hashes: dict[str, str]

    def write_record(self, record: AdapterManifest) -> AdapterManifest:
        """Write card and manifest; an imported folder may bring a card of its own."""
        card = self.path / CARD_FILE
        # PEFT's save_pretrained leaves an unfilled form there, so for our own runs ours wins.
        is_ours = record.origin == "trained" or not card.exists()
        if is_ours or CARD_MARK in card.read_text(encoding="utf-8", errors="replace"):
            write_bytes(card, model_card(record).encode())
        write_json(self.path / MANIFEST_FILE, record.model_dump(mode="json"))
        return record

    def take_back(self, final: Path) -> None:
        """Undo the renaming: what could not be registered goes back to where it came from."""
        with contextlib.suppress(OSError):  # it was not renamed; or its mark lets a sweep have it
            final.rename(self.path)

    def discard_copy(self) -> None:
        """Drop the copy of a folder that was not published; the caller's own stays."""
        if self.path != self.source:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def discard_source(self) -> None:
        """Drop the caller's folder where a copy of it was published."""
        if self.path != self.source:
            shutil.rmtree(self.source, ignore_errors=True)
            shutil.rmtree(self.path.parent, ignore_errors=True)


class VersionFolders:
    """Paths and marks under one home."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def path(self, name: str, version: int) -> Path:
        return self._home.adapters / name / str(version)

    def names(self) -> set[str]:
        return {path.name for path in self._home.adapters.iterdir() if path.is_dir()}

    def highest(self, name: str) -> int:
        """The highest number on disk, 0 without any."""
        return max(self._numbered(name), default=0)

    def stage(self, folder: Path) -> StagedFolder:
        """Make a caller's folder ready. Raises InvalidInput for links and special files."""
        if not folder.is_dir():
            raise InvalidInput(f"{folder} is not a folder; give the folder of a PEFT adapter")
        for path in folder.rglob("*"):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InvalidInput(f"{path} is a link or special file; copy plain files instead")
        staged = folder
        if folder.stat().st_dev != self._home.adapters.stat().st_dev:
            staged = self._copy(folder)
        self.doubt(staged)
        sync_tree(staged)  # the slow part, before anybody waits for a lock
        return StagedFolder(staged, folder, _hash_files(staged))

    def _copy(self, folder: Path) -> Path:
        scratch = Path(tempfile.mkdtemp(prefix="publish-", dir=self._home.tmp))
        try:
            return shutil.copytree(folder, scratch / "folder")
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def doubt(self, folder: Path) -> None:
        """Mark: without a row, this folder is rubbish."""
        if folder.is_dir():
            (folder / UNPUBLISHED).touch()
            sync_folder(folder)

    def confirm(self, folder: Path) -> None:
        """Take the mark away, the row being committed. With a row, the mark means nothing."""
        with contextlib.suppress(OSError):
            (folder / UNPUBLISHED).unlink(missing_ok=True)

    def discard(self, folder: Path) -> None:
        """Delete a folder. It leaves its place whole: no half of it stays without a mark.

        What cannot be deleted now keeps its mark, and a later sweep deletes it.
        """
        try:
            with (
                scratch_folder(self._home.tmp, "removed-") as grave,
                contextlib.suppress(FileNotFoundError),  # another process was faster
            ):
                folder.rename(grave / folder.name)
        except OSError as error:
            log.warning("%s could not be deleted yet: %s", folder, error)

    def discard_doubtful(self, name: str, committed: set[int]) -> list[Path]:
        """Settle every mark under ``name``: confirm what has a row, delete what has none."""
        removed = []
        for version, folder in self._numbered(name).items():
            if not (folder / UNPUBLISHED).exists():
                continue
            if version in committed:
                self.confirm(folder)
            else:
                self.discard(folder)
                removed.append(folder)
        return removed

    def verify(self, record: AdapterManifest) -> None:
        """Hash a version's files again; Corrupt names the first that differs from the record."""
        folder = self.path(record.name, record.version)
        remedy = f"remove {record.id} and publish it again from a good copy"
        if not folder.is_dir():
            raise Corrupt(f"{record.id}: the folder {folder} is gone; {remedy}")
        if read_manifest(folder) != record:
            raise Corrupt(f"{record.id}: {MANIFEST_FILE} differs from the record; {remedy}")
        found = _hash_files(folder)
        for file, expected in record.files.items():
            if file not in found:
                raise Corrupt(f"{record.id}: {file} is gone; {remedy}")
            if found[file] != expected:
                raise Corrupt(f"{record.id}: the bytes of {file} have changed; {remedy}")

    def _numbered(self, name: str) -> dict[int, Path]:
        folder = self._home.adapters / name
        if not folder.is_dir():
            return {}
        return {int(path.name): path for path in folder.iterdir() if path.name.isdecimal()}


def _hash_files(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256, without what the registry itself writes."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: sha256_file(paths[name]) for name in sorted(paths.keys() - UNHASHED)}

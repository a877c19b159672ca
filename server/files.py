"""Uploaded files: bytes under ``LORALOOP_HOME/files``, a row each. Knows no HTTP and no training.

A file is written under a temporary name, flushed to disk and renamed before its row exists, so a
crash leaves at worst bytes without a row, which ``recover`` removes. Everything here blocks on the
disk: on the event loop, call ``add`` and ``delete`` through a thread.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from sqlalchemy import select

from artifacts.database import Database
from artifacts.errors import Conflict, InvalidInput, NotFound
from artifacts.home import Home
from artifacts.safe_write import sync_folder, write_bytes
from artifacts.storage import storage_errors
from server.jobs.states import UNFINISHED
from server.paging import Page, Paging, page_of
from server.tables import FileRow, JobRow

PURPOSE = "fine-tune"
RESULTS = "fine-tune-results"
SUFFIXES = (".jsonl", ".json")
CHUNK_BYTES = 1 << 20


class FileTooLarge(InvalidInput):
    """More bytes than the server accepts in one file."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One uploaded file. ``path`` exists unless somebody removed it behind the server's back."""

    id: str
    filename: str
    purpose: str
    num_bytes: int
    sha256: str
    created_at: float
    path: Path


class FileStore:
    """Adds, finds and deletes uploaded files."""

    def __init__(self, home: Home, database: Database, *, max_bytes: int) -> None:
        self._home = home
        self._database = database
        self._max_bytes = max_bytes

    def recover(self) -> None:
        """Remove what a crash left behind: half-written uploads and bytes without a row."""
        for path in self._home.tmp.glob("upload-*"):
            path.unlink(missing_ok=True)
        with self._database.reading() as session:
            known = {id + suffix for id, suffix in session.execute(_NAMES)}
        for path in self._home.files.glob("file-*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def add(self, source: BinaryIO, filename: str, purpose: str = PURPOSE) -> StoredFile:
        """Store all of ``source``. Raises InvalidInput, StorageError; nothing is left then."""
        if purpose != PURPOSE:
            raise InvalidInput(
                f"purpose {purpose!r} is not supported: use {PURPOSE!r}.", param="purpose"
            )
        filename = _plain_name(filename)
        file_id = f"file-{secrets.token_hex(12)}"
        temporary = self._home.tmp / f"upload-{file_id}"
        try:
            with storage_errors(self._home.files):
                num_bytes, sha256, suffix = self._copy(source, temporary, filename)
                path = self._home.files / f"{file_id}{suffix}"
                os.replace(temporary, path)
                sync_folder(self._home.files)
        finally:
            _forget(temporary)
        row = FileRow(
            id=file_id,
            filename=filename,
            suffix=suffix,
            purpose=purpose,
            num_bytes=num_bytes,
            sha256=sha256,
            created_at=time.time(),
        )
        try:
            with self._database.session() as session:
                session.add(row)
                session.flush()
                return self._stored(row)
        except BaseException:
            _forget(path)
            raise

    def put_results(self, file_id: str, filename: str, content: bytes) -> None:
        """Store what a job found out; once more changes nothing. Raises StorageError."""
        path = self._home.files / f"{file_id}.csv"
        with storage_errors(self._home.files):
            write_bytes(path, content)
        row = FileRow(
            id=file_id,
            filename=filename,
            suffix=".csv",
            purpose=RESULTS,
            num_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            created_at=time.time(),
        )
        with self._database.session() as session:
            known = session.scalar(select(FileRow).where(FileRow.id == file_id))
            if known is None:
                session.add(row)
            else:
                known.num_bytes, known.sha256 = row.num_bytes, row.sha256

    def get(self, file_id: str) -> StoredFile:
        """Raises NotFound."""
        with self._database.reading() as session:
            row = session.scalar(select(FileRow).where(FileRow.id == file_id))
            if row is None:
                raise _no_file(file_id)
            return self._stored(row)

    def page(self, paging: Paging, purpose: str | None = None) -> Page[StoredFile]:
        """Files in order of upload. Raises NotFound if ``paging.after`` names no file."""
        query = select(FileRow)
        if purpose is not None:
            query = query.where(FileRow.purpose == purpose)
        with self._database.reading() as session:
            after = None
            if paging.after is not None:
                after = session.scalar(select(FileRow.sequence).where(FileRow.id == paging.after))
                if after is None:
                    raise _no_file(paging.after)
            return page_of(session, query, FileRow.sequence, paging, after).map(self._stored)

    def delete(self, file_id: str) -> None:
        """Raises NotFound, and Conflict while an unfinished job needs the file."""
        with self._database.session() as session:
            row = session.scalar(select(FileRow).where(FileRow.id == file_id))
            if row is None:
                raise _no_file(file_id)
            users = select(JobRow.id).where(
                (JobRow.training_file == file_id) | (JobRow.validation_file == file_id),
                JobRow.status.in_(UNFINISHED),
            )
            if (job_id := session.scalar(users)) is not None:
                raise Conflict(
                    f"File {file_id} is used by fine-tuning job {job_id}: cancel that job or wait "
                    "for its end, then delete the file."
                )
            path = self._stored(row).path
            session.delete(row)
        _forget(path)

    def _stored(self, row: FileRow) -> StoredFile:
        return StoredFile(
            id=row.id,
            filename=row.filename,
            purpose=row.purpose,
            num_bytes=row.num_bytes,
            sha256=row.sha256,
            created_at=row.created_at,
            path=self._home.files / f"{row.id}{row.suffix}",
        )

    def _copy(self, source: BinaryIO, target: Path, filename: str) -> tuple[int, str, str]:
        """Write ``source`` to ``target`` durably; returns bytes, sha256 and the suffix to use."""
        text = _TextCheck(filename)
        digest = hashlib.sha256()
        num_bytes = 0
        with open(target, "xb") as file:
            while chunk := source.read(CHUNK_BYTES):
                num_bytes += len(chunk)
                if num_bytes > self._max_bytes:
                    raise FileTooLarge(
                        f"{filename} is larger than {self._max_bytes} bytes, the most that this "
                        "server accepts (LORALOOP_MAX_UPLOAD_BYTES): split it.",
                        param="file",
                    )
                text.feed(chunk)
                digest.update(chunk)
                file.write(chunk)
            first = text.finish()
            file.flush()
            os.fsync(file.fileno())
        suffix = Path(filename).suffix.lower()
        if not suffix:  # bytes sent without a name: one JSON array, or one object per line
            suffix = ".json" if first == "[" else ".jsonl"
        return num_bytes, digest.hexdigest(), suffix


_NAMES = select(FileRow.id, FileRow.suffix)


class _TextCheck:
    """Reads a stream once and insists that it is UTF-8 text with something in it."""

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._offset = 0
        self._first = ""

    def feed(self, chunk: bytes, *, final: bool = False) -> None:
        pending = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            offset = self._offset - len(pending) + error.start
            raise InvalidInput(
                f"{self._filename} is not UTF-8 text: byte {offset} (0x"
                f"{error.object[error.start]:02x}) {error.reason}. {_encoding_hint(error.object)}",
                param="file",
            ) from None
        self._offset += len(chunk)
        if not self._first:
            self._first = text.lstrip("\ufeff").lstrip()[:1]

    def finish(self) -> str:
        """The first character that is not white space. Raises InvalidInput if there is none."""
        self.feed(b"", final=True)
        if not self._first:
            raise InvalidInput(
                f"{self._filename} is empty: it needs at least one training example.", param="file"
            )
        return self._first


def _encoding_hint(sample: bytes) -> str:
    if sample[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        guess = "UTF-16"
    else:
        guess = "GB18030" if _decodes(sample, "gb18030") else ""
    if guess:
        return f"It looks like {guess}: convert it with 'iconv -f {guess} -t UTF-8'."
    return "Save it as UTF-8."


def _forget(path: Path) -> None:
    """Delete bytes that no row names; ``recover`` deletes what cannot be deleted now."""
    with contextlib.suppress(OSError):
        path.unlink()


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def _plain_name(filename: str) -> str:
    """The last part of a client's path without control characters. Raises for other suffixes."""
    name = PureWindowsPath(PurePosixPath(filename).name).name
    name = "".join(char for char in name if char.isprintable())[-200:]
    suffix = Path(name).suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise InvalidInput(
            f"{name} ends in {suffix}: training files are {' or '.join(SUFFIXES)}.", param="file"
        )
    return name or "upload"


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"No file has the id {file_id!r}. GET /v1/files lists them.")

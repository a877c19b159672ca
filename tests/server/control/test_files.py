"""Uploads: whole or not at all, text that says where it is broken, nothing orphaned."""

from __future__ import annotations

import io
import time

import pytest
from sqlalchemy.exc import OperationalError

from artifacts.database import Database
from artifacts.errors import Conflict, InvalidInput, NotFound
from artifacts.home import Home
from server.files import CHUNK_BYTES, FileStore, FileTooLarge
from server.paging import Paging
from server.tables import JobRow

ROW = b'{"messages": []}\n'


@pytest.fixture
def files(home: Home, database: Database) -> FileStore:
    return FileStore(home, database, max_bytes=3 * CHUNK_BYTES)


def on_disk(home: Home) -> list[str]:
    return [path.name for folder in (home.files, home.tmp) for path in folder.iterdir()]


def test_bytes_come_back_and_go(home: Home, files: FileStore) -> None:
    stored = files.add(io.BytesIO(ROW), "C:\\data\\../shop.JSONL")
    assert stored.filename == "shop.JSONL"
    assert files.get(stored.id) == stored
    assert stored.path.read_bytes() == ROW
    assert stored.path.parent == home.files
    files.delete(stored.id)
    assert on_disk(home) == []
    with pytest.raises(NotFound, match=stored.id):
        files.get(stored.id)


@pytest.mark.parametrize(
    ("content", "filename", "says"),
    [
        (b'{"a": "\xff"}', "a.jsonl", r"byte 7 \(0xff\)"),
        (b"[" + b" " * (CHUNK_BYTES - 3) + "中".encode()[:2], "a.json", f"byte {CHUNK_BYTES - 2} "),
        (b'{"a": "' + "你好，订单".encode("gb18030") + b'"}', "a.jsonl", "iconv -f GB18030"),
        ("[]".encode("utf-16"), "a.json", "UTF-16"),
        (b"", "a.jsonl", "is empty"),
        (b"\xef\xbb\xbf \n\n", "a.jsonl", "is empty"),
        (ROW, "a.csv", ".csv"),
        (ROW, "a.pkl", ".pkl"),
    ],
)
def test_unusable_bytes_leave_nothing(
    home: Home, files: FileStore, content: bytes, filename: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        files.add(io.BytesIO(content), filename)
    assert on_disk(home) == []
    assert files.page(Paging()).items == []


def test_a_character_cut_by_the_chunk_border_is_fine(files: FileStore) -> None:
    content = b'["' + b" " * (CHUNK_BYTES - 4) + "中文".encode() + b'"]'
    assert files.add(io.BytesIO(content), "a.json").num_bytes == len(content)


def test_too_large(home: Home, files: FileStore) -> None:
    with pytest.raises(FileTooLarge, match="LORALOOP_MAX_UPLOAD_BYTES"):
        files.add(io.BytesIO(b"x" * (3 * CHUNK_BYTES + 1)), "a.jsonl")
    assert on_disk(home) == []


def test_a_nameless_upload_is_told_by_its_first_character(files: FileStore) -> None:
    assert files.add(io.BytesIO(b' [{"a": 1}]'), "upload").path.suffix == ".json"
    assert files.add(io.BytesIO(ROW), "").path.suffix == ".jsonl"


def test_a_failing_database_leaves_no_bytes(
    home: Home, files: FileStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OperationalError("insert", {}, Exception("database is locked"))

    monkeypatch.setattr(database, "session", fail)
    with pytest.raises(OperationalError):
        files.add(io.BytesIO(ROW), "a.jsonl")
    assert on_disk(home) == []


def test_recovery_removes_only_what_no_row_names(home: Home, files: FileStore) -> None:
    stored = files.add(io.BytesIO(ROW), "a.jsonl")
    (home.files / "file-0123.jsonl").write_bytes(ROW)
    (home.tmp / "upload-file-4567").write_bytes(ROW)
    files.recover()
    assert on_disk(home) == [stored.path.name]


def test_pages(files: FileStore) -> None:
    ids = [files.add(io.BytesIO(ROW), f"{number}.jsonl").id for number in range(5)]
    page = files.page(Paging(limit=2))
    assert ([file.id for file in page.items], page.has_more) == ([ids[4], ids[3]], True)
    page = files.page(Paging(limit=3, after=ids[3]))
    assert ([file.id for file in page.items], page.has_more) == ([ids[2], ids[1], ids[0]], False)
    page = files.page(Paging(order="asc", limit=2, after=ids[0]))
    assert [file.id for file in page.items] == [ids[1], ids[2]]
    assert files.page(Paging(), purpose="batch").items == []
    with pytest.raises(NotFound, match="file-none"):
        files.page(Paging(after="file-none"))


@pytest.mark.parametrize("status", ["queued", "running", "paused", "interrupted"])
def test_a_file_in_use_stays(home: Home, files: FileStore, database: Database, status: str) -> None:
    stored = files.add(io.BytesIO(ROW), "a.jsonl")
    job = JobRow(
        id="ftjob-1",
        status=status,
        name="shop",
        model="base",
        training_file=stored.id,
        hyperparameters={},
        settings={},
        seed=0,
        created_at=time.time(),
        queued_at=time.time(),
    )
    with database.session() as session:
        session.add(job)
    with pytest.raises(Conflict, match="ftjob-1"):
        files.delete(stored.id)
    assert stored.path.exists()
    with database.session() as session:
        session.merge(job).status = "succeeded"
    files.delete(stored.id)
    assert on_disk(home) == []

"""/v1/files over a real socket: the official client, and what it would never send."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import openai
import pytest

from artifacts.home import Home
from server.state import Server
from tests.server.conftest import Live, wait_until

ROW = b'{"messages": []}\n'


def on_disk(home: Home) -> int:
    return len([*home.files.iterdir(), *home.tmp.iterdir()])


def test_the_official_client_goes_round(api: openai.OpenAI, home: Home, tmp_path: Path) -> None:
    path = tmp_path / "客服.jsonl"
    path.write_bytes(ROW * 3)
    made = api.files.create(file=path, purpose="fine-tune")
    assert (made.filename, made.bytes, made.status) == ("客服.jsonl", 3 * len(ROW), "processed")
    assert api.files.retrieve(made.id).id == made.id
    assert api.files.content(made.id).read() == ROW * 3
    others = [api.files.create(file=(f"{n}.jsonl", ROW), purpose="fine-tune") for n in range(3)]
    listed = [file.id for file in api.files.list(limit=2)]  # pages by itself
    assert listed == [file.id for file in reversed([made, *others])]
    assert [f.id for f in api.files.list(order="asc", limit=1).data] == [made.id]
    assert api.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        api.files.delete(made.id)
    assert on_disk(home) == 3


@pytest.mark.parametrize(
    ("content", "says", "param"),
    [
        (b'{"a": "\xff"}\n', "byte 7 (0xff)", "file"),
        ("你好，世界，客服".encode("gb18030"), "GB18030", "file"),
        (b"", "is empty", "file"),
    ],
)
def test_unusable_files_are_a_400_and_leave_nothing(
    api: openai.OpenAI, home: Home, content: bytes, says: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(file=("a.jsonl", content), purpose="fine-tune")
    assert says in caught.value.message
    assert caught.value.param == param
    assert on_disk(home) == 0


def test_other_purposes_and_fields_are_named(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(file=("a.jsonl", ROW), purpose="batch")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(
            file=("a.jsonl", ROW),
            purpose="fine-tune",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
    assert "expires_after" in (caught.value.param or "")


def test_too_large_is_a_413(api: openai.OpenAI, home: Home) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        api.files.create(file=("a.jsonl", b" " * ((1 << 20) + 1)), purpose="fine-tune")
    assert caught.value.status_code == 413
    assert on_disk(home) == 0


FORM = "multipart/form-data"


def test_malformed_forms_are_a_400_in_openais_shape(
    live: Live, home: Home, subtests: pytest.Subtests
) -> None:
    for kind, body, says in (
        ("application/json", b'{"purpose": "fine-tune"}', FORM),
        (FORM, b"x", "boundary"),
        (f"{FORM}; boundary=x", b"--x\r\nrubbish", ""),
        (f"{FORM}; boundary=x", b"", ""),
    ):
        with subtests.test(kind=kind, body=body):
            headers = {"content-type": kind}
            answer = httpx.post(f"{live.url}/v1/files", headers=headers, content=body)
            assert answer.status_code == 400
            assert says in answer.json()["error"]["message"]
            assert "detail" not in answer.json()
    assert on_disk(home) == 0


def test_two_files_at_once_are_refused(live: Live, home: Home) -> None:
    files = [("file", ("a.jsonl", ROW)), ("file", ("b.jsonl", ROW))]
    answer = httpx.post(f"{live.url}/v1/files", files=files, data={"purpose": "fine-tune"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert on_disk(home) == 0


def test_an_upload_that_is_cut_off_leaves_nothing(
    live: Live, home: Home, fake_server: Server
) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(head + ROW * 100)
    answer = httpx.get(f"{live.url}/v1/files")
    assert answer.json()["data"] == []
    wait_until(lambda: on_disk(home) == 0)


def test_changes_are_on_the_audit_trail(api: openai.OpenAI, live: Live) -> None:
    made = api.files.create(file=("a.jsonl", ROW), purpose="fine-tune")
    api.files.delete(made.id)
    trail = httpx.get(f"{live.url}/admin/audit", params={"subject": made.id}).json()["data"]
    assert [(entry["action"], entry["who"]) for entry in trail] == [
        ("file.delete", "loopback"),
        ("file.create", "loopback"),
    ]

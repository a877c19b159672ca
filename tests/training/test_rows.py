"""Files to rows: every line number and every refusal, against files written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import InvalidData
from training.data.rows import read_rows


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(path: Path) -> list[int]:
    return [row.line for row in read_rows(path)[0]]


def test_array_elements_know_the_line_on_which_they_start(tmp_path: Path) -> None:
    path = write(tmp_path, '\n[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]\n')
    assert lines(path) == [3, 5, 6]


def test_json_lines_skip_blank_lines_and_keep_reading_after_a_broken_one(tmp_path: Path) -> None:
    rows, bad = read_rows(write(tmp_path, '{"a": 1}\r\n\r\n{"a": \n{"a": 2}\n'))
    assert [(row.line, row.value) for row in rows] == [(1, {"a": 1}), (4, {"a": 2})]
    assert [(row.line, row.reason[:14]) for row in bad] == [(3, "not valid JSON")]


@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_what_json_writes_is_read_back_in_both_forms(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    """Also with the line separators of Unicode, which str.splitlines would split at."""
    import json

    values = [{"text": text + "\u2028\x85"} for text in texts]
    folder = tmp_path_factory.mktemp("rows")
    lined = "\n".join(json.dumps(v, ensure_ascii=False).replace("\ud800", "") for v in values)
    rows, bad = read_rows(write(folder, lined.encode("utf-8", "surrogatepass")))
    assert not bad
    assert [row.value for row in rows] == values
    array = json.dumps(values, ensure_ascii=False, indent=1)
    assert [row.value for row in read_rows(write(folder, array))[0]] == values


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert lines(write(tmp_path, b'\xef\xbb\xbf{"a": 1}\n')) == [1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "empty array"),
        (b'[\n{"a": 1},\n]', "rows.json:3: not valid JSON"),
        (b'[\n{"a": 1}\n{"a": 2}]', "rows.json:3: not valid JSON: expected ','"),
        (b'[{"a": 1}', "rows.json:1: not valid JSON"),
        (b'[{"a": 1}]\n x', "after the closing"),
        (b'{\n "a": 1\n}', "several lines"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": "\xff"}', "byte offset 7"),
        (b'\xef\xbb\xbf{"a": "\xff"}', "byte offset 10"),
        ('{"a": 1}\n{"a": "甄嬛"}'.encode("gb18030"), "rows.json:2: not UTF-8 at byte offset 16"),
        ('{"a": "甄嬛"}'.encode("gb18030"), "GB18030"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_cannot_be_read_past_says_where_and_why(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        read_rows(write(tmp_path, content))
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InvalidData, match=str(path)):
            read_rows(path)

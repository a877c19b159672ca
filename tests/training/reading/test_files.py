"""Files to rows: every line number, encoding and refusal, against files written by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.errors import InvalidData
from training.data.files import json_text
from training.data.files.open import DataFile
from training.data.rows import MAX_ROW_CHARS, BadRow, Row


def write(folder: Path, content: str | bytes, name: str = "rows.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> tuple[list[Row], list[BadRow]]:
    every = list(DataFile(path).rows())
    return (
        [row for row in every if isinstance(row, Row)],
        [row for row in every if isinstance(row, BadRow)],
    )


def lines(path: Path) -> list[int]:
    return [row.line for row in read(path)[0]]


# --- JSON ---


def test_array_elements_know_the_line_on_which_they_start(tmp_path: Path) -> None:
    path = write(tmp_path, '\n[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n]\n')
    assert lines(path) == [3, 5, 6]


def test_json_lines_skip_blank_lines_and_keep_reading_after_a_broken_one(tmp_path: Path) -> None:
    rows, bad = read(write(tmp_path, '{"a": 1}\r\n\r\n{"a": \n{"a": 2}\n'))
    assert [(row.line, row.value) for row in rows] == [(1, {"a": 1}), (4, {"a": 2})]
    assert [(row.line, row.reason[:14]) for row in bad] == [(3, "not valid JSON")]


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(values=st.lists(json_values, min_size=1, max_size=6), chunk=st.integers(1, 40),
       indent=st.sampled_from([None, 1]))  # fmt: skip
def test_whatever_json_writes_is_read_back_however_the_window_cuts_it(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], chunk: int, indent: int | None
) -> None:
    """Also with the line separators of Unicode, which str.splitlines would split at."""
    values = [{"text": value, "more": "\u2028\x85"} for value in values]
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_CHUNK_CHARS", chunk)
        lined = "\n".join(json.dumps(value) for value in values)
        rows, bad = read(write(folder, lined))
        assert not bad
        assert [(row.line, row.value) for row in rows] == list(enumerate(values, start=1))
        array = json.dumps(values, indent=indent)
        rows, bad = read(write(folder, array))
    assert not bad
    assert [row.value for row in rows] == values
    if indent:
        starts = [n for n, line in enumerate(array.split("\n"), start=1) if line == " {"]
        assert [row.line for row in rows] == starts


def test_a_number_is_not_cut_at_the_edge_of_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for chunk in range(1, 9):
        monkeypatch.setattr(json_text, "_CHUNK_CHARS", chunk)
        rows, _ = read(write(tmp_path, "[1234567, -2.5e10, true,12]"))
        assert [row.value for row in rows] == [1234567, -2.5e10, True, 12]


@pytest.mark.parametrize("form", ["array", "lines"])
def test_a_key_given_twice_is_a_bad_row_and_the_next_one_is_read(tmp_path: Path, form: str) -> None:
    row = '{"instruction": "Q", "output": "A", "output": "B"}'
    nested = '{"messages": [{"role": "user", "role": "system"}]}'
    content = "\n".join([row, nested, '{"a": 1}', '{"a": NaN}'])
    if form == "array":
        content = "[\n" + content.replace("\n", ",\n") + "]"
    rows, bad = read(write(tmp_path, content))
    assert [row.value for row in rows] == [{"a": 1}]
    assert [row.reason for row in bad] == [
        "key 'output' appears twice in one object",
        "key 'role' appears twice in one object",
        "NaN is no value of JSON",
    ]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_row_of_ten_megabytes_is_read(tmp_path: Path, name: str) -> None:
    text = "长" * (10 << 20)
    row = json.dumps({"text": text}, ensure_ascii=False)
    content = f"[{row},\n{row}]" if name == "rows.json" else f"{row}\n{row}\n"
    rows, bad = read(write(tmp_path, content, name))
    assert not bad
    assert [(row.line, row.value["text"] == text) for row in rows] == [(1, True), (2, True)]


def test_a_row_over_the_limit_is_refused_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, "MAX_ROW_CHARS", 1000)
    monkeypatch.setattr(json_text, "_CHUNK_CHARS", 64)
    long = json.dumps({"text": "x" * 5000})
    rows, bad = read(write(tmp_path, f'{{"a": 1}}\n{long}\n{{"a": 2}}\n'))
    assert [row.line for row in rows] == [1, 3]
    assert bad == [BadRow(str(tmp_path / "rows.json"), 2, "longer than 1000 characters")]
    with pytest.raises(InvalidData, match=r"rows\.json:2: a row longer than 1000 characters"):
        read(write(tmp_path, f'[{{"a": 1}},\n{long}]'))
    with pytest.raises(InvalidData, match=r"rows\.json:2: .*1000 characters"):
        read(write(tmp_path, '[{"a": 1},\n{"a": "' + "x" * 5000))  # a quote never closed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "empty array"),
        (b'[\n{"a": 1},\n]', "rows.json:3: not valid JSON"),
        (b'[\n{"a": 1}\n{"a": 2}]', "rows.json:3: not valid JSON: expected ','"),
        (b'[{"a": 1}', "rows.json:1: not valid JSON"),
        (b'[{"a": 1},\n{"a": "x', "rows.json:2: not valid JSON"),
        (b'[{"a": 1}]\n x', "rows.json:2: text after the closing"),
        (b'{\n "a": 1\n}', "several lines"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "rows.json:1: not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read_past_says_where_and_why(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        read(write(tmp_path, content))
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InvalidData, match=str(path)):
            DataFile(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, '{"a": 1}\n{"a": 2}\n')
    rows = DataFile(path).rows()
    next(rows)
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n', encoding="utf-8")
    with pytest.raises(InvalidData, match="changed while it was read"):
        list(rows)


# --- encodings ---

CHINESE = '{"a": 1}\n{"a": "甄嬛传：皇上驾到"}\n'


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8-sig"),
        ("gbk", "gb18030"),
        ("gb18030", "gb18030"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
    ],
)
def test_encodings_are_found_and_lines_counted_in_them(
    tmp_path: Path, codec: str, said: str
) -> None:
    path = write(tmp_path, CHINESE.encode(codec))
    assert DataFile(path).encoding == said
    rows, bad = read(path)
    assert not bad
    assert [(row.line, row.value["a"]) for row in rows] == [(1, 1), (2, "甄嬛传：皇上驾到")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "\xff"}', "rows.json:1: neither UTF-8 nor GBK/GB18030 at byte offset 7"),
        (b'\xef\xbb\xbf{"a": "\xff"}', "byte offset 10"),
        (b'{"a": 1}\n{"a": "caf\xe9 au lait, na\xefve"}', "rows.json:2: neither UTF-8"),  # Latin-1
        # one byte lost in a file of UTF-8: as GB18030 it would be read, as other characters
        ((CHINESE * 9).encode().replace("嬛".encode(), "嬛".encode()[:2], 1), "rows.json:2: nei"),
        ('{"a": "好看。"}\n'.encode().replace(b"\x82", b""), "rows.json:1: neither UTF-8"),
        (b'{"a": "r\xe9gime"}', "rows.json:1: neither UTF-8"),  # GBK has a sign for it: 間
        ('{"a": 1}'.encode("utf-16")[:-1], "rows.json:1: not UTF-16"),
        (CHINESE.encode()[:-10], "rows.json:2: neither UTF-8"),  # torn in a character
    ],
)
def test_bytes_in_no_known_encoding_are_refused_with_their_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        DataFile(write(tmp_path, content))
    assert message in str(caught.value)


def test_the_broken_byte_is_found_across_the_pieces_of_a_file(tmp_path: Path) -> None:
    line = '{"a": "甄"}\n'.encode()
    before = line * ((1 << 20) // len(line) + 1)
    with pytest.raises(InvalidData, match=f"rows.json:{len(before) // len(line) + 1}: .*"
                       f"byte offset {len(before) + 7};"):  # fmt: skip
        DataFile(write(tmp_path, before + b'{"a": "\xff\xff"}' + line))


# --- CSV, Parquet, text ---


def test_csv_lines_are_physical_ones_and_cells_are_text(tmp_path: Path) -> None:
    content = 'text,category\r\n"two\r\nlines, ""quoted""",a\r\n\r\n1,b\r\nalone\r\n'
    rows, bad = read(write(tmp_path, content, "rows.csv"))
    assert [(row.line, row.value) for row in rows] == [
        (2, {"text": 'two\r\nlines, "quoted"', "category": "a"}),
        (5, {"text": "1", "category": "b"}),
    ]
    assert [(row.line, row.reason) for row in bad] == [
        (6, "1 cells under 2 columns (text, category)")
    ]


@settings(max_examples=50, deadline=None)
@given(cells=st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
                                st.text(st.characters(codec="utf-8", exclude_characters="\x00"))),
                      min_size=1, max_size=5))  # fmt: skip
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *cells])
    rows, bad = read(path)
    assert not bad
    assert [(row.value["a"], row.value["b"]) for row in rows] == cells


def test_tabs_semicolons_and_a_long_cell(tmp_path: Path) -> None:
    for delimiter, name in (("\t", "rows.tsv"), (";", "rows.csv"), (",", "rows.csv")):
        path = write(tmp_path, f"a{delimiter}b\n1{delimiter}{'x' * 200_000}\n", name)
        assert len(read(path)[0][0].value["b"]) == 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("a,b\n", "rows.csv:2: no row"),
        ("\na,b\n", "rows.csv:1: the first line is empty"),
        ("a,a\n1,2\n", "column 'a' appears twice"),
        ('a,b\n1,2\n"open,3\n4,5\n', "rows.csv:3: not valid CSV"),
    ],
)
def test_a_csv_that_cannot_be_read_past_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        read(write(tmp_path, content, "rows.csv"))
    assert message in str(caught.value)


def test_parquet_rows_are_numbered_over_all_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = [{"instruction": f"q{i}", "output": "a", "history": [["x", "y"]]} for i in range(25)]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=10)
    rows, bad = read(path)
    assert not bad
    assert [(row.line, row.value) for row in rows] == list(enumerate(values, start=1))
    unnamed = path.rename(tmp_path / "upload")  # known by its mark
    assert len(read(unnamed)[0]) == 25


def test_a_torn_or_empty_parquet_file_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(InvalidData, match="holds no row"):
        read(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidData, match="not readable as Parquet"):
        read(path)


def test_paragraphs_are_documents(tmp_path: Path) -> None:
    rows, _ = read(write(tmp_path, "\n\none\r\ntwo \n \nthree\n", "rows.txt"))
    assert [(row.line, row.value) for row in rows] == [
        (3, {"text": "one\ntwo"}),
        (6, {"text": "three"}),
    ]
    with pytest.raises(InvalidData, match="is empty"):
        read(write(tmp_path, "\n \n", "rows.txt"))


def test_the_limit_of_a_row_stands_above_ten_megabytes() -> None:
    assert MAX_ROW_CHARS >= 10 << 20


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt"])
def test_reading_holds_a_window_and_not_the_file(tmp_path: Path, name: str) -> None:
    import tracemalloc

    path, row = tmp_path / name, "x" * 1000
    lines = {
        "rows.json": "[\n" + ",\n".join([json.dumps({"text": row})] * 8000) + "\n]\n",
        "rows.jsonl": f"{json.dumps({'text': row})}\n" * 8000,
        "rows.csv": "text\n" + f"{row}\n" * 8000,
        "rows.txt": f"{row}\n\n" * 8000,
    }
    path.write_text(lines.pop(name), encoding="utf-8")
    lines.clear()
    tracemalloc.start()
    try:
        assert sum(isinstance(each, Row) for each in DataFile(path).rows()) == 8000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # pieces of 1 MiB, of a file of 8 MiB


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    values = [f"{i} " * 300 for i in range(8000)]
    parquet.write_table(pyarrow.table({"text": values}), path, row_group_size=1000)
    before, peak = pyarrow.total_allocated_bytes(), 0
    for _ in DataFile(path).rows():
        peak = max(peak, pyarrow.total_allocated_bytes())
    assert peak - before < 6 << 20  # of 11 MB

"""Sources to records: files, folders, dataset_info.json, the hub and samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import InvalidData, InvalidInput
from artifacts.home import Home
from training.config import parse_config
from training.data.records import Conversation, PlainText, PreferencePair, Record
from training.data.rows import BadRow
from training.data.sources import SourceRows, read_source
from training.inputs import load_inputs
from training.keys.data import DataSource

SHARED = Path(__file__).parents[4] / "shared" / "data"


def write(path: Path, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def source(path: Path | str, **keys: Any) -> DataSource:
    return DataSource(path=str(path), **keys)


def records(rows: SourceRows) -> list[Record]:
    every = list(rows)
    bad = [each for each in every if isinstance(each, BadRow)]
    assert not bad, bad[0]
    return [each for each in every if not isinstance(each, BadRow)]


def alpaca(number: int) -> dict[str, str]:
    return {"instruction": f"Q{number}", "output": f"A{number}"}


def test_a_file_tells_its_hash_and_rows_and_is_read_as_often_as_asked(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "rows.json", [alpaca(1), {"instruction": "Q"}])
    rows = read_source(source(path), seed=0, number=3)
    assert rows.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (rows.name, rows.encoding, rows.notes) == ("rows.json", "utf-8", [])
    for _ in range(2):
        first, second = rows
        assert isinstance(first, Conversation)
        assert (first.source, first.line) == (3, 1)
        assert isinstance(second, BadRow)
        assert rows.num_rows == 2


def test_rows_are_read_only_as_far_as_somebody_asks(tmp_path: Path) -> None:
    broken = "\n".join([*(json.dumps(alpaca(i)) for i in range(9)), '{"a": 1}'])
    rows = read_source(source(write(tmp_path / "rows.jsonl", broken)), seed=0)
    assert isinstance(rows, SourceRows)
    iterator: Iterator[Any] = iter(rows)
    next(iterator)
    assert rows.num_rows == 1


def test_another_encoding_and_unread_columns_are_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps([{"q": "甄嬛传", "a": "皇上", "system": "S"}], ensure_ascii=False)
                     .encode("gbk"))  # fmt: skip
    rows = read_source(source(path, columns={"prompt": "q", "response": "a"}), seed=0)
    assert records(rows)[0].fields["q"] == "甄嬛传"
    assert rows.encoding == "gb18030"
    assert rows.notes == [
        "rows.json is in GB18030, not UTF-8: decoded",
        "rows.json: column 'system' is not read: columns does not name it",
    ]


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", json.dumps(alpaca(1)))
    write(tmp_path / "a.json", [alpaca(0)])
    write(tmp_path / "notes.md", "no data")
    rows = read_source(source(tmp_path), seed=0)
    assert [record.fields["output"] for record in records(rows)] == ["A0", "A1"]
    before = rows.sha256
    write(tmp_path / "b.jsonl", json.dumps(alpaca(2)))
    assert read_source(source(tmp_path), seed=0).sha256 != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidData, match="holds no data file"):
        read_source(source(tmp_path / "empty"), seed=0)


def test_text_files_are_documents_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", "one\n\ntwo\n")
    for keys in ({}, {"form": "text"}, {"columns": {"prompt": "text"}}):
        found = records(read_source(source(path, **keys), seed=0))
        assert [each.text for each in found if isinstance(each, PlainText)] == ["one", "two"]
    with pytest.raises(InvalidInput, match="plain text, not alpaca rows"):
        list(read_source(source(path, form="alpaca"), seed=0))


def test_a_sample_is_seeded_in_order_and_each_row_as_likely(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [alpaca(i) for i in range(20)])
    drawn: Counter[int] = Counter()
    for seed in range(200):
        rows = read_source(source(path, num_samples=5), seed)
        lines = [int(str(record.fields["output"])[1:]) for record in records(rows)]
        assert len(lines) == 5 == rows.num_rows
        assert lines == sorted(lines)
        again = records(read_source(source(path, num_samples=5), seed))
        assert lines == [int(str(record.fields["output"])[1:]) for record in again]
        drawn.update(lines)
    assert set(drawn) == set(range(20))
    assert max(drawn.values()) < 2 * min(drawn.values())  # 50 each, σ 6
    assert rows.notes == ["rows.json: 5 of 20 rows, chosen by seed 199"]


def test_a_sample_larger_than_the_source_takes_all_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", [alpaca(i) for i in range(3)])
    rows = read_source(source(path, num_samples=5), seed=0)
    assert len(records(rows)) == 3
    assert "num_samples=5, but it has 3 rows: all taken" in rows.notes[0]


# --- dataset_info.json ---


def entry(at: Path, **keys: Any) -> str:
    info = write(at / "dataset_info.json", {"other": {"file_name": "x.json"}, "mine": keys})
    return f"{info}:mine"


def test_llama_factorys_entries_are_read_as_they_are(tmp_path: Path) -> None:
    kto = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
           "label": False}  # fmt: skip
    write(tmp_path / "kto.jsonl", json.dumps(kto))
    write(tmp_path / "wiki.txt", "one\n\ntwo")
    write(tmp_path / "pairs.json", [{"instruction": "Q", "chosen": "A", "rejected": "B"}])
    roles = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
             "assistant_tag": "assistant"}  # fmt: skip
    columns = {"messages": "messages", "kto_tag": "label"}
    sharegpt: dict[str, Any] = {"formatting": "sharegpt", "columns": columns, "tags": roles}
    path = entry(tmp_path, file_name="kto.jsonl", **sharegpt)
    (record,) = records(read_source(source(path), seed=0))
    assert isinstance(record, Conversation)
    assert (record.is_desirable, record.messages) == (False, kto["messages"])
    openai = sharegpt | {"formatting": "openai"}
    path = entry(tmp_path, file_name="kto.jsonl", **openai)
    (record,) = records(read_source(source(path), seed=0))
    assert isinstance(record, Conversation)
    assert record.messages == kto["messages"]
    path = entry(tmp_path, file_name="wiki.txt", columns={"prompt": "text"})
    assert len(records(read_source(source(path), seed=0))) == 2
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    path = entry(tmp_path, file_name="pairs.json", ranking=True, columns=columns)
    assert isinstance(records(read_source(source(path), seed=0))[0], PreferencePair)


def test_an_entrys_folder_and_sample(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for name in ("a.json", "b.json"):
        write(tmp_path / "many" / name, [alpaca(i) for i in range(10)])
    path = entry(tmp_path, file_name="many", num_samples=7)
    rows = read_source(source(path), seed=0)
    assert len(records(rows)) == 7
    assert rows.name == "many"
    assert len(records(read_source(source(path, num_samples=3), seed=0))) == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"file_name": "x.json", "colums": {}}, "unknown key 'colums'"),
        ({"file_name": "x.json", "formatting": "chatml"}, "formatting='chatml'"),
        ({"file_name": "x.json", "columns": {"images": "i"}}, "read text only"),
        ({"file_name": "x.json", "columns": ["prompt"]}, "columns must be an object"),
        ({"file_name": "x.json", "num_samples": 0}, "num_samples=0"),
        ({"file_name": "x.json", "folder": "f"}, "folder belongs to a hub data set"),
        ({"script_url": "s"}, "loading scripts run foreign code"),
        ({"ms_hub_url": "a/b"}, "ModelScope is not reached"),
        ({"cloud_file_name": "s3://x"}, "cloud storage"),
        ({}, "neither file_name nor hf_hub_url"),
        ({"file_name": "absent.json"}, "cannot read the data file"),
    ],
)
def test_entries_that_cannot_be_read_say_why(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        read_source(source(entry(tmp_path, **keys)), seed=0)
    assert message in str(caught.value)


def test_an_entry_must_be_named_and_leaves_nothing_open(tmp_path: Path) -> None:
    path = entry(tmp_path, file_name="x.json")
    info = path.removesuffix(":mine")
    with pytest.raises(InvalidData, match=r"name one.*entries: other, mine"):
        read_source(source(info), seed=0)
    with pytest.raises(InvalidData, match=r"has no entry 'absent'.*entries: other, mine"):
        read_source(source(f"{info}:absent"), seed=0)
    with pytest.raises(InvalidInput, match=r"columns stands in dataset_info\.json"):
        read_source(source(path, columns={"prompt": "q", "response": "a"}), seed=0)
    with pytest.raises(InvalidInput, match=r"split='test' chooses a part of a hub data set"):
        read_source(source(write(tmp_path / "x.json", [alpaca(0)]), split="test"), seed=0)
    write(Path(info), "{")
    with pytest.raises(InvalidData, match="not valid JSON"):
        read_source(source(path), seed=0)


def test_a_wrong_source_is_told_before_the_base_is_opened(tmp_path: Path) -> None:
    """Opening a base loads torch: seconds, after which a mistake in a path is a surprise."""
    here = str(write(tmp_path / "x.json", [alpaca(0)]))
    wrong: list[dict[str, Any]] = [
        {"data": str(tmp_path / "absent.json")},
        {"data": {"path": here, "columns": {"promt": "q"}}},
        {"data": here, "test_data": entry(tmp_path, file_name="gone.json")},
    ]
    for keys in wrong:
        config = parse_config({"name": "x", "base": str(tmp_path / "no-base"), **keys})
        with pytest.raises(InvalidInput, match=r"absent\.json|promt|gone\.json"):
            load_inputs(config, Home.open(tmp_path / "home"))


# --- hub ---


class Hub:
    """Stands in for datasets.load_dataset; remembers how it was asked."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.asked: dict[str, Any] = {}

    def load(self, path: str, **keys: Any) -> list[Any]:
        self.asked = {"path": path, **keys}
        if path == "absent/data":
            raise FileNotFoundError("Dataset 'absent/data' doesn't exist on the Hub")
        return self.rows


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    datasets = pytest.importorskip("datasets")
    stand_in = Hub([alpaca(0), alpaca(1), {"instruction": "Q"}])
    monkeypatch.setattr(datasets, "load_dataset", stand_in.load)
    return stand_in


def test_a_hub_data_set_is_asked_for_by_name_subset_and_split(hub: Hub) -> None:
    rows = read_source(source("hub:owner/name", subset="zh", split="test"), seed=0)
    assert hub.asked == {"path": "owner/name", "name": "zh", "split": "test", "data_dir": None}
    every = list(rows)
    assert [each.line for each in every] == [1, 2, 3]
    assert isinstance(every[2], BadRow)
    assert every[2].file == "hub:owner/name"
    before = rows.sha256
    assert read_source(source("hub:owner/name"), seed=0).sha256 == before
    hub.rows = [alpaca(7)]
    assert read_source(source("hub:owner/name"), seed=0).sha256 != before


def test_an_entry_of_the_hub_and_one_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    path = entry(tmp_path, hf_hub_url="owner/data", ms_hub_url="other/data", folder="zh")
    assert len(list(read_source(source(path), seed=0))) == 3
    assert (hub.asked["path"], hub.asked["data_dir"]) == ("owner/data", "zh")
    with pytest.raises(InvalidData, match=r"cannot load 'absent/data'.*doesn't exist"):
        read_source(source("hub:absent/data"), seed=0)
    hub.rows = []
    with pytest.raises(InvalidData, match="holds no row"):
        list(read_source(source("hub:owner/name"), seed=0))


# --- the files that people bring ---


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not on this machine")
@pytest.mark.parametrize(
    ("name", "kind", "num_rows"),
    [
        ("identity", Conversation, 91),
        ("alpaca_zh_demo", Conversation, 1000),
        ("glaive_toolcall_zh_demo", Conversation, 300),
        ("dpo_zh_demo", PreferencePair, 300),
    ],
)
def test_llama_factorys_own_data_through_its_own_dataset_info(
    name: str, kind: type[Record], num_rows: int
) -> None:
    path = SHARED / "llamafactory" / "dataset_info.json"
    rows = read_source(source(f"{path}:{name}"), seed=0)
    found = [each for each in rows if isinstance(each, kind)]
    bad = [each for each in rows if isinstance(each, BadRow)]
    assert len(found) + len(bad) == rows.num_rows == num_rows
    assert rows.notes == []
    assert [each.reason for each in bad] == []


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not on this machine")
def test_the_other_shared_files() -> None:
    assert len(records(read_source(source(SHARED / "huanhuan.json"), seed=0))) == 3729
    banking = source(
        SHARED / "banking77" / "train.csv", columns={"prompt": "text", "response": "category"}
    )
    found = records(read_source(banking, seed=0))
    assert len(found) == 10003
    assert len({record.fields["category"] for record in found}) == 77

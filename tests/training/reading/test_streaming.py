"""Streaming: the same rows in the same parts as through memory, with memory that does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts.base import EMBEDDED_BASE, Base, open_base
from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from tests.training.conftest import rows
from training.config import TrainingConfig, parse_config
from training.data.load import TrainingData, load_data, wanted_rows
from training.data.load_streamed import load_streamed
from training.data.spill import SpilledExamples
from training.data.stream_set import stream_set
from training.errors import InvalidConfig

MIB = 1 << 20


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return open_base(tiny_base)


def write(folder: Path, values: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return str(path)


def make_config(data: Any, **keys: Any) -> TrainingConfig:
    return parse_config({"name": "check", "data": data, "streaming": True, **keys})


def streamed(base: Base, folder: Path, config: TrainingConfig) -> TrainingData:
    return load_streamed(config, ChatRenderer(base.tokenizer), 64, folder)


def in_memory(base: Base, config: TrainingConfig) -> TrainingData:
    config = config.model_copy(update={"streaming": False, "near_duplicates": "off"})
    return load_data(config, ChatRenderer(base.tokenizer), 64)


def test_rows_parts_counts_and_hash_are_those_of_memory(tmp_path: Path, base: Base) -> None:
    long_prompt = {"instruction": "q" * 100, "output": "A"}
    long_reply = {"instruction": "Q", "output": "a" * 100}
    unusable: dict[str, Any] = {"instruction": "Q", "output": ""}
    data = write(
        tmp_path, [*rows(30), unusable, long_prompt, *rows(5), long_reply, "no row"], "a.jsonl"
    )
    test = write(tmp_path, [*rows(40)[25:], *rows(40)[25:28]], "t.jsonl")
    validation = write(tmp_path, rows(30)[20:26], "v.jsonl")
    for keys in (
        {},
        {"test_data": test, "validation_data": validation},
        {"redact_personal_data": True, "clean": True, "sampling": "inverse_frequency"},
    ):
        config = make_config(data, max_bad_rows=2, **keys)
        got, expected = streamed(base, tmp_path, config), in_memory(base, config)
        assert got.data_hash == expected.data_hash
        assert got.counts == expected.counts
        assert got.sources == expected.sources
        assert got.report.parts == expected.report.parts
        languages = {
            "languages": {"en": got.counts["num_duplicates"] + expected.report.data.num_usable}
        }
        assert got.report.totals() == expected.report.totals() | languages
        for part in ("train", "validation", "test"):
            on_disk, kept = getattr(got.split, part), getattr(expected.split, part)
            assert isinstance(on_disk, SpilledExamples)
            assert list(on_disk) == list(kept)


def test_windows_of_a_row_stay_in_one_part(tmp_path: Path, base: Base) -> None:
    long = [{"instruction": f"Q{i}", "output": f"{i} " * 90} for i in range(12)]
    config = make_config(write(tmp_path, long), long_rows="window", window_overlap=8)
    got = streamed(base, tmp_path, config)
    parts = [{e.row for e in part} for part in (got.split.train, got.split.validation,
                                                got.split.test)]  # fmt: skip
    assert sum(map(len, parts)) == len(set().union(*parts)) == 12
    assert len(got.split.train) > 2 * len(parts[0])
    assert got.counts["num_windowed"] == 12
    assert got.data_hash == in_memory(base, config).data_hash


def test_it_says_what_it_does_not_look_for(tmp_path: Path, base: Base) -> None:
    got = streamed(base, tmp_path, make_config(write(tmp_path, rows(9))))
    assert got.report.near_duplicates["mode"] == "off"
    assert "near duplicates and classes are not looked for" in got.report.data.notes[-1]
    assert got.report.data.classes is None


def test_bad_rows_are_counted_all_and_listed_first(tmp_path: Path, base: Base) -> None:
    config = make_config(write(tmp_path, [{"instruction": "Q"}] * 1500))
    with pytest.raises(InvalidData, match="1500 of 1500 rows cannot be used") as caught:
        streamed(base, tmp_path, config)
    assert "and 1480 more" in str(caught.value)
    assert [row[1] for row in caught.value.rows] == list(range(1, 21))
    renderer, wanted = ChatRenderer(base.tokenizer), wanted_rows(config, 64)
    found = stream_set(config.data, renderer, wanted, tmp_path)
    assert (len(found.bad), found.findings.num_bad) == (1000, 1500)
    too_long = [{"instruction": "q" * 99, "output": str(i)} for i in range(4)]
    with pytest.raises(InvalidData, match="in all 4 usable rows the reply starts after"):
        streamed(base, tmp_path, make_config(write(tmp_path, too_long)))


def test_training_rows_that_are_tested_on_are_left_out(tmp_path: Path, base: Base) -> None:
    data, same = write(tmp_path, rows(9)), write(tmp_path, rows(9), "same.jsonl")
    with pytest.raises(InvalidData, match="every training row also stands"):
        streamed(base, tmp_path, make_config(data, test_data=same))
    with pytest.raises(InvalidData, match="every row of validation_data also stands in test_data"):
        streamed(base, tmp_path, make_config(data, test_data=same, validation_data=same))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"group_by": "user"}, "group_by needs the rows' values in memory"),
        ({"stratify_by": "user"}, "stratify_by needs the rows' values in memory"),
        ({"near_duplicates": "remove"}, "set near_duplicates=off"),
        ({"streaming": False, "sample_by": "x"}, "sample_by belongs to sampling=inverse_freq"),
        ({"streaming": False, "window_overlap": 8}, "window_overlap belongs to long_rows=window"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        make_config("rows.jsonl", **keys)


# --- memory ---

PROGRAM = """
import re, sys, threading, time
from pathlib import Path
from artifacts.base import open_base
from artifacts.chat import ChatRenderer
from training.config import parse_config
from training.data.load import load_data
from training.data.load_streamed import load_streamed
from training.data.mixing import make_mix

def anonymous():
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"^Anonymous:\\s+(\\d+)", text, re.MULTILINE)[1]) * 1024

base, small, large, folder, mode = sys.argv[1:]
renderer = ChatRenderer(open_base(base).tokenizer)
def load(data):
    config = parse_config({"name": "x", "data": data, "streaming": mode == "streaming",
                           "near_duplicates": "off"})
    if mode == "streaming":
        return load_streamed(config, renderer, 128, Path(folder))
    return load_data(config, renderer, 128)
load(small)  # libraries and caches
before = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.05):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
began = time.monotonic()
data = load(large)
mix = make_mix(data.split.train, (1.5,), "natural", 0)
num_tokens = sum(len(data.split.train[i].input_ids) for i in mix.epoch_rows(0))
done.set()
watcher.join()
peak = max(peak, anonymous())
print(data.counts["num_rows"], num_tokens, peak - before, round(time.monotonic() - began, 1))
"""


def write_large(path: Path, num_bytes: int, row_kib: int) -> int:
    """Different rows of about ``row_kib`` KiB, one of these to learn; returns how many."""
    written = count = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < num_bytes:
            reply = f"{count} and its square {count * count}, "
            text = reply * (1000 // len(reply))
            row = {
                "instruction": f"Tell me of {count}",
                "output": text,
                "page": text * (row_kib - 1),
            }
            written += stream.write(json.dumps(row) + "\n")
            count += 1
    return count


def grown(folder: Path, num_bytes: int, row_kib: int, mode: str = "streaming") -> int:
    """By how many bytes anonymous memory grew at most while rows were read and seen once."""
    large = folder / "large.jsonl"
    count = write_large(large, num_bytes, row_kib)
    write_large(folder / "small.jsonl", MIB, row_kib)
    arguments = [str(EMBEDDED_BASE), str(folder / "small.jsonl"), str(large), str(folder), mode]
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    print(mode, num_bytes >> 20, "MiB:", answer.stdout.strip())
    num_rows, num_tokens, growth = map(int, answer.stdout.split()[:3])
    assert num_rows == count
    assert num_tokens > 0
    return growth


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' accounts")
def test_twenty_megabytes_through_disk_take_next_to_no_memory(tmp_path: Path) -> None:
    assert grown(tmp_path, 20 * MIB, row_kib=16) < 12 * MIB


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux' accounts")
def test_a_gigabyte_through_disk_takes_at_most_300_mb(tmp_path: Path) -> None:
    assert grown(tmp_path, 1000 * 1000 * 1000, row_kib=4) < 300 * 1000 * 1000

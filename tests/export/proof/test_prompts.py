"""What is asked: held-out rows first, a given file as it stands, our texts where rows are few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts.chat import ChatRenderer
from artifacts.errors import Corrupt, InvalidData, InvalidInput, NotFound
from artifacts.heldout import HeldOutRow, write_heldout
from artifacts.home import Home
from export.proof.prompts import BATCH_SIZE, MAX_TOKENS, MIN_PROMPTS, find_questions
from export.source import Source, open_source

CHAT = [{"role": "user", "content": "Where is my order?"}]
REPLY = [*CHAT, {"role": "assistant", "content": "On its way."}]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORALOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source(tiny_base: Path, adapter: Path) -> Source:
    return open_source(str(adapter), str(tiny_base))


def rows(count: int) -> list[HeldOutRow]:
    return [HeldOutRow(tuple(range(3, 20 + i)), 5 + i % 7) for i in range(count)]


def test_the_adapters_own_rows_come_first(source: Source, home: Path) -> None:
    write_heldout(Home.open(home), source.weights.content_hash, rows(40))
    found = find_questions(source, None, 36)
    assert list(found.rows) == rows(36)
    assert found.has_replies
    assert found.facts.source == f"held-out rows of {source.adapter_id}"


def test_few_rows_are_filled_up_with_our_texts_and_the_proof_says_so(
    source: Source, home: Path
) -> None:
    write_heldout(Home.open(home), source.weights.content_hash, rows(3))
    found = find_questions(source, None, 32)
    assert len(found.rows) == found.facts.count == MIN_PROMPTS
    assert list(found.rows[:3]) == rows(3)
    assert found.facts.source.endswith("(3), built-in texts (29)")


def test_without_rows_our_texts_are_asked_as_chats_and_no_home_is_made(
    source: Source, home: Path
) -> None:
    found = find_questions(source, None, 32)
    assert found.facts.source == "built in: no held-out rows kept"
    assert not found.has_replies
    assert not home.exists()
    assert all(len(row.token_ids) <= 256 - 33 for row in found.rows)  # the tiny base's context


def test_rows_of_another_base_are_refused(source: Source, home: Path) -> None:
    wrong = [HeldOutRow((1, 100_000), 1)]
    write_heldout(Home.open(home), source.weights.content_hash, wrong)
    with pytest.raises(Corrupt, match="does not fit tiny; delete"):
        find_questions(source, None, 32)


def test_a_given_file_is_read_as_chats_and_texts(source: Source, tmp_path: Path) -> None:
    lines = [{"messages": REPLY}, {"messages": CHAT}, {"text": "Once upon a time"}]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    replied, asked, text, *_ = find_questions(source, path, 32).rows
    prompt = ChatRenderer(source.base.tokenizer).render_prompt(CHAT)
    assert list(replied.token_ids[: replied.num_prompt]) == prompt == list(asked.token_ids)
    assert source.base.tokenizer.decode(replied.token_ids[replied.num_prompt :]).startswith("On")
    assert source.base.tokenizer.decode(text.token_ids) == "Once upon a time"


def test_a_text_file_has_a_prompt_on_each_line(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "asked.txt"
    path.write_text("\n".join(f"Line {i}" for i in range(40)), encoding="utf-8")
    found = find_questions(source, path, 34)
    assert found.facts.source == f"given: {path}"
    assert found.facts.count == 34
    assert source.base.tokenizer.decode(found.rows[33].token_ids) == "Line 33"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", 'an object with either "messages" or "text"'),
        ('{"text": "a", "messages": []}', 'an object with either "messages" or "text"'),
        ('{"text": 5}', '"text" is no string'),
        ('{"text": ""}', "it has no token"),
        ('{"messages": "hello"}', '"messages" is no list'),
        ('{"messages": [{"role": "king", "content": "?"}]}', "king"),
    ],
)
def test_bad_lines_are_named(line: str, reason: str, source: Source, tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InvalidData) as error:
        find_questions(source, path, 32)
    assert f"{path}:3: " in str(error.value)
    assert reason in str(error.value)
    assert [row[1] for row in error.value.rows] == [3]


def test_files_that_hold_nothing_are_refused(source: Source, tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n\n")
    latin.write_bytes(b"caf\xe9")
    with pytest.raises(InvalidInput, match="holds no prompt"):
        find_questions(source, empty, 32)
    with pytest.raises(InvalidInput, match="is not UTF-8"):
        find_questions(source, latin, 32)
    with pytest.raises(NotFound, match="cannot be read"):
        find_questions(source, tmp_path / "absent", 32)
    with pytest.raises(InvalidInput, match="max_prompts=31: a proof takes at least 32"):
        find_questions(source, None, 31)


def test_every_batch_is_ragged(source: Source, tmp_path: Path) -> None:
    """Else a model that ignores its mask would pass on rows of one length."""
    path = tmp_path / "asked.txt"
    path.write_text("exactly so\n" * 32)
    found = find_questions(source, path, 32).rows
    for start in range(0, 32, BATCH_SIZE):
        assert len({row.num_prompt for row in found[start : start + BATCH_SIZE]}) == 2


def test_a_long_row_keeps_its_reply_and_room_to_answer(source: Source, home: Path) -> None:
    long = [HeldOutRow(tuple(range(3, 203)) * 2, 390), HeldOutRow(tuple(range(3, 203)) * 2, 400)]
    write_heldout(Home.open(home), source.weights.content_hash, long)
    replied, asked = find_questions(source, None, 32).rows[:2]
    assert replied.token_ids[replied.num_prompt :] == long[0].token_ids[390:]
    for row in (replied, asked):
        assert len(row.token_ids) <= MAX_TOKENS
        assert row.num_prompt + 33 <= 256

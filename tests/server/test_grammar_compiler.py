"""Compiling grammars: each once, two at a time, for those who wait; and what is kept of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from server.answers.grammars import compiler as compiler_module
from server.answers.grammars.compiler import GrammarCompiler
from server.answers.grammars.constraint import Constraint
from server.engine.grammar import Grammar, InvalidGrammar
from server.errors import ApiError
from tests.server.test_grammars import new_compiler


class Slow:
    """Stands for Grammar: says what was compiled, and how many at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> None:
        self.texts: list[str] = []
        self.num_running = self.most = 0
        self.seconds = seconds
        monkeypatch.setattr(compiler_module, "Grammar", self)

    def __call__(self, tokenizer: Any, text: str) -> Grammar:
        self.texts.append(text)
        self.num_running += 1
        self.most = max(self.most, self.num_running)
        time.sleep(self.seconds)
        self.num_running -= 1
        if text == "bad":
            raise InvalidGrammar("no")
        return cast(Grammar, object())


async def test_equal_texts_compile_once_and_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, grammars = Slow(monkeypatch), new_compiler()
    texts = [str(i % 5) for i in range(40)]
    made = await asyncio.gather(*(grammars.compile(Constraint(t, "p")) for t in texts))
    assert sorted(slow.texts) == ["0", "1", "2", "3", "4"]
    assert slow.most == 2
    assert all(grammar is made[i % 5] for i, grammar in enumerate(made))
    assert await grammars.compile(Constraint("3", "p")) is made[3]


async def test_whoever_leaves_spoils_it_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, grammars = Slow(monkeypatch, 0.1), new_compiler()

    def asks(text: str) -> asyncio.Task[Grammar]:
        return asyncio.create_task(grammars.compile(Constraint(text, "p")))

    first, second, leaves, stays, alone = (asks(text) for text in "abccd")
    await asyncio.sleep(0.02)  # two are being compiled, the others wait
    for task in (second, leaves, alone):
        task.cancel()
    assert await first is not None
    assert await stays is not None
    await asyncio.sleep(0.2)
    assert sorted(slow.texts) == ["a", "b", "c"]  # who had left alone is not worked for
    assert await grammars.compile(Constraint("d", "p")) is not None  # and may come back


async def test_each_asker_is_told_its_own_field(monkeypatch: pytest.MonkeyPatch) -> None:
    Slow(monkeypatch)
    grammars = new_compiler()
    asked = [grammars.compile(Constraint("bad", param, "invalid_regex")) for param in ("x", "y")]
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [cast(ApiError, error).param for error in errors] == ["x", "y"]
    assert all(cast(ApiError, error).code == "invalid_regex" for error in errors)


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, grammars = Slow(monkeypatch, 0), new_compiler()
    monkeypatch.setattr(compiler_module, "MAX_KEPT", 3)
    monkeypatch.setattr(compiler_module, "MAX_KEPT_BYTES", 100)

    async def ask(*texts: str) -> int:
        before = len(slow.texts)
        for text in texts:
            await grammars.compile(Constraint(text, "p"))
        return len(slow.texts) - before

    assert await ask("a", "b", "c", "a") == 3
    assert await ask("d") == 1  # b, which nobody has asked for since, has to go
    assert await ask("a", "c", "d") == 0
    assert await ask("b") == 1
    assert await ask("x" * 90, "y" * 90) == 2
    assert await ask("x" * 90) == 1  # which had to go for its bytes


async def test_a_base_without_a_fast_tokenizer_says_so() -> None:
    class Old:
        is_fast = False

    grammars = GrammarCompiler(Old(), 10, {1})
    with pytest.raises(ApiError, match="fast tokenizer") as caught:
        await grammars.compile(Constraint('start: "a"', "structured_outputs.grammar"))
    assert caught.value.param == "structured_outputs.grammar"

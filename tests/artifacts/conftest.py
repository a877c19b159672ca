"""Renderers of each kind of template, opened once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from artifacts.chat import ChatRenderer
from tests.artifacts.chats import NAMES, tokenizer_of


@pytest.fixture(scope="session")
def renderers() -> Callable[[str], ChatRenderer]:
    made: dict[str, ChatRenderer] = {}

    def get(name: str) -> ChatRenderer:
        if name not in made:
            made[name] = ChatRenderer(tokenizer_of(name))
        return made[name]

    return get


@pytest.fixture(params=NAMES)
def renderer(request: pytest.FixtureRequest, renderers: Callable[[str], ChatRenderer]) -> Any:
    return renderers(request.param)


@pytest.fixture
def embedded(renderers: Callable[[str], ChatRenderer]) -> ChatRenderer:
    return renderers("embedded")

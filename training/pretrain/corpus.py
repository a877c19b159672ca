"""The endless customer-service corpus: seeded, lazy, and never the same pool twice.

A pool is a numbered batch of conversations that depends on (seed, number) only, so a run resumes
at "pool 17, batch 3" without saving any random state. Conversations are OpenAI messages; what
they look like as text is the chat template's business.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from training.pretrain.dressing import FRAMES, capital, dress, tidy
from training.pretrain.grammar import Topic, load_topics
from training.pretrain.slots import SlotSampler, hanzi, pseudo_word

Message = dict[str, Any]
ORDER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_order_status",
        "description": "Look up the status of an order.",
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "string"}},
            "required": ["order_id"],
        },
    },
}


@dataclass(frozen=True)
class Conversation:
    """Messages to train on, and the tools that were offered to the assistant."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)

    def questions(self) -> Iterator[str]:
        """The user's turns."""
        return (m["content"] for m in self.messages if m["role"] == "user")


class Corpus:
    """Writes conversations; `pool(number, size)` is a pure function of the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._topics = load_topics()
        self._names = sorted(self._topics)

    def pool(self, number: int, size: int) -> list[Conversation]:
        """Conversations of one numbered pool; the same for the same seed, number and size."""
        rng = random.Random(f"{self._seed}/{number}")
        return [self._conversation(rng) for _ in range(size)]

    def _conversation(self, rng: random.Random) -> Conversation:
        language = rng.choice(("zh", "en"))
        kind = rng.random()
        if kind < 0.03:
            return self._tool_use(rng, language)
        if kind < 0.05:
            return self._reasoned(rng, language)
        if kind < 0.13:
            return Conversation(_echo(rng, language))
        bound: dict[str, str] = {}
        messages = self._system(rng, language, bound) if rng.random() < 0.25 else []
        turns = 1 if rng.random() < 0.6 else rng.choice((2, 2, 3, 3, 4, 5))
        if rng.random() < 0.005:
            turns = rng.randint(8, 24)
        for _ in range(turns):
            if rng.random() < 0.03:
                language = rng.choice(("zh", "en"))
            messages += self._exchange(rng, language, bound)
        return Conversation(messages)

    def _system(self, rng: random.Random, language: str, bound: dict[str, str]) -> list[Message]:
        text = rng.choice(FRAMES["systems"][language])
        sampler = SlotSampler(rng, language)
        if "{shop}" in text:
            bound.update(shop=sampler("shop"), bot=sampler("bot"))
        return [{"role": "system", "content": text.format(**bound)}]

    def _exchange(
        self, rng: random.Random, language: str, persona: dict[str, str]
    ) -> list[Message]:
        topic = self._topics[rng.choice(self._names)]
        question, answer = self._pair(rng, topic, language, persona)
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]

    def _pair(
        self, rng: random.Random, topic: Topic, language: str, persona: dict[str, str]
    ) -> tuple[str, str]:
        bound: dict[str, str] = {}
        pattern = rng.choice(topic.questions[language])
        question = pattern.expand(rng, bound, SlotSampler(rng, language))
        question = dress(rng, tidy(question), language, topic.name, list(bound.values()))
        if topic.name.startswith("smalltalk"):
            bound = {**persona, **bound}
        answer = rng.choice(topic.answers[language]).expand(rng, bound, None)
        return question, capital(tidy(answer))

    def _tool_use(self, rng: random.Random, language: str) -> Conversation:
        order = SlotSampler(rng, language)("order")
        pattern = rng.choice(self._topics["order_status"].questions[language])
        question = tidy(pattern.expand(rng, {"order": order}, SlotSampler(rng, language)))
        if order not in question:
            question += f" {order}"
        states = FRAMES["order_states"][language]
        state = rng.choice(sorted(states))
        answer = FRAMES["tool_answer"][language].format(order=order, state=states[state])
        call = {"name": "get_order_status", "arguments": {"order_id": order}}
        messages: list[Message] = [
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": call}],
            },
            {"role": "tool", "content": json.dumps({"order_id": order, "status": state})},
            {"role": "assistant", "content": answer},
        ]
        return Conversation(messages, [ORDER_TOOL])

    def _reasoned(self, rng: random.Random, language: str) -> Conversation:
        topic = self._topics[rng.choice(self._names)]
        question, answer = self._pair(rng, topic, language, {})
        frame = FRAMES["think"][language]
        thought = frame["thought"].format(topic.name.replace("_", " "))
        return Conversation(
            [
                {"role": "system", "content": frame["system"]},
                {"role": "user", "content": question},
                {"role": "assistant", "reasoning_content": thought, "content": answer},
            ]
        )


def _echo(rng: random.Random, language: str) -> list[Message]:
    """Repeat-after-me turns: every character and word piece gets seen, and copying is learnt."""
    if language == "zh":
        text = "，".join(hanzi(rng, 2, 9) for _ in range(rng.randint(1, 3)))
    else:
        text = " ".join(pseudo_word(rng) for _ in range(rng.randint(2, 9)))
        text = text if rng.random() < 0.8 else text.title()
    order = rng.choice(FRAMES["echo"][language])
    return [
        {"role": "user", "content": order.format(text)},
        {"role": "assistant", "content": text},
    ]

"""The endless customer-service corpus: seeded, lazy, and never the same pool twice.

A pool is a numbered batch of conversations that depends on (seed, number) only, so a run resumes
at "pool 17, batch 3" without saving any random state. Conversations are OpenAI messages; what
they look like as text is the chat template's business.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from training.pretrain.grammar import Topic, load_topics
from training.pretrain.slots import SlotSampler, hanzi, pseudo_word

Message = dict[str, Any]
OPENERS = {
    "zh": (
        "你好，|您好，|请问|亲，|请问一下，|那个，|客服，|哈喽，|我想问下，|问一下，|你们好，|嗨，|"
        "不好意思，|打扰一下，|我是老顾客了，|我比较着急，|帮个忙，|诶，|家里人让我问，|昨天也问过，"
    ).split("|"),
    "en": (
        "Hi, |Hello, |Hey, |Excuse me, |Sorry to bother you, |Quick question: |Good afternoon, |"
        "Hi there. |Hello, I have a question. |Hey guys, |I'm a regular customer. |Um, |So, |"
        "Dear team, |A question: |My mother asks: |Listen, |Okay, |Well, |Hello again. "
    ).split("|"),
}
CLOSERS = {
    "zh": "，谢谢|，急|，在线等|，麻烦了|！|？|。|，多谢|~|，快点|，有点急|，拜托|…".split("|"),
    "en": ", thanks|. Thanks!|, please| asap|!|?|.|...|, thank you|. It's urgent.|, cheers|. Please help.|??".split("|"),
}
SYSTEMS = {
    "zh": [
        "你是{shop}的客服助手{bot}。", "你是{shop}的智能客服，名字叫{bot}，请礼貌简洁地回答顾客。",
        "你叫{bot}，是{shop}的在线客服。请用中文回答。", "{shop}客服{bot}为您服务。回答要简短。",
        "你是一个客服助手。", "你是一名专业的电商客服，请耐心回答用户的问题。", "请用简洁的语言回答顾客的问题。",
    ],
    "en": [
        "You are {bot}, the customer service assistant of {shop}.",
        "You are {shop}'s support assistant. Your name is {bot}. Be polite and brief.",
        "Your name is {bot} and you work for the online shop {shop}. Answer in English.",
        "You are a helpful assistant.", "You are a customer service agent of an online shop.",
        "Answer the customer's questions briefly and politely.",
    ],
}
CASUAL = {"refuse_offtopic", "refuse_harm", "refuse_privacy", "refuse_advice"}
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
ORDER_STATES = {
    "zh": {"packing": "正在打包", "shipped": "已经发货", "delivered": "已经签收", "paid": "已付款，等待发货"},
    "en": {
        "packing": "being packed",
        "shipped": "on its way",
        "delivered": "delivered",
        "paid": "paid and waiting to be packed",
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
        if kind < 0.11:
            return Conversation(_echo(rng, language))
        bound: dict[str, str] = {}
        messages = self._system(rng, language, bound) if rng.random() < 0.4 else []
        turns = 1 if rng.random() < 0.6 else rng.choice((2, 2, 3, 3, 4, 5))
        if rng.random() < 0.005:
            turns = rng.randint(8, 24)
        for _ in range(turns):
            if rng.random() < 0.03:
                language = rng.choice(("zh", "en"))
            messages += self._exchange(rng, language, bound)
        return Conversation(messages)

    def _system(self, rng: random.Random, language: str, bound: dict[str, str]) -> list[Message]:
        text = rng.choice(SYSTEMS[language])
        sampler = SlotSampler(rng, language)
        if "{shop}" in text:
            bound.update(shop=sampler("shop"), bot=sampler("bot"))
        return [{"role": "system", "content": text.format(**bound)}]

    def _exchange(self, rng: random.Random, language: str, persona: dict[str, str]) -> list[Message]:
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
        question = dress(rng, _tidy(question), language, topic.name, list(bound.values()))
        if topic.name.startswith("smalltalk"):
            bound = {**persona, **bound}
        answer = rng.choice(topic.answers[language]).expand(rng, bound, None)
        return question, _capital(_tidy(answer))

    def _tool_use(self, rng: random.Random, language: str) -> Conversation:
        order = SlotSampler(rng, language)("order")
        pattern = rng.choice(self._topics["order_status"].questions[language])
        question = _tidy(pattern.expand(rng, {"order": order}, None))
        if order not in question:
            question += f" {order}"
        state = rng.choice(sorted(ORDER_STATES[language]))
        words = ORDER_STATES[language][state]
        answer = f"订单 {order} {words}。" if language == "zh" else f"Order {order} is {words}."
        call = {"name": "get_order_status", "arguments": {"order_id": order}}
        messages: list[Message] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": json.dumps({"order_id": order, "status": state})},
            {"role": "assistant", "content": answer},
        ]
        return Conversation(messages, [ORDER_TOOL])

    def _reasoned(self, rng: random.Random, language: str) -> Conversation:
        topic = self._topics[rng.choice(self._names)]
        question, answer = self._pair(rng, topic, language, {})
        wish = topic.name.replace("_", " ")
        thought = f"顾客的问题属于：{wish}。" if language == "zh" else f"The customer's topic: {wish}."
        system = "请先思考再回答。" if language == "zh" else "Think before you answer."
        return Conversation(
            [
                {"role": "system", "content": system},
                {"role": "user", "content": question},
                {"role": "assistant", "reasoning_content": thought, "content": answer},
            ]
        )


def _echo(rng: random.Random, language: str) -> list[Message]:
    """Repeat-after-me turns: every character and word piece gets seen, and copying is learnt."""
    if language == "zh":
        text = "，".join(hanzi(rng, 2, 9) for _ in range(rng.randint(1, 3)))
        order = rng.choice(("请重复：{}", "请把这句话原样输出：{}", "复述一遍：{}"))
    else:
        words = [pseudo_word(rng) for _ in range(rng.randint(2, 9))]
        text = " ".join(words) if rng.random() < 0.8 else " ".join(words).title()
        order = rng.choice(("Repeat this: {}", "Say exactly: {}", "Copy this text: {}"))
    return [
        {"role": "user", "content": order.format(text)},
        {"role": "assistant", "content": text},
    ]


def dress(rng: random.Random, text: str, language: str, topic: str, values: list[str]) -> str:
    """Give a question an opener, a closer, other capitals or a typo, leaving slot values whole."""
    talk = topic.startswith("smalltalk")
    if rng.random() < (0.0 if talk else 0.12 if topic in CASUAL else 0.28):
        text = rng.choice(OPENERS[language]) + text
    if rng.random() < (0.1 if talk else 0.28):
        text = text.rstrip("？?。！!~，,") + rng.choice(CLOSERS[language])
    elif language == "en" and rng.random() < 0.4:
        text = text.rstrip("?.!") + rng.choice("?.")
    if language == "zh":
        return text
    if rng.random() < 0.05:
        text = _typo(rng, text, values)
    return text if rng.random() < 0.3 else _capital(text)


def _typo(rng: random.Random, text: str, values: list[str]) -> str:
    """Swap two letters inside a word that is no slot value."""
    words = text.split(" ")
    spots = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 3]
    spots = [i for i in spots if not any(words[i] in value for value in values)]
    if not spots:
        return text
    spot = rng.choice(spots)
    word, cut = words[spot], rng.randint(1, len(words[spot]) - 3)
    words[spot] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(words)


def _tidy(text: str) -> str:
    """Remove the double spaces and stray blanks that optional parts leave behind."""
    text = re.sub(r" {2,}", " ", text).strip()
    return re.sub(r" ([,.?!:;](?:\s|$))", r"\1", text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1].isascii() else text
